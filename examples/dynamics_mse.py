"""Predict a training on squared error from the kernel at its start, and draw it over the real one.

    python examples/dynamics_mse.py
    python examples/dynamics_mse.py --momentum 0.9 --lr 0.2
    python examples/dynamics_mse.py --widths 64 512 4096 --steps 500
    python examples/dynamics_mse.py --quick

Two networks in the NTK parameterization, a narrow and a wide one, are trained in full batches on
scikit-learn's bundled digits. Before the first step, the kernel Θ_0 already says how: the loss
curve and the outputs on test images follow from its eigenmodes, step by step. The wide network
does what was predicted; the narrow one learns features and leaves the prediction.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from _common import Data, digits, parser_of, save
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from torch_ntk import MLP
from torch_ntk.forecasting import Forecast, forecast
from torch_ntk.plotting import plot_forecast, plot_trajectories
from torch_ntk.predict import one_hot

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Run:
    """One network: what was predicted and what happened."""

    width: int
    predicted: Forecast
    losses: Tensor
    outputs: Tensor

    @property
    def off(self) -> float:
        """How far the predicted test outputs are from the real ones, relative to these."""
        outputs = self.outputs.double()
        return float((outputs - _test_outputs(self)).norm() / outputs.norm())


def network(width: int, seed: int) -> nn.Module:
    """Two hidden layers in the NTK parameterization."""
    torch.manual_seed(seed)
    return MLP([64, width, width, 10])


def trained(
    net: nn.Module, loss: Loss, data: Data, y: Tensor, args: argparse.Namespace
) -> tuple[Tensor, Tensor]:
    """Train in full batches: the losses `[T]` and test outputs `[T, M, 10]` at steps 0 … T-1."""
    optimizer = torch.optim.SGD(net.parameters(), lr=args.lr, momentum=args.momentum)
    losses, outputs = [], []
    for step in tqdm(range(args.steps + 1), desc="training", unit="step", leave=False):
        value = loss(net(data.x), y)
        losses.append(value.detach())
        with torch.no_grad():
            outputs.append(net(data.x_test))
        if step < args.steps:
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
    return torch.stack(losses), torch.stack(outputs)


def compare(loss: Loss, data: Data, y: Tensor, args: argparse.Namespace) -> list[Run]:
    """Predict, then train, for each width."""
    runs = []
    for width in args.widths:
        net, started = network(width, args.seed), time.perf_counter()
        predicted = forecast(
            net,
            data.x,
            y,
            loss=loss,
            lr=args.lr,
            steps=list(range(args.steps + 1)),
            x_test=data.x_test,
            momentum=args.momentum,
            progress=True,
        )
        between = time.perf_counter()
        print(f"width {width}: {predicted}")
        losses, outputs = trained(net, loss, data, y, args)
        ended = time.perf_counter()
        print(f"  predicted in {between - started:.1f} s, trained in {ended - between:.1f} s")
        runs.append(Run(width, predicted, losses, outputs))
    return runs


def print_table(runs: Sequence[Run], steps: int) -> None:
    """Predicted and actual losses at a few steps."""
    print(f"\n{'':>6}" + "".join(f"   {f'width {run.width}':^21}" for run in runs))
    print(f"{'step':>6}" + f"   {'predicted':>10} {'actual':>10}" * len(runs))
    for step in sorted({0, 1, *(round(steps * part) for part in (0.02, 0.1, 0.25, 0.5, 1.0))}):
        pairs = ((float(run.predicted.loss[step]), float(run.losses[step])) for run in runs)
        print(f"{step:>6}" + "".join(f"   {a:>10.4g} {b:>10.4g}" for a, b in pairs))
    for run in runs:
        print(f"width {run.width}: test outputs are off by {run.off:.1%}")


def numbers(runs: Sequence[Run]) -> dict[str, Any]:
    """What is written as JSON."""
    return {
        "main": {f"width {run.width}, test outputs off by": run.off for run in runs},
        "runs": [
            {
                "width": run.width,
                "predicted": run.predicted.loss.tolist(),
                "losses": run.losses.tolist(),
            }
            for run in runs
        ],
    }


def draw(runs: Sequence[Run], data: Data, title: str, path: Path) -> None:
    """Losses above, the outputs for one test image below, a column for each width."""
    figure = Figure(figsize=(4.6 * len(runs), 6.8), dpi=110, layout="constrained")
    grid = figure.subplots(2, len(runs), sharex=True, sharey="row", squeeze=False)
    for run, above, below in zip(runs, *grid, strict=True):
        name = f"width {run.width}: largest stable lr {run.predicted.max_lr:.2g}"
        plot_forecast(run.predicted, run.losses, title=name, ax=above)
        above.set_xlabel("")
        _draw_outputs(run, data, below)
    for row in grid:
        for axes in row[1:]:
            axes.set_ylabel("")
    figure.suptitle(title, fontsize=11)
    save(figure, numbers(runs), path)


def _draw_outputs(run: Run, data: Data, axes: Axes) -> None:
    """The true class of the first test image, and the two others that end highest."""
    true = int(data.test_labels[0])
    ranked = run.outputs[-1, 0].argsort(descending=True).tolist()
    classes = [true, *(k for k in ranked if k != true)][:3]
    names = [f"class {k}" + (" (the true one)" if k == true else "") for k in classes]
    plot_trajectories(
        run.predicted.steps,
        run.outputs[:, 0, classes],
        labels=names,
        xlabel="optimizer step",
        ylabel="outputs for a test image",
        ax=axes,
    )
    for line, output in zip(list(axes.lines), classes, strict=True):
        line.set(linewidth=2.6, alpha=0.45)
        predicted = _test_outputs(run)[:, 0, output]
        axes.plot(run.predicted.steps, predicted, "--", color=line.get_color(), linewidth=1.5)
    axes.plot([], [], "--", color="0.3", linewidth=1.5, label="predicted from Θ_0")
    axes.legend(fontsize=8)


def _test_outputs(run: Run) -> Tensor:
    assert run.predicted.test_outputs is not None
    return run.predicted.test_outputs


def arguments(
    description: str | None, *, lr: float, steps: int, out: str, argv: Sequence[str] | None
) -> argparse.Namespace:
    """The command line; `--quick` takes little data, small networks and few steps."""
    parser = parser_of(description, out=out)
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 2048])
    parser.add_argument("--train", type=int, default=100, help="training images")
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--lr", type=float, default=lr)
    parser.add_argument("--momentum", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    if args.quick:
        args.widths, args.train, args.steps = [16, 256], min(args.train, 24), min(args.steps, 60)
    if min(*args.widths, args.train, args.steps) < 1:
        parser.error("--widths, --train and --steps must be at least 1")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """Predict, train, compare."""
    args = arguments(__doc__, lr=1.0, steps=300, out="dynamics_mse.png", argv=argv)
    data = digits(args.train, 8, args.seed, torch.float32)
    targets = one_hot(data.labels, 10, zero_centered=True)
    runs = compare(F.mse_loss, data, targets.float(), args)
    print_table(runs, args.steps)
    draw(runs, data, f"Squared error, {args.train} digits, lr {args.lr:g}", args.out)


if __name__ == "__main__":
    main()
