"""How far a network leaves its kernel and its linearization in training, against the width.

    python examples/kernel_in_training.py
    python examples/kernel_in_training.py --activations tanh relu erf --widths 64 256 1024
    python examples/kernel_in_training.py --quick

Networks of two hidden layers of width m in NTK parameterization learn some
digits by full-batch gradient descent, to a loss near 0. Over the steps t the largest is taken of

    ‖f_t - f_t^lin‖ on training and unseen digits,   ‖θ_t - θ_0‖ / √m,   ‖Θ_t - Θ_0‖_F,

where f^lin is the network linearized at its start and trained in the same steps, which is
`gradient_descent_mse` with the kernel Θ_0. Lee et al. (2019), "Wide neural networks of any depth
evolve as linear models under gradient descent", bound all three by m^-½. Only the weights
move as much. With a smooth activation the kernel moves as m^-1 (Dyer and Gur-Ari 2020,
"Asymptotics of wide networks from Feynman diagrams"), and the outputs leave f^lin by as little.

ReLU is between the two. What enters a unit moves by m^-½, so a share of m^-½ of the m units comes
to the other side of the kink, where each changes Θ by about 1/m, up or down. Of that many random
signs the sum is (m^½)^½ / m = m^-¾.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from _common import COLOURS, exponent, fitted, save, scaled, width_axis
from matplotlib.figure import Figure
from torch import Tensor
from tqdm.auto import tqdm

from torch_ntk import MLP, empirical_ntk
from torch_ntk.predict import gradient_descent_mse, max_learning_rate, one_hot

MEASURED = {
    "gap": "‖f - f^lin‖",
    "movement": "‖θ_t - θ_0‖ / √m",
    "kernel": "‖Θ_t - Θ_0‖_F",
}
FORMULAS = {
    "gap": r"largest $\Vert f_t - f_t^{\mathrm{lin}}\Vert$",
    "movement": r"largest $\Vert\theta_t - \theta_0\Vert\,/\,\sqrt{m}$",
    "kernel": r"largest $\Vert\Theta_t - \Theta_0\Vert_F$",
}
BOUND = -0.5
# The exponents that are expected: smooth activations, and those with a kink.
SMOOTH = {"gap": -1.0, "movement": -0.5, "kernel": -1.0}
KINKED = {"gap": -0.75, "movement": -0.5, "kernel": -0.75}
WITH_A_KINK = ("relu", "leaky_relu", "abs")
MOMENTS = 6


@dataclass(frozen=True)
class Data:
    """Training images `[N, 64]` with their targets `[N, 10]`, and unseen images `[M, 64]`."""

    x: Tensor
    y: Tensor
    unseen: Tensor


@dataclass(frozen=True)
class Result:
    """What networks with one activation do.

    Attributes:
        sups: By what is measured, the largest value over all steps `[seeds, widths]`.
        loss: The largest loss at the end, as a share of that at the start.
    """

    sups: dict[str, Tensor]
    loss: float


def digits(train: int, unseen: int, seed: int) -> Data:
    """A random choice of images, from which the mean image is subtracted, of length √64 each.

    Such images are far from parallel, which keeps the smallest eigenvalue of the kernel away from
    0: the theorem supposes that it is positive, and what it bounds grows with its inverse.
    """
    from sklearn.datasets import load_digits

    pixels, labels = (torch.as_tensor(part) for part in load_digits(return_X_y=True))
    pixels = pixels - pixels.mean(0)
    pixels = 8.0 * pixels / pixels.norm(dim=1, keepdim=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    x = pixels[order[: train + unseen]]
    y = one_hot(labels[order[:train]], 10, zero_centered=True)
    return Data(x[:train], y.double(), x[train:])


def network(activation: str, width: int) -> MLP:
    """Two hidden layers in NTK parameterization.

    With σ_w = 1 a smooth activation works near its linear part, and the exponents are those of
    the limit from smaller widths on. ReLU is alike at every scale.
    """
    sigma_w: Any = "gain" if activation in WITH_A_KINK else 1.0
    return MLP([64, width, width, 10], activation, sigma_w=sigma_w, dtype=torch.float64)


def moments(steps: int) -> list[int]:
    """Steps at which kernel and weights are measured: more at the start, where they move most."""
    return sorted({round(steps ** (k / (MOMENTS - 1))) for k in range(MOMENTS)})


def train(net: MLP, data: Data, steps: int) -> tuple[dict[str, float], float]:
    """Train a network and its linearization: the largest distances, and the share of loss left."""
    both = torch.cat([data.x, data.unseen])
    n, theta_0 = len(data.x), empirical_ntk(net, both)  # [N + M, N + M, 10, 10]
    start = [p.detach().clone() for p in net.parameters()]
    lr = 0.5 * max_learning_rate(theta_0[:n, :n])
    with torch.no_grad():
        f0 = net(both)
    linear = torch.cat(
        gradient_descent_mse(theta_0[:n, :n], data.y, lr)(
            torch.arange(steps + 1), f0[:n], f0[n:], theta_0[n:, :n]
        ),
        dim=1,
    )
    at, losses, largest = moments(steps), [], dict.fromkeys(MEASURED, 0.0)
    optimizer = torch.optim.SGD(net.parameters(), lr=lr)
    for step in range(steps + 1):
        f = net(both)
        found = {"gap": (f.detach() - linear[step]).norm()}
        if step in at:
            pairs = zip(net.parameters(), start, strict=True)
            moved = sum((p.detach() - q).square().sum() for p, q in pairs)
            found["movement"] = (moved / net.widths[1]).sqrt()
            found["kernel"] = (empirical_ntk(net, both) - theta_0).norm()
        largest |= {name: max(largest[name], float(value)) for name, value in found.items()}
        loss = 0.5 * (f[:n] - data.y).square().sum()
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return largest, losses[-1] / losses[0]


def measured(activation: str, data: Data, args: argparse.Namespace) -> Result:
    """Networks of all widths and seeds."""
    found: dict[str, list[list[float]]] = {name: [] for name in MEASURED}
    losses = []
    bar = tqdm(total=args.seeds * len(args.widths), desc=activation, unit="network", leave=False)
    for seed in range(args.seeds):
        rows = []
        for width in args.widths:
            torch.manual_seed(seed)
            net = network(activation, width)
            largest, loss = train(net, data, args.steps)
            rows.append(largest)
            losses.append(loss)
            bar.update()
        for name, values in found.items():
            values.append([row[name] for row in rows])
    bar.close()
    sups = {name: torch.tensor(values, dtype=torch.float64) for name, values in found.items()}
    return Result(sups, max(losses))


def expected(activation: str) -> dict[str, float]:
    """The exponents of an activation."""
    return KINKED if activation in WITH_A_KINK else SMOOTH


def print_table(results: dict[str, Result], widths: Sequence[int]) -> None:
    """Means over seeds by width, and the fitted exponents."""
    head = "".join(f"{w:>10}" for w in widths)
    print(f"{'largest over training':<24}{head}   exponent       expected, bound")
    for activation, result in results.items():
        print(activation)
        for name, title in MEASURED.items():
            values = result.sups[name]
            means = "".join(f"{v:>10.3g}" for v in values.log().mean(0).exp().tolist())
            slope, error = exponent(widths, values)
            theory = expected(activation)[name]
            print(
                f"  {title:<22}{means}   {slope:+.2f} ± {error:.2f}   {theory:+.2f}, {BOUND:+.2f}"
            )
        print(f"  (at most {result.loss:.1e} of the loss is left at the end)")
    print(
        "\nAll three fall at least as fast as the theorem's m^-½; the kernel of a smooth network, "
        "and with it\nthe gap to the linearized network, twice as fast in the exponent."
    )


def draw(results: dict[str, Result], widths: Sequence[int]) -> Figure:
    """A column for each of the three, with the bound and the sharper rate as lines."""
    figure = Figure(figsize=(11.0, 4.1), dpi=110, layout="constrained")
    for axes, name in zip(figure.subplots(1, 3), MEASURED, strict=True):
        for (activation, result), colour, marker in zip(
            results.items(), COLOURS, "os^Dv<", strict=False
        ):
            values = result.sups[name]
            middle = values.log().mean(0).exp()
            slope, error = exponent(widths, values)
            axes.fill_between(
                widths, values.min(0).values, values.max(0).values, color=colour, alpha=0.13, lw=0
            )
            axes.plot(
                widths,
                middle,
                color=colour,
                marker=marker,
                label=f"{activation}: {slope:+.2f} ± {error:.2f}",
            )
        first = [result.sups[name].log().mean(0).exp()[0] for result in results.values()]
        top, low = 1.25 * float(max(first)), 0.8 * float(min(first))
        axes.plot(
            widths, scaled(widths, BOUND, top), "--", color="0.25", label="$m^{-1/2}$, the bound"
        )
        if name != "movement":
            axes.plot(widths, scaled(widths, -1.0, low), ":", color="0.25", label="$m^{-1}$")
        width_axis(axes, widths)
        axes.set_ylim(bottom=axes.get_ylim()[0] / 2.5)  # room for the legend
        axes.set_title(FORMULAS[name], fontsize=12)
        axes.legend(fontsize=8, title="exponent of m", title_fontsize=8, loc="lower left")
    return figure


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line; `--quick` takes narrow networks."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--activations", nargs="+", default=["tanh", "relu"])
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 128, 256, 512, 1024])
    parser.add_argument("--seeds", type=int, default=8, help="networks of each width, at least 2")
    parser.add_argument("--train", type=int, default=10, help="training images")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0, help="of the data")
    parser.add_argument("--quick", action="store_true", help="a small version, in half a minute")
    parser.add_argument("--out", type=Path, default=Path("runs") / "kernel_in_training.png")
    args = parser.parse_args(argv)
    if args.quick:
        args.widths, args.seeds = [64, 128, 256, 512], 4
    args.widths = sorted(set(args.widths))
    if args.seeds < 2 or len(args.widths) < 2 or min(args.widths[0], args.train, args.steps) < 1:
        parser.error(
            "--seeds and the number of --widths must be at least 2, all other numbers at least 1"
        )
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """Train, measure, compare."""
    args = arguments(argv)
    data = digits(args.train, 6, args.seed)
    results = {activation: measured(activation, data, args) for activation in args.activations}
    print_table(results, args.widths)
    exponents = {
        activation: {
            name: fitted(args.widths, result.sups[name], expected=theory, bound=BOUND)
            for name, theory in expected(activation).items()
        }
        for activation, result in results.items()
    }
    numbers = {
        "main": {name: row["measured"] for name, row in exponents[args.activations[0]].items()},
        "widths": args.widths,
        "seeds": args.seeds,
        "exponents": exponents,
        "values": {
            activation: {name: sups.tolist() for name, sups in result.sups.items()}
            for activation, result in results.items()
        },
        "loss_left": {activation: result.loss for activation, result in results.items()},
    }
    save(draw(results, args.widths), numbers, args.out)


if __name__ == "__main__":
    main()
