"""Weights of narrow and wide networks while they learn, as a moving picture.

    python examples/lazy_weights.py
    python examples/lazy_weights.py --widths 10 30 1000 --frames 80
    python examples/lazy_weights.py --quick

Three networks in NTK parameterization with two hidden layers of width m learn the same digits by
gradient descent. The GIF shows the matrix W between the hidden layers: all of it at width 10, and
as many of its entries where it is larger; below it what has changed since the start, in the same
colours. The narrow network must change what one sees to fit the digits, the wide one fits them
at least as well with changes that nobody sees: it has m² such weights, and each moves by 1/m.
Relative to its size W moves as m^-1 (lazy training; Chizat, Oyallon and Bach 2019). The last
frame is written as a PNG, too.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from _common import COLOURS, digits, exponent, save, write
from matplotlib.animation import FuncAnimation, PillowWriter
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from torch import Tensor
from tqdm.auto import tqdm

from torch_ntk import MLP, empirical_ntk
from torch_ntk.metrics import param_drift
from torch_ntk.predict import max_learning_rate, one_hot

Marks = list[tuple[Line2D, Tensor]]
THEORY = -1.0
SHOWN = 10
LARGEST = 2.5  # of the colours


@dataclass(frozen=True)
class Run:
    """One network at the steps of all frames.

    Attributes:
        weights: The first entries of W, `[frames, 10, 10]`, or fewer.
        movement: ‖W_t - W_0‖_F / ‖W_0‖_F, `[frames]`.
        losses: Of ½ Σ‖f - y‖², the share that is left, `[frames]`.
    """

    weights: Tensor
    movement: Tensor
    losses: Tensor


def steps_of(frames: int, steps: int) -> list[int]:
    """The steps of the frames: close to each other at the start, where most happens."""
    return sorted({round(steps * (k / (frames - 1)) ** 2) for k in range(frames)})


def trained(width: int, at: Sequence[int], args: argparse.Namespace, seed: int) -> Run:
    """Train one network in full batches."""
    data = digits(args.train, 0)
    y = 3.0 * one_hot(data.labels, 10, zero_centered=True).double()
    torch.manual_seed(seed)
    net = MLP([64, width, width, 10], "tanh", dtype=torch.float64)
    lr = 0.5 * max_learning_rate(empirical_ntk(net, data.x, output="mean"))
    optimizer = torch.optim.SGD(net.parameters(), lr=lr)
    hidden = net[2].weight
    start = hidden.detach().clone()
    weights, movement, losses = [], [], []
    for step in tqdm(range(at[-1] + 1), desc=f"width {width}", unit="step", leave=False):
        loss = 0.5 * (net(data.x) - y).square().sum()
        if step in at:
            weights.append(hidden.detach()[:SHOWN, :SHOWN].clone())
            movement.append(param_drift([hidden.detach()], [start]))
            losses.append(loss.detach())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    share = torch.stack(losses) / losses[0]
    return Run(torch.stack(weights), torch.stack(movement), share)


def animation(runs: dict[int, Run], at: Sequence[int]) -> tuple[Figure, FuncAnimation]:
    """Matrices above, their changes below, curves on the right."""
    columns = len(runs)
    figure = Figure(figsize=(2.1 * columns + 3.0, 4.9), dpi=90, layout="constrained")
    grid = figure.subplots(2, columns + 1, width_ratios=[1.0] * columns + [1.35])
    images = []
    for (width, run), above, below in zip(runs.items(), grid[0], grid[1], strict=False):
        images += [
            (_matrix(above, run.weights), run.weights),
            (_matrix(below, run.weights), run.weights - run.weights[0]),
        ]
        above.set_title(f"width {width}")
    grid[0, 0].set_ylabel("weights $W_t$")
    grid[1, 0].set_ylabel("change $W_t - W_0$")
    bar = figure.colorbar(
        images[0][0],
        ax=list(grid[:, :columns].flat),
        location="bottom",
        aspect=60,
        shrink=0.7,
        pad=0.02,
    )
    bar.set_label("entries of the matrix between the hidden layers (first 10 × 10)", fontsize=9)
    marks = _curves(runs, at, grid[0, columns], grid[1, columns])
    title = figure.suptitle("step 0", fontsize=11)

    def show(frame: int) -> list[object]:
        title.set_text(f"step {at[frame]}")
        for image, values in images:
            image.set_data(values[frame].tolist())
        for mark, curve in marks:
            mark.set_data([at[frame]], [float(curve[frame])])
        return []

    show(0)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # what is where stays as it is in the first frame
    return figure, FuncAnimation(figure, show, frames=len(at), blit=False)


def _matrix(axes: Axes, values: Tensor) -> AxesImage:
    axes.set(xticks=[], yticks=[])
    return axes.imshow(values[0].tolist(), cmap="RdBu_r", vmin=-LARGEST, vmax=LARGEST)


def _curves(runs: dict[int, Run], at: Sequence[int], above: Axes, below: Axes) -> Marks:
    """Losses and movements over the steps, and a mark on each that moves."""
    marks = []
    for (width, run), colour in zip(runs.items(), COLOURS, strict=False):
        movement = run.movement.clone()
        movement[0] = torch.nan  # 0 has no place on a logarithmic axis
        for axes, curve in ((above, run.losses), (below, movement)):
            axes.plot(at, curve, color=colour, linewidth=1.6, label=f"width {width}")
            marks.append((axes.plot([], [], "o", color=colour, markersize=6)[0], curve))
    above.set(yscale="log", title="loss / loss at the start")
    below.set(yscale="log", xlabel="step", title=r"movement $\Vert W_t - W_0\Vert/\Vert W_0\Vert$")
    for axes in (above, below):
        axes.grid(alpha=0.25)
        axes.title.set_fontsize(10)
        axes.set_xscale("symlog", linthresh=10)
    above.legend(fontsize=8, loc="lower left")
    return marks


def print_table(runs: dict[int, Run], movement: Tensor, slope: tuple[float, float]) -> None:
    """What was moved, and what it says."""
    print(f"{'width':>6} {'loss left':>10} {'movement of W':>14}")
    for (width, run), moved in zip(runs.items(), movement.log().mean(0).exp(), strict=True):
        print(f"{width:>6} {float(run.losses[-1]):>10.2g} {float(moved):>14.2%}")
    print(
        f"\nRelative to its size W moves as m^({slope[0]:.2f} ± {slope[1]:.2f}) (theory: m^-1): "
        "the wider, the lazier."
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Train, show, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--widths", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--train", type=int, default=30, help="training images")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--frames", type=int, default=30)
    parser.add_argument("--seeds", type=int, default=2, help="networks for the exponent")
    parser.add_argument("--quick", action="store_true", help="a small version, in seconds")
    parser.add_argument("--out", type=Path, default=Path("runs") / "lazy_weights.png",
                        help="of the last frame; the moving picture is beside it")  # fmt: skip
    args = parser.parse_args(argv)
    if args.quick:
        args.train, args.steps, args.frames = 15, 50, 12
    args.widths = sorted(set(args.widths))
    if len(args.widths) < 2 or min(args.widths[0], args.train, args.steps, args.seeds) < 1:
        parser.error("the number of --widths must be at least 2, all other numbers at least 1")
    if args.frames < 2:
        parser.error("--frames must be at least 2")
    at = steps_of(args.frames, args.steps)
    every = [{w: trained(w, at, args, seed) for w in args.widths} for seed in range(args.seeds)]
    runs = every[0]
    movement = torch.tensor(
        [[float(run.movement[-1]) for run in row.values()] for row in every], dtype=torch.float64
    )
    slope = exponent(args.widths, movement)
    print_table(runs, movement, slope)
    figure, moving = animation(runs, at)
    path = args.out.with_suffix(".gif")
    write(path, lambda part: moving.save(part, writer=PillowWriter(fps=8)))
    numbers = {
        "main": {"exponent": slope[0], "movement of the widest": float(movement[:, -1].mean())},
        "widths": args.widths,
        "steps": at[-1],
        "movement": movement.tolist(),
        "loss_left": [float(run.losses[-1]) for run in runs.values()],
        "exponent": {"measured": slope[0], "standard_error": slope[1], "theory": THEORY},
    }
    print(f"\nThe moving picture is {path}")
    save(figure, numbers, args.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
