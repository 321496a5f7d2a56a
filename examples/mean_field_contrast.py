"""Three limits of one wide network, side by side: NNGP, NTK, mean field.

    python examples/mean_field_contrast.py
    python examples/mean_field_contrast.py --widths 64 256 1024 4096 --steps 5000
    python examples/mean_field_contrast.py --quick

A network of one hidden layer of m ReLUs, f(x) = s Σ_j a_j φ(w_j x + b_j), learns a function of one
variable from a few points. Its scale s, and what is trained, decide what it becomes for m → ∞:

- **NNGP**, s = 1/√m, nothing is trained: outputs are a Gaussian process, conditioned on the points
  by `gp_inference`. There is no dynamics.
- **NTK**, s = 1/√m, all is trained: outputs move linearly with a kernel that stays, in closed form
  (`ensemble_mse`), while each feature moves by m^-½ and stays where it was drawn.
- **Mean field**, s = 1/m, all is trained, with a learning rate in proportion to m: each feature
  moves by the same amount at every width, and the kernel with it. The limit is a flow of the
  distribution of (w, b, a), without a formula for the outputs; here it is seen in finite networks.

For each width the script trains the NTK and the mean-field network from the same weights, and
measures the movement of the kernel, of the features and of the weights, and the fit. A feature of
one variable is where its ReLU bends, x = -b/w: the picture shows where bends were and where they
have gone.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from _common import COLOURS, fitted, parser_of, save, scaled, width_axis
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn
from tqdm.auto import tqdm

from torch_ntk import NTKLinear, analytic_kernels, empirical_ntk
from torch_ntk.metrics import kernel_drift, param_drift
from torch_ntk.predict import ensemble_mse, gp_inference, max_learning_rate

GAIN = math.sqrt(2.0)
SCALINGS = ("NTK", "mean field")
COLOUR = {"NNGP": COLOURS[2], "NTK": COLOURS[0], "mean field": COLOURS[1]}
# What is measured, and the exponents of width that theory gives for NTK and mean field. In the NTK
# scaling a unit moves by m^-½, along its a_j, whose signs are independent. Θ is a mean over units.
# With a smooth activation it is one of m changes of order m^-½ with random signs, which is m^-1.
# The units here are ReLUs: of those the √m whose bend passes a point change by order 1 each, with
# random signs too, and √(√m)/m is m^-¾.
ROWS = (
    ("kernel", "‖Θ_t - Θ_0‖ / ‖Θ_0‖", (-0.75, 0.0)),
    ("features", "‖h_t - h_0‖ / ‖h_0‖", (-0.5, 0.0)),
    ("weights", "‖θ_t - θ_0‖ / ‖θ_0‖", (-0.5, 0.0)),
)


@dataclass(frozen=True)
class Task:
    """A function of one variable at a few points, and on a grid: `[N, 1]` all."""

    x: Tensor
    y: Tensor
    grid: Tensor
    truth: Tensor


@dataclass(frozen=True)
class Run:
    """One network, trained.

    Attributes:
        kernel, features, weights: Relative movements.
        loss: ½ Σ (f - y)² at the end.
        start: At the beginning.
        outputs: On the grid, `[G]`.
        bends: Where each ReLU bends, before and after, `[2, m]`.
    """

    kernel: float
    features: float
    weights: float
    loss: float
    start: float
    outputs: Tensor
    bends: Tensor


def task(points: int) -> Task:
    """A tent upward and a narrower one downward: piecewise linear, with six bends."""

    def truth(x: Tensor) -> Tensor:
        return (1.0 - 2.5 * (x - 0.35).abs()).relu() - 0.8 * (1.0 - 4.0 * (x + 0.5).abs()).relu()

    x = torch.linspace(-1, 1, points, dtype=torch.float64)[:, None]
    grid = torch.linspace(-1.4, 1.4, 281, dtype=torch.float64)[:, None]
    return Task(x, truth(x), grid, truth(grid))


def network(width: int, scaling: str) -> nn.Sequential:
    """One hidden layer; for mean field the readout is smaller by another √m."""
    readout = 1.0 if scaling == "NTK" else 1.0 / math.sqrt(width)
    return nn.Sequential(
        NTKLinear(1, width, sigma_w=GAIN, sigma_b=GAIN),
        nn.ReLU(),
        NTKLinear(width, 1, bias=False, sigma_w=GAIN * readout),
    ).double()


def bends(net: nn.Sequential) -> Tensor:
    """Where w x + b = 0, for each unit `[m]`."""
    first = net[0]
    with torch.no_grad():
        ratio: Tensor = -first.sigma_b * first.bias / (first.sigma_w * first.weight[:, 0])
    return ratio


def trained(width: int, scaling: str, seed: int, data: Task, args: argparse.Namespace) -> Run:
    """Gradient descent on ½ Σ (f - y)², at one share of the largest stable step at the start."""
    torch.manual_seed(seed)
    net = network(width, scaling)
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    theta, bent = empirical_ntk(net, data.x, output="mean"), bends(net)
    with torch.no_grad():
        hidden = net[:2](data.x)
        start = float(0.5 * (net(data.x) - data.y).square().sum())
    optimizer = torch.optim.SGD(net.parameters(), lr=args.share * max_learning_rate(theta))
    for _ in range(args.steps):
        optimizer.zero_grad()
        (0.5 * (net(data.x) - data.y).square().sum()).backward()
        optimizer.step()
    with torch.no_grad():
        moved = net[:2](data.x)
        loss = float(0.5 * (net(data.x) - data.y).square().sum())
        outputs = net(data.grid)[:, 0]
    after = dict(net.named_parameters())
    return Run(
        float(kernel_drift(empirical_ntk(net, data.x, output="mean"), theta)),
        float((moved - hidden).norm() / hidden.norm()),
        float(param_drift(after, before)),
        loss,
        start,
        outputs,
        torch.stack([bent, bends(net)]),
    )


def gaussian(data: Task, noise: float) -> tuple[Tensor, Tensor]:
    """The NNGP: mean and standard deviation on the grid, given the points."""
    net = network(8, "NTK")  # only its structure counts
    k, between = analytic_kernels(net, data.x).nngp, analytic_kernels(net, data.grid, data.x).nngp
    found = gp_inference(k, data.y, diag_reg=noise)(between, analytic_kernels(net, data.grid).nngp)
    assert found.covariance is not None
    return found.mean[:, 0], found.covariance.diagonal().clamp(min=0).sqrt()


def ensemble(data: Task, time: float) -> tuple[Tensor, Tensor]:
    """Infinitely many NTK networks at a time: mean and standard deviation on the grid."""
    net = network(8, "NTK")
    predict = ensemble_mse(analytic_kernels(net, data.x), data.y)
    between, own = analytic_kernels(net, data.grid, data.x), analytic_kernels(net, data.grid)
    found = predict(time, between, own)
    assert found.covariance is not None
    return found.mean[:, 0], found.covariance.diagonal().clamp(min=0).sqrt()


def time_of(data: Task, args: argparse.Namespace) -> float:
    """The time of the infinitely wide NTK network after so many steps at its own step size."""
    theta = analytic_kernels(network(8, "NTK"), data.x).ntk
    return args.share * max_learning_rate(theta) * args.steps


def numbers(runs: dict[str, list[list[Run]]], args: argparse.Namespace) -> dict[str, Any]:
    """Movements by scaling and width, and their exponents."""
    found: dict[str, Any] = {"widths": args.widths, "exponents": {}, "runs": {}}
    for scaling in SCALINGS:
        by_width = runs[scaling]
        found["exponents"][scaling] = {}
        for name, _, theory in ROWS:
            values = torch.tensor([[getattr(r, name) for r in row] for row in by_width]).mT
            expected = theory[SCALINGS.index(scaling)]
            found["exponents"][scaling][name] = fitted(args.widths, values, theory=expected)
        found["runs"][scaling] = [
            {
                "width": width,
                **{
                    name: sum(getattr(r, name) for r in row) / len(row)
                    for name in ("kernel", "features", "weights", "start", "loss")
                },
            }
            for width, row in zip(args.widths, by_width, strict=True)
        ]
    found["main"] = {
        f"features, {scaling}, width^": found["exponents"][scaling]["features"]["measured"]
        for scaling in SCALINGS
    } | {
        f"kernel, {scaling}, width^": found["exponents"][scaling]["kernel"]["measured"]
        for scaling in SCALINGS
    }
    return found


def print_table(found: dict[str, Any]) -> None:
    """Movements and fits, and what they say."""
    ends = found["widths"][0], found["widths"][-1]
    print(f"\n{f'width {ends[0]} → {ends[1]}':<26}{'NNGP':>8}{'NTK':>34}{'mean field':>34}")
    for name, title, _ in ROWS:
        cells = []
        for scaling in SCALINGS:
            rows, fit = found["runs"][scaling], found["exponents"][scaling][name]
            cells.append(
                f"{rows[0][name]:.2g} → {rows[-1][name]:.2g}, p = {fit['measured']:+.2f} "
                f"({fit['theory']:+g})"
            )
        print(f"{title:<26}{'0':>8}" + "".join(f"{cell:>34}" for cell in cells))
    fits = [found["runs"][scaling][-1] for scaling in SCALINGS]
    cells = [f"{row['start']:.2g} → {row['loss']:.2g}" for row in fits]
    title = f"loss, width {ends[1]}"
    print(f"{title:<26}{'–':>8}" + "".join(f"{cell:>34}" for cell in cells))
    lazy, rich = (found["runs"][scaling][-1]["features"] for scaling in SCALINGS)
    print(
        f"\np is the exponent of width^p, in brackets that of theory. At width {ends[1]} the "
        f"features of the NTK network have moved by {lazy:.1%} of their\nsize and those of the "
        f"mean-field network by {rich:.0%}: the first fits the points with the features that were "
        "drawn, the second\nwith features that it has put where they are needed."
    )


def draw(
    data: Task, runs: dict[str, list[list[Run]]], found: dict[str, Any], args: argparse.Namespace
) -> Figure:
    """The functions, the bends, and movements against the width."""
    figure = Figure(figsize=(10.2, 9.6), dpi=110, layout="constrained")
    grid = figure.subplots(3, 3)
    bands = {"NNGP": gaussian(data, 1e-6), "NTK": ensemble(data, time_of(data, args)), "": None}
    titles = ("NNGP: nothing is trained", "NTK: all layers, linearly", "Mean field: features move")
    for axes, title, (name, band) in zip(grid[0], titles, bands.items(), strict=True):
        _functions(axes, data, runs, name or "mean field", band)
        axes.set_title(title, fontsize=11)
    for axes in grid[0][1:]:
        axes.sharey(grid[0][0])
    grid[0][0].set(ylabel="outputs f(x)", ylim=(-1.75, 1.15))  # with room for the legends
    widest = {scaling: runs[scaling][-1] for scaling in SCALINGS}
    for axes, scaling in zip(grid[1], ("NNGP", *SCALINGS), strict=True):
        _bends(axes, widest[scaling if scaling in widest else "NTK"], scaling)
    grid[1][0].set_ylabel("units, per unit of x")
    for axes, (name, title, _) in zip(grid[2], ROWS, strict=True):
        for scaling in SCALINGS:
            means = [row[name] for row in found["runs"][scaling]]
            p = found["exponents"][scaling][name]["measured"]
            label = f"{scaling}: width^{p:+.2f}"
            mark = "o" if scaling == "NTK" else "s"
            axes.plot(args.widths, means, f"{mark}-", color=COLOUR[scaling], label=label)
            theory = found["exponents"][scaling][name]["theory"]
            line = scaled(args.widths, theory, means[0])
            axes.plot(args.widths, line, ":", color=COLOUR[scaling], lw=1.2)
        width_axis(axes, args.widths)
        axes.set(ylabel=title, ylim=(3e-3, 10))
        axes.legend(fontsize=8, loc="upper right")
    return figure


def _functions(
    axes: Axes,
    data: Task,
    runs: dict[str, list[list[Run]]],
    name: str,
    band: tuple[Tensor, Tensor] | None,
) -> None:
    x = data.grid[:, 0]
    axes.plot(x, data.truth[:, 0], ":", color="0.4", lw=1.2, label="the function")
    if band is not None:
        mean, std = band
        low, high = (mean - 2 * std).tolist(), (mean + 2 * std).tolist()
        axes.fill_between(x.tolist(), low, high, color=COLOUR[name], alpha=0.18, lw=0)
        axes.plot(x, mean, color=COLOUR[name], lw=2, label="infinite width, ± 2 std")
    if name in runs:
        for k, run in enumerate(runs[name][-1]):
            label = f"networks of width {run.bends.shape[1]}" if k == 0 else None
            axes.plot(x, run.outputs, "--", color="black", lw=0.9, alpha=0.8, label=label)
    axes.plot(data.x[:, 0], data.y[:, 0], "o", color="black", ms=4)
    axes.set_xlabel("x")
    axes.legend(fontsize=8, loc="lower right")


def _bends(axes: Axes, runs: Sequence[Run], name: str) -> None:
    """Histograms of where units bend, before and after training."""
    edges = torch.linspace(-1.4, 1.4, 57).tolist()
    before, after = (torch.cat([run.bends[k] for run in runs]) for k in (0, 1))
    width = edges[1] - edges[0]
    options: dict[str, Any] = {"bins": edges}
    weights = [1.0 / (len(before) * width)] * len(before)
    axes.hist(before.tolist(), weights=weights, color="0.75", label="as drawn", **options)
    if name != "NNGP":
        step = {"histtype": "step", "lw": 1.8, "color": COLOUR[name]}
        axes.hist(after.tolist(), weights=weights, label="after training", **options, **step)
    axes.set_xlabel("where a ReLU bends, x = -b/w")
    axes.set_ylim(0, 1.3 * axes.get_ylim()[1])  # room for the legend
    axes.legend(fontsize=8, loc="upper left")


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Train, measure, draw."""
    parser = parser_of(__doc__, out="mean_field_contrast.png")
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 256, 1024, 4096])
    parser.add_argument("--points", type=int, default=17)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--share", type=float, default=0.2, help="of the largest stable step")
    parser.add_argument("--seeds", type=int, default=2, help="networks of each width")
    args = parser.parse_args(argv)
    if args.quick:
        args.widths, args.steps = [64, 256, 1024], min(args.steps, 600)
    args.widths = sorted(set(args.widths))
    if min(*args.widths, args.points, args.steps, args.seeds) < 1 or len(args.widths) < 2:
        parser.error("--widths needs at least 2, all numbers must be at least 1")
    data = task(args.points)
    runs: dict[str, list[list[Run]]] = {scaling: [] for scaling in SCALINGS}
    jobs = [(width, scaling) for width in args.widths for scaling in SCALINGS]
    bar = tqdm(jobs, unit="job", leave=False)
    for width, scaling in bar:
        bar.set_description(f"{scaling}, width {width}")
        runs[scaling].append(
            [trained(width, scaling, seed, data, args) for seed in range(args.seeds)]
        )
    found = numbers(runs, args)
    print_table(found)
    save(draw(data, runs, found, args), found, args.out)
    return found


if __name__ == "__main__":
    main()
