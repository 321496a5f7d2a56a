"""Standard, NTK and μ parameterization side by side: what depends on the width, and how.

    python examples/parameterizations.py
    python examples/parameterizations.py --quick

One network of three layers on scikit-learn's bundled digits, at growing widths n, drawn and scaled
in three ways. Of each the script measures how the covariance K of activations, the tangent kernel
Θ, the movement of the weights, and the changes of activations and outputs after a few steps of
gradient descent depend on n, and prints the exponents p of n^p beside those that theory gives.

In standard parameterization Θ grows with n: a learning rate that is good for a narrow network is
too large for a wide one. In NTK parameterization Θ keeps its size, and neither weights nor
features move in the limit. In μP (here in the form in which all layers share one learning rate)
Θ and the changes of every layer keep their size: features are learned at every width. Steps are so
small that the widest standard network does not diverge; in such steps no kernel moves much.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from _common import parser_of, save
from torch import Tensor, nn

from torch_ntk import MLP, CoordinateCheck, coordinate_check
from torch_ntk.plotting import plot_coordinates

SIGMA_W = math.sqrt(2.0)
CLASSES = 10

# What is measured, under which key, and the exponents that theory gives.
ROWS: tuple[tuple[str, tuple[str, str], float, tuple[float, float, float]], ...] = (
    ("K of hidden layer 2", ("activation", "2"), 2.0, (0.0, 0.0, 0.0)),
    ("Θ_0", ("kernel", "Θ_0"), 1.0, (1.0, 0.0, 0.0)),
    ("‖θ_t - θ_0‖ / ‖θ_0‖", ("movement", "all parameters"), 1.0, (0.0, -1.0, -0.5)),
    ("change of hidden layer 1", ("change", "0"), 1.0, (-0.5, -0.5, 0.0)),
    ("change of hidden layer 2", ("change", "2"), 1.0, (0.5, -0.5, 0.0)),
    ("change of the outputs", ("change", "output"), 1.0, (1.0, 0.0, 0.0)),
)


class ScaledLinear(nn.Linear):
    """`scale · W x`, with `W ~ N(0, std²)` and without a bias."""

    def __init__(self, in_features: int, out_features: int, *, std: float, scale: float) -> None:
        super().__init__(in_features, out_features, bias=False)
        nn.init.normal_(self.weight, std=std)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        """A batch `[N, in_features]` to `[N, out_features]`."""
        return self.scale * super().forward(x)


def mup(n: int) -> nn.Module:
    """The maximal update parameterization, with one learning rate for all layers.

    Weights of N(0, σ²/n), times √n in the first layer and 1/√n in the last (Yang and Hu 2021,
    "Tensor Programs IV", table 1): with η the learning rate the first layer moves as if it had n η,
    and the last as if it had η / n.
    """
    root = math.sqrt(n)
    return nn.Sequential(
        ScaledLinear(64, n, std=SIGMA_W / math.sqrt(64 * n), scale=root),
        nn.ReLU(),
        ScaledLinear(n, n, std=SIGMA_W / root, scale=1.0),
        nn.ReLU(),
        ScaledLinear(n, CLASSES, std=1.0 / root, scale=1.0 / root),
    )


NETWORKS: dict[str, Callable[[int], nn.Module]] = {
    "standard": lambda n: MLP([64, n, n, CLASSES], parameterization="standard", bias=False),
    "NTK": lambda n: MLP([64, n, n, CLASSES], bias=False),
    "μP": mup,
}
EQUATIONS = {
    "layer": ("W x", "σ_w/√n W x", "W x; √n W x, W x/√n"),
    "W ~": ("N(0, σ_w²/n)", "N(0, 1)", "N(0, σ_w²/n)"),
}


def digits(samples: int) -> tuple[Tensor, Tensor]:
    """Pixels with mean 0 and variance 1, and 3 for the true class, -3 for the others.

    Targets are large beside f_0, so that what drives the training is alike in all networks.
    """
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    x = torch.as_tensor(pixels[:samples])
    y = nn.functional.one_hot(torch.as_tensor(labels[:samples]).long(), CLASSES)
    return (x - x.mean()) / x.std(), 6.0 * y.double() - 3.0


def measured(args: argparse.Namespace) -> dict[str, CoordinateCheck]:
    """One check for each parameterization."""
    x, y = digits(args.samples)
    checks = {}
    for name, network in NETWORKS.items():
        print(f"{name}: {len(args.widths)} widths, {args.seeds} networks of each")
        checks[name] = coordinate_check(
            lambda n, network=network: network(n).double(),  # type: ignore[misc]
            args.widths,
            x,
            y,
            lr=args.lr,
            steps=args.steps,
            seeds=args.seeds,
            kernel=True,
            fit_from=args.widths[len(args.widths) // 2 - 1],
            progress=True,
        )
    return checks


def table(checks: dict[str, CoordinateCheck]) -> str:
    """The comparison of the lecture, with exponents that were measured."""
    lines = ["", f"{'':<30}" + "".join(f"{name:>22}" for name in checks)]
    lines += [
        f"{n:<30}" + "".join(f"{e:>22}" for e in equation) for n, equation in EQUATIONS.items()
    ]
    lines += ["", "exponent p of n^p, measured (theory)"]
    for title, key, power, theory in ROWS:
        cells = []
        for check, expected in zip(checks.values(), theory, strict=True):
            size = check[key]
            error = power * size.standard_error
            cells.append(f"{power * size.slope:+.2f} ± {error:.2f} ({expected:+.1f})")
        lines.append(f"{title:<30}" + "".join(f"{cell:>22}" for cell in cells))
    first, *_, last = next(iter(checks.values())).widths
    lines += ["", f"from width {first} to {last}"]
    for title, key, power, _ in ROWS:
        ends = [(check[key].mean ** power).tolist() for check in checks.values()]
        cells = [f"{values[0]:.2g} → {values[-1]:.2g}" for values in ends]
        lines.append(f"{title:<30}" + "".join(f"{cell:>22}" for cell in cells))
    return "\n".join(lines)


def numbers(checks: dict[str, CoordinateCheck]) -> dict[str, Any]:
    """What is written as JSON: the exponents."""
    exponents = {
        title: {
            name: {
                "measured": round(power * check[key].slope, 4),
                "standard_error": round(power * check[key].standard_error, 4),
                "theory": expected,
            }
            for (name, check), expected in zip(checks.items(), theory, strict=True)
        }
        for title, key, power, theory in ROWS
    }
    return {"widths": next(iter(checks.values())).widths, "exponents": exponents}


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, draw."""
    parser = parser_of(__doc__, out="parameterizations.png")
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 128, 256, 512, 1024, 2048])
    parser.add_argument("--samples", type=int, default=40)
    parser.add_argument("--seeds", type=int, default=5, help="networks of each width, at least 2")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--lr", type=float, default=1e-4)
    args = parser.parse_args(argv)
    if args.quick:
        args.widths, args.samples, args.seeds = [64, 128, 256, 512, 1024], 20, 3
    if args.seeds < 2 or len(set(args.widths)) < 2 or args.samples < 1:
        parser.error("--seeds and the number of --widths must be at least 2, --samples at least 1")
    args.widths = sorted(set(args.widths))
    checks = measured(args)
    print(table(checks))
    figure, _ = plot_coordinates(checks, kinds=["kernel", "movement", "change"])
    save(figure, numbers(checks), args.out)


if __name__ == "__main__":
    main()
