"""A trained network of small outputs is kernel regression with its infinite-width kernel.

    python examples/ntk_predicts_network.py
    python examples/ntk_predicts_network.py --activation relu --widths 1024 4096 16384 65536
    python examples/ntk_predicts_network.py --quick

A network of width m, times a factor s, is trained to the end by gradient descent on a few points
of the unit circle. What it says on the whole circle, f_nn, is compared with

    f_ntk(x) = Θ_∞(x, X) Θ_∞(X, X)⁻¹ Y,

in which nothing is random and nothing was trained. Arora et al. (2019), "On exact computation with
an infinitely wide neural net", prove |f_nn - f_ntk| ≤ ε for ReLU, a small s and a large m. Three
things stand between the two:

- what is left of the initial outputs where there are no data, which is ∝ s at every width;
- Θ_0 is not Θ_∞, but off by m^-½;
- Θ_t is not Θ_0. To move s f by 1 the weights must move by 1/s, which changes the kernel by up to
  1/(s² m): a small s needs a large m.

So with a fixed s the error ends at a floor ∝ s, which is reached later the smaller s is. It goes
to 0 if s falls with the width, but not too fast: with s = (m_0/m)^¼, where m_0 is the smallest
width, the first of the three falls as m^-¼, the others as m^-½, and the error as m^-¼.
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

from torch_ntk import MLP, analytic_ntk
from torch_ntk.predict import gradient_flow_mse, max_learning_rate

MOMENTUM = 0.9
LEFT = 1e-9  # training ends when the loss is at most this share of that of f = 0
POWER = -0.25  # of m, for the s that falls with the width


@dataclass(frozen=True)
class Problem:
    """Points of the circle, and what the kernel makes of them.

    Attributes:
        x: Training points `[N, 2]`.
        y: Targets `[N, 1]`.
        angles: Of all test points, `[M]`.
        x_test: Test points `[M, 2]`.
        f_ntk: The prediction there, `[M]`.
        largest: The largest stable step for f itself, with momentum.
    """

    x: Tensor
    y: Tensor
    angles: Tensor
    x_test: Tensor
    f_ntk: Tensor
    largest: float


@dataclass(frozen=True)
class Result:
    """Trained networks, s times each.

    Attributes:
        factors: s by width.
        outputs: By width, f_nn of every seed on the circle, `[seeds, M]`.
        errors: Root mean square of f_nn - f_ntk over the circle, `[seeds, widths]`.
    """

    factors: list[float]
    outputs: dict[int, Tensor]
    errors: Tensor


def points(angles: Tensor) -> Tensor:
    """`[N, 2]` on the unit circle."""
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def network(activation: str, depth: int, width: int) -> MLP:
    """`depth` dense layers in NTK parameterization, from the plane to one output."""
    return MLP([2, *[width] * (depth - 1), 1], activation, dtype=torch.float64)


def problem(args: argparse.Namespace) -> Problem:
    """Five points, so that there is a wide gap without data."""
    seen = math.pi * torch.linspace(-0.7, 0.7, 5, dtype=torch.float64)
    angles = math.pi * torch.linspace(-1.0, 1.0, 97, dtype=torch.float64)
    x, x_test, y = points(seen), points(angles), 0.5 * (seen + 0.4).cos()
    any_width = network(args.activation, args.depth, 1)
    theta = analytic_ntk(any_width, x)
    flow = gradient_flow_mse(theta, y[:, None])
    _, f_ntk = flow(None, k_test_train=analytic_ntk(any_width, x_test, x))
    assert f_ntk is not None
    largest = max_learning_rate(theta, momentum=MOMENTUM)
    return Problem(x, y[:, None], angles, x_test, f_ntk[:, 0], largest)


def trained(net: MLP, s: float, p: Problem, most: int) -> Tensor:
    """Outputs s·f on the circle `[M]` after training on ½ Σ (s f - y)².

    Raises:
        RuntimeError: After `most` steps the loss is still not near 0.
    """
    # The kernel of s f is s² Θ. The limit of training does not depend on the size of steps.
    lr = 0.15 * p.largest / s**2
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=MOMENTUM)
    enough = LEFT * 0.5 * float(p.y.square().sum())
    for _ in range(most):
        loss = 0.5 * (s * net(p.x) - p.y).square().sum()
        left = float(loss.detach())
        if not math.isfinite(left):
            raise RuntimeError(
                f"Training diverged at width {net.widths[1]}, s = {s:g}: it is far "
                "from lazy there; take larger --widths or --scales."
            )
        if left < enough:
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    else:
        raise RuntimeError(f"The loss is {left:.2g} after {most} steps; raise --steps.")
    with torch.no_grad():
        return s * net(p.x_test)[:, 0]


def measured(p: Problem, name: str, factors: list[float], args: argparse.Namespace) -> Result:
    """Networks of all widths and seeds."""
    bar = tqdm(total=args.seeds * len(args.widths), desc=name, unit="network", leave=False)
    outputs = {}
    for width, s in zip(args.widths, factors, strict=True):
        found = []
        for seed in range(args.seeds):
            torch.manual_seed(seed)
            net = network(args.activation, args.depth, width)
            found.append(trained(net, s, p, args.steps))
            bar.update()
        outputs[width] = torch.stack(found)
    bar.close()
    errors = [(f - p.f_ntk).square().mean(1).sqrt() for f in outputs.values()]
    return Result(factors, outputs, torch.stack(errors, dim=1))


def middle(result: Result) -> Tensor:
    """Root mean square of the errors over seeds, by width."""
    return result.errors.square().mean(0).sqrt()


def floor_exponent(results: dict[str, Result]) -> float:
    """The p of `error ∝ s**p` at the largest width, over the fixed factors."""
    fixed = list(results.values())[:-1]
    at_last = torch.stack([result.errors[:, -1] for result in fixed], dim=1)
    return exponent([result.factors[-1] for result in fixed], at_last)[0]


def print_table(results: dict[str, Result], widths: Sequence[int]) -> None:
    """Errors by width and s, and the fitted exponents."""
    print("RMS of f_nn - f_ntk over the circle")
    print(f"{'width':<14}" + "".join(f"{w:>9}" for w in widths) + "   exponent of m")
    for name, result in results.items():
        slope, error = exponent(widths, result.errors)
        cells = "".join(f"{v:>9.4f}" for v in middle(result).tolist())
        print(f"{name:<14}{cells}   {slope:+.2f} ± {error:.2f}")
    last = exponent(widths, next(reversed(results.values())).errors)[0]
    print(
        f"\nAt a fixed s the error ends at a floor, here ∝ s^{floor_exponent(results):.2f} "
        f"(theory: s^1);\nwith an s that falls with the width it falls too, here as m^{last:.2f} "
        f"(theory: m^{POWER:g})."
    )


def draw(p: Problem, results: dict[str, Result], args: argparse.Namespace) -> Figure:
    """Networks on the circle for the largest and the smallest s, and the error by width."""
    figure = Figure(figsize=(11.0, 4.1), dpi=110, layout="constrained")
    first, second, right = figure.subplots(1, 3)
    fixed = list(results)[:-1]
    for axes, name in ((first, fixed[0]), (second, fixed[-1])):
        _draw_circle(p, results[name], name, args.widths, axes)
    low, high = first.get_ylim()
    for axes in (first, second):
        axes.set_ylim(low, high + 0.45 * (high - low))  # room for the legend
    second.set_ylabel("")
    for k, (name, result) in enumerate(results.items()):
        slope, error = exponent(args.widths, result.errors)
        last = name == next(reversed(results))
        right.plot(
            args.widths,
            middle(result),
            marker="os^Dv<"[k % 6],
            color="black" if last else COLOURS[(2 + k) % len(COLOURS)],
            label=f"{name}: {slope:+.2f} ± {error:.2f}",
        )
    start = 1.35 * float(middle(next(reversed(results.values())))[0])
    line = scaled(args.widths, POWER, start)
    right.plot(args.widths, line, ":", color="0.25", label="$m^{-1/4}$")
    width_axis(right, args.widths)
    right.set_ylim(bottom=right.get_ylim()[0] / 6.0)  # room for the legend
    right.set(title="distance from the prediction", ylabel="RMS of f_nn - f_ntk over the circle")
    right.legend(fontsize=8, loc="lower left", title="exponent of m", title_fontsize=8)
    return figure


def _draw_circle(p: Problem, result: Result, name: str, widths: Sequence[int], axes: Axes) -> None:
    """Every trained network of the smallest and the largest width."""
    for width, colour in ((widths[0], COLOURS[1]), (widths[-1], COLOURS[0])):
        for curve in result.outputs[width][:6]:
            axes.plot(p.angles, curve, color=colour, linewidth=1.0, alpha=0.75)
        axes.plot([], [], color=colour, label=f"trained, width {width}")
    axes.plot(p.angles, p.f_ntk, "--", color="black", linewidth=2.0, label="f_ntk")
    seen = torch.atan2(p.x[:, 1], p.x[:, 0])
    axes.plot(seen, p.y[:, 0], "o", color="black", markersize=6, label="training data")
    axes.set(xlabel="angle on the circle (radians)", ylabel="output", title=name)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8, loc="upper left")


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line; `--quick` takes narrow networks and few of them."""
    parser = parser_of(__doc__, out="ntk_predicts_network.png")
    parser.add_argument("--activation", default="tanh")
    parser.add_argument("--depth", type=int, default=2, help="dense layers, at least 2")
    parser.add_argument("--widths", type=int, nargs="+", default=[256 * 4**k for k in range(4)])
    parser.add_argument("--scales", type=float, nargs="+", default=[1.0, 0.3, 0.1], help="s")
    parser.add_argument("--seeds", type=int, default=5, help="networks of each width and s")
    parser.add_argument("--steps", type=int, default=5000, help="at most")
    args = parser.parse_args(argv)
    if args.quick:
        args.widths, args.scales, args.seeds = [256, 1024, 4096], [1.0, 0.2], 3
    args.widths = sorted(set(args.widths))
    args.scales = sorted(set(args.scales), reverse=True)
    if min(len(args.widths), args.seeds, args.depth) < 2 or args.widths[0] < 1:
        parser.error("--seeds, --depth and the number of --widths must be at least 2")
    if args.scales[-1] <= 0 or len(args.scales) < 2:
        parser.error("--scales takes at least two positive numbers")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """Predict, train, compare."""
    args = arguments(argv)
    p = problem(args)
    factors = {f"s = {s:g}": [s] * len(args.widths) for s in args.scales}
    factors["s = (m_0/m)^¼"] = scaled(args.widths, POWER, 1.0)
    results = {name: measured(p, name, own, args) for name, own in factors.items()}
    print_table(results, args.widths)
    exponents = {name: fitted(args.widths, result.errors) for name, result in results.items()}
    falling = exponents["s = (m_0/m)^¼"]
    falling["theory"] = POWER
    floor = {"measured": round(floor_exponent(results), 4), "theory": 1.0}
    numbers = {
        "main": {"exponent of m": falling["measured"], "exponent of s": floor["measured"]},
        "widths": args.widths,
        "seeds": args.seeds,
        "exponents": exponents,
        "floor": floor,
        "factors": factors,
        "errors": {name: result.errors.tolist() for name, result in results.items()},
        "size": float(p.f_ntk.square().mean().sqrt()),
    }
    save(draw(p, results, args), numbers, args.out)


if __name__ == "__main__":
    main()
