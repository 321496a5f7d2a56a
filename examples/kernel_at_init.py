"""The kernel at initialization approaches its infinite-width limit, whatever is drawn.

    python examples/kernel_at_init.py
    python examples/kernel_at_init.py --activations relu erf gelu --depths 3 --widths 64 256 1024
    python examples/kernel_at_init.py --quick

Networks of L dense layers of width m in NTK parameterization are drawn many times, and the kernel
Θ_0 of each is compared with Θ_∞, which `analytic_ntk` reads from the module: on points of the
unit circle, as in figure 1 of Jacot, Gabriel and Hongler (2018), "Neural tangent kernel". Their
theorem 1 says that Θ_0 → Θ_∞, which depends on the depth, the activation and the variances at
initialization, and on nothing else. Arora et al. (2019), "On exact computation with an infinitely
wide neural net", bound the error of one entry for ReLU by a multiple of m^-¼. What is measured is
m^-½, the fluctuation of an average over m units; and the draws differ from each other by as much.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from _common import COLOURS, exponent, fitted, parser_of, save, scaled, width_axis
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor
from tqdm.auto import tqdm

from torch_ntk import MLP, analytic_ntk, empirical_ntk

THEORY, BOUND = -0.5, -0.25
POINTS = 32


@dataclass(frozen=True)
class Result:
    """Networks of one activation and depth.

    Attributes:
        name: Both of them.
        limit: Θ_∞ `[N, N]`.
        curves: By width, Θ_0(x(0), x(γ)) of every draw, `[draws, N]`.
        errors: ‖Θ_0 - Θ_∞‖_F / ‖Θ_∞‖_F, `[draws, widths]`.
        spread: Between draws, √(mean ‖Θ_0 - mean‖²_F) / ‖Θ_∞‖_F, by width.
    """

    name: str
    limit: Tensor
    curves: dict[int, Tensor]
    errors: Tensor
    spread: Tensor


def circle() -> tuple[Tensor, Tensor]:
    """Angles γ and the points (cos γ, sin γ) `[N, 2]`; the angle 0 is in the middle."""
    angles = 2 * math.pi * (torch.arange(POINTS, dtype=torch.float64) / POINTS - 0.5)
    return angles, torch.stack([angles.cos(), angles.sin()], dim=1)


def network(activation: str, depth: int, width: int) -> MLP:
    """`depth` dense layers, from the plane to one output."""
    return MLP([2, *[width] * (depth - 1), 1], activation, dtype=torch.float64)


def measured(activation: str, depth: int, args: argparse.Namespace) -> Result:
    """All draws of all widths."""
    _, x = circle()
    # What is not random can be read from a network of any width.
    limit = analytic_ntk(network(activation, depth, 1), x)
    name = f"{activation}, {depth} layers"
    curves, errors, spread = {}, [], []
    bar = tqdm(total=args.draws * len(args.widths), desc=name, unit="network", leave=False)
    for width in args.widths:
        kernels = []
        for seed in range(args.draws):
            torch.manual_seed(seed)
            kernels.append(empirical_ntk(network(activation, depth, width), x, output="mean"))
            bar.update()
        drawn = torch.stack(kernels)
        curves[width] = drawn[:, POINTS // 2]
        errors.append((drawn - limit).norm(dim=(1, 2)) / limit.norm())
        off = (drawn - drawn.mean(0)).square().sum() / (args.draws - 1)
        spread.append(off.sqrt() / limit.norm())
    bar.close()
    return Result(name, limit, curves, torch.stack(errors, dim=1), torch.stack(spread))


def print_table(results: Sequence[Result], widths: Sequence[int]) -> None:
    """Errors and spreads by width, and the fitted exponents."""
    print(f"{'relative to ‖Θ_∞‖':<25}" + "".join(f"{w:>8}" for w in widths) + "   exponent of m")
    for result in results:
        slope, error = exponent(widths, result.errors)
        means = "".join(f"{v:>8.4f}" for v in result.errors.square().mean(0).sqrt().tolist())
        print(f"{result.name:<16}{'Θ_0 - Θ_∞':<9}{means}   {slope:+.2f} ± {error:.2f}")
        cells = "".join(f"{v:>8.4f}" for v in result.spread.tolist())
        print(f"{'':<16}{'draws':<9}{cells}   {exponent(widths, result.spread[None])[0]:+.2f}")
    print(
        f"\nΘ_0 comes to Θ_∞ as m^{THEORY:g} or so, where m^{BOUND:g} is proven, and draws to each "
        "other:\nin wide networks the kernel does not depend on the draw."
    )


def draw(results: Sequence[Result], widths: Sequence[int]) -> Figure:
    """Kernels of single draws, the error against the width, and the spread against the width."""
    figure = Figure(figsize=(11.0, 4.3), dpi=110, layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    _draw_kernels(results[0], widths, left)
    for k, result in enumerate(results):
        look = {"color": COLOURS[k % len(COLOURS)], "marker": "os^Dv<"[k % 6], "markersize": 4.5}
        slope, error = exponent(widths, result.errors)
        means = result.errors.square().mean(0).sqrt()
        middle.plot(widths, means, label=f"{result.name}: {slope:+.2f} ± {error:.2f}", **look)
        slope, _ = exponent(widths, result.spread[None])
        right.plot(widths, result.spread, label=f"{result.name}: {slope:+.2f}", **look)
    first = max(float(r.errors[:, 0].square().mean().sqrt()) for r in results)
    for axes, bounds in ((middle, True), (right, False)):
        width_axis(axes, widths)
        axes.plot(
            widths, scaled(widths, THEORY, 1.3 * first), ":", color="0.25", label="$m^{-1/2}$"
        )
        if bounds:
            line = scaled(widths, BOUND, 1.3 * first)
            axes.plot(widths, line, "--", color="0.25", label="$m^{-1/4}$, the bound")
        axes.tick_params(axis="x", labelrotation=45)
        axes.legend(fontsize=8, loc="lower left", title="exponent of m", title_fontsize=8)
    size = r"\,/\,\Vert\Theta_\infty\Vert_F$"
    middle.set(title="distance from the limit")
    middle.set_ylabel(r"$\Vert\Theta_0 - \Theta_\infty\Vert_F" + size + ", RMS over draws")
    right.set(title="distance between draws")
    right.set_ylabel(r"standard deviation of $\Theta_0" + size)
    low = min(float(r.spread[-1]) for r in results)
    for axes in (middle, right):
        axes.set_ylim(low / 7.0, 2.0 * first)  # room for the legend
    return figure


def _draw_kernels(result: Result, widths: Sequence[int], axes: Axes) -> None:
    """Every draw at the smallest width and at one 16 times as large."""
    angles, _ = circle()
    wide = min(widths, key=lambda w: abs(math.log(w / (16 * widths[0]))))
    for width, colour in ((widths[0], COLOURS[1]), (wide, COLOURS[0])):
        for curve in result.curves[width][:10]:
            axes.plot(angles, curve, color=colour, linewidth=0.9, alpha=0.75)
        axes.plot([], [], color=colour, label=rf"$\Theta_0$, width {width}")
    axes.plot(
        angles,
        result.limit[POINTS // 2],
        "--",
        color="black",
        linewidth=2.0,
        label=r"$\Theta_\infty$",
    )
    axes.set(xlabel="angle between x and x' (radians)", ylabel="kernel Θ(x, x')")
    axes.set_title(f"draws of {result.name}")
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8)


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line; `--quick` takes narrow networks."""
    parser = parser_of(__doc__, out="kernel_at_init.png")
    parser.add_argument("--activations", nargs="+", default=["relu", "tanh"])
    parser.add_argument("--depths", type=int, nargs="+", default=[2, 3], help="dense layers")
    parser.add_argument("--widths", type=int, nargs="+", default=[64 * 2**k for k in range(8)])
    parser.add_argument("--draws", type=int, default=8, help="networks of each width")
    args = parser.parse_args(argv)
    if args.quick:
        args.widths, args.draws = [64, 128, 256, 512, 1024], 12
    args.widths = sorted(set(args.widths))
    if args.draws < 2 or len(args.widths) < 2 or args.widths[0] < 1:
        parser.error("--draws and the number of --widths must be at least 2, widths at least 1")
    if min(args.depths) < 2:
        parser.error("--depths must be at least 2: a single layer has no width")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """Draw networks, compare, draw the picture."""
    args = arguments(argv)
    results = [measured(act, depth, args) for act in args.activations for depth in args.depths]
    print_table(results, args.widths)
    slopes = {
        result.name: fitted(
            args.widths,
            result.errors,
            between_draws=round(exponent(args.widths, result.spread[None])[0], 4),
            theory=THEORY,
            bound=BOUND,
        )
        for result in results
    }
    numbers = {
        "main": {name: row["measured"] for name, row in slopes.items()},
        "widths": args.widths,
        "draws": args.draws,
        "exponents": slopes,
        "errors": {result.name: result.errors.tolist() for result in results},
        "spread": {result.name: result.spread.tolist() for result in results},
    }
    save(draw(results, args.widths), numbers, args.out)


if __name__ == "__main__":
    main()
