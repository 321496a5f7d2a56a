"""One-hot against zero-centred one-hot targets: what the choice changes, and what it does not.

    python examples/targets.py
    python examples/targets.py --quick

A class as a target of squared error is (0, …, 1, …, 0), or the same minus 1/C. The two differ by
the constant 1/C, so the training splits in two that do not meet: along the direction (1, …, 1)/√C
of the outputs one-hot targets ask for the function 1/√C, across it both ask for the same. For a
kernel that acts on every output alike, that of an infinitely wide network, the constant adds the
same to all outputs of an image: the decisions are equal, at every time, and only the loss is not.

The script follows both trainings in closed form on scikit-learn's digits; shows where the constant
lies among the eigenvectors of the kernel; and measures, for finite networks, whose full kernel
couples the outputs, how much of the constant leaks into differences between classes, and how many
decisions that changes, against the width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from _common import COLOURS, Data, digits, exponent, parser_of, save, scaled, width_axis
from matplotlib.figure import Figure
from torch import Tensor, nn
from tqdm.auto import tqdm

from torch_ntk import MLP, empirical_ntk, mlp_kernels
from torch_ntk.predict import gradient_flow_mse, max_learning_rate, one_hot

CLASSES = 10
BLUE, ORANGE, GREEN, PINK = COLOURS[:4]
KINDS = {"one-hot": False, "zero-centred": True}
EIGENVECTORS = 6  # shown


@dataclass(frozen=True)
class Infinite:
    """The infinitely wide network, trained in closed form from f = 0.

    Attributes:
        times: In units of 1/λ₁.
        loss: By kind, ½ ‖f - y‖² per training image, `[T]`.
        test_loss: The same on test images.
        accuracy: By kind, on test images, `[T]`.
        constant: Share of the constant function in each eigenvector, from the largest eigenvalue.
        classes: The same of the zero-centred targets.
        eigenvalues: Descending.
    """

    times: Tensor
    loss: dict[str, Tensor]
    test_loss: dict[str, Tensor]
    accuracy: dict[str, Tensor]
    constant: Tensor
    classes: Tensor
    eigenvalues: Tensor


@dataclass(frozen=True)
class Finite:
    """Networks of one width, by seed: `[seeds, 2]`, predicted from Θ_0, and trained.

    Attributes:
        width: Of the two hidden layers.
        leak: ‖Δ‖ / ‖f‖ of what is left, after the mean over classes is taken away, of Δ = f with
            one-hot targets - f with zero-centred ones, on test images.
        changed: Share of test images that are put into another class.
        accuracy: By kind.
    """

    width: int
    leak: Tensor
    changed: Tensor
    accuracy: dict[str, Tensor]


def per_image(outputs: Tensor, targets: Tensor) -> Tensor:
    """½ ‖f - y‖² of an image, `[..., N, C]` to `[...]`."""
    return 0.5 * (outputs - targets).square().sum(-1).mean(-1)


def right(outputs: Tensor, labels: Tensor) -> Tensor:
    """The share of right decisions, `[..., N, C]` to `[...]`."""
    return (outputs.argmax(-1) == labels).double().mean(-1)


def infinite(data: Data) -> Infinite:
    """Both trainings with the kernel of an MLP of three layers."""
    theta, between = mlp_kernels(data.x).ntk, mlp_kernels(data.x_test, data.x).ntk
    values, vectors = (part.flip(-1) for part in torch.linalg.eigh(theta))
    constant = torch.full_like(values, 1.0 / math.sqrt(len(values)))
    centred = one_hot(data.labels, CLASSES, True).to(theta)
    times = torch.logspace(-2, 5, 81, dtype=torch.float64)
    loss, test_loss, accuracy = {}, {}, {}
    for kind, zero_centred in KINDS.items():
        y, y_test = (
            one_hot(labels, CLASSES, zero_centred).to(theta)
            for labels in (data.labels, data.test_labels)
        )
        predict = gradient_flow_mse(theta, y)
        f, f_test = predict(times / values[0], k_test_train=between)
        loss[kind], test_loss[kind] = per_image(f, y), per_image(f_test, y_test)
        accuracy[kind] = right(f_test, data.test_labels)
    return Infinite(
        times,
        loss,
        test_loss,
        accuracy,
        (vectors.mT @ constant).square(),
        (vectors.mT @ centred).square().sum(1) / centred.square().sum(),
        values,
    )


def finite(data: Data, width: int, seeds: int, steps: int) -> Finite:
    """Both trainings of some networks: by Θ_0 `[N, N, C, C]`, and step by step."""
    leak, changed, accuracy = [], [], {kind: [] for kind in KINDS}
    for seed in range(seeds):
        torch.manual_seed(seed)
        net = MLP([data.x.shape[1], width, width, CLASSES]).double()
        theta = empirical_ntk(net, data.x)
        between = empirical_ntk(net, data.x_test, data.x)
        lr = 0.5 * max_learning_rate(theta)
        with torch.no_grad():
            starts = net(data.x), net(data.x_test)
        ends = {}
        for kind, zero_centred in KINDS.items():
            y = one_hot(data.labels, CLASSES, zero_centred).to(theta)
            predicted = gradient_flow_mse(theta, y)(steps * lr, *starts, between)[1]
            ends[kind] = torch.stack([predicted, trained(net, data, y, lr, steps)])
            accuracy[kind].append(right(ends[kind], data.test_labels))
        one, centred = ends.values()
        across = [f - f.mean(-1, keepdim=True) for f in (one - centred, centred)]
        leak.append(across[0].norm(dim=(1, 2)) / across[1].norm(dim=(1, 2)))
        changed.append((one.argmax(-1) != centred.argmax(-1)).double().mean(-1))
    found = {kind: torch.stack(values) for kind, values in accuracy.items()}
    return Finite(width, torch.stack(leak), torch.stack(changed), found)


def trained(net: nn.Module, data: Data, y: Tensor, lr: float, steps: int) -> Tensor:
    """Test outputs of the network after gradient descent on ½ Σ‖f - y‖², which is then undone."""
    start = {name: value.clone() for name, value in net.state_dict().items()}
    optimizer = torch.optim.SGD(net.parameters(), lr=lr)
    for _ in range(steps):
        optimizer.zero_grad()
        (0.5 * (net(data.x) - y).square().sum()).backward()
        optimizer.step()
    with torch.no_grad():
        outputs = net(data.x_test)
    net.load_state_dict(start)
    return outputs


def numbers(wide: Infinite, networks: Sequence[Finite]) -> dict[str, Any]:
    """What is written as JSON."""
    one, centred = (wide.accuracy[kind] for kind in KINDS)
    gap = wide.loss["one-hot"] - wide.loss["zero-centred"]
    widths = [n.width for n in networks]
    leaks = torch.stack([n.leak for n in networks], 1)  # [seeds, widths, 2]
    slopes = [exponent(widths, leaks[:, :, way])[0] for way in (0, 1)]
    return {
        "main": {
            "largest difference of accuracies, infinite width": float((one - centred).abs().max()),
            "constant in the first eigenvector": float(wide.constant[0]),
            "classes in the first eigenvector": float(wide.classes[0]),
            "slope of the leak, predicted": round(slopes[0], 3),
            "slope of the leak, trained": round(slopes[1], 3),
        },
        "times": wide.times.tolist(),
        "accuracy": {kind: values.tolist() for kind, values in wide.accuracy.items()},
        "loss": {kind: values.tolist() for kind, values in wide.loss.items()},
        "test_loss": {kind: values.tolist() for kind, values in wide.test_loss.items()},
        "loss of the constant": gap.tolist(),
        "eigenvalues": wide.eigenvalues[:EIGENVECTORS].tolist(),
        "constant": wide.constant[:EIGENVECTORS].tolist(),
        "classes": wide.classes[:EIGENVECTORS].tolist(),
        "finite": [
            {
                "width": n.width,
                **{
                    way: {
                        "leak": float(n.leak[:, i].mean()),
                        "changed": float(n.changed[:, i].mean()),
                        "accuracy": {k: float(a[:, i].mean()) for k, a in n.accuracy.items()},
                    }
                    for i, way in enumerate(("predicted", "trained"))
                },
            }
            for n in networks
        ],
    }


def print_tables(wide: Infinite, networks: Sequence[Finite], found: dict[str, Any]) -> None:
    """Infinite width by time, then finite networks by width, then what it says."""
    print(f"\n{'infinite width':<16}{'loss on training images':>32}{'test accuracy':>28}")
    print(f"{'time · λ₁':<16}" + f"{'one-hot':>14}{'zero-centred':>18}" * 2)
    for i in range(0, len(wide.times), (len(wide.times) - 1) // 5):
        losses = "".join(f"{wide.loss[k][i]:>{w}.4f}" for k, w in zip(KINDS, (14, 18), strict=True))
        shares = "".join(
            f"{wide.accuracy[k][i]:>{w}.1%}" for k, w in zip(KINDS, (14, 18), strict=True)
        )
        print(f"{wide.times[i]:<16.3g}{losses}{shares}")
    print(f"\n{'finite networks':<16}{'predicted from Θ_0':>24}{'trained':>24}{'accuracy':>24}")
    print(
        f"{'width':<16}" + f"{'leak':>12}{'other class':>12}" * 2 + f"{'one-hot':>10}  zero-centred"
    )
    for n in networks:
        cells = [f"{n.leak[:, i].mean():>12.2%}{n.changed[:, i].mean():>12.2%}" for i in (0, 1)]
        one, centred = (n.accuracy[kind][:, 1].mean() for kind in KINDS)
        print(f"{n.width:<16}" + "".join(cells) + f"{one:>10.1%}{centred:>14.1%}")
    main = found["main"]
    print(
        f"\nThe first eigenvector holds {wide.constant[0]:.1%} of the constant and "
        f"{wide.classes[0]:.1%} of the classes, and its eigenvalue is "
        f"{wide.eigenvalues[0] / wide.eigenvalues[1]:.1f} times the next:\none-hot targets spend "
        "the beginning of a training on a constant that decides nothing. At infinite width the\n"
        "accuracies differ by "
        f"{main['largest difference of accuracies, infinite width']:.1%} at most; in finite "
        "networks the constant leaks into the classes,\npredicted from Θ_0 as width^"
        f"{main['slope of the leak, predicted']:.2f} (theory: -½) and trained as width^"
        f"{main['slope of the leak, trained']:.2f}, since narrow ones change their kernel as well."
    )


def draw(wide: Infinite, networks: Sequence[Finite], found: dict[str, Any]) -> Figure:
    """Accuracy and loss over time, the eigenvectors, and finite networks."""
    figure = Figure(figsize=(9.6, 6.8), dpi=110, layout="constrained")
    (top, loss), (bars, widths) = figure.subplots(2, 2)
    for kind, colour, style, width in (
        ("one-hot", ORANGE, "-", 5.0),
        ("zero-centred", BLUE, "--", 1.8),
    ):
        top.plot(wide.times, wide.accuracy[kind], style, color=colour, linewidth=width, label=kind)
        loss.plot(wide.times, wide.loss[kind], color=colour, label=kind, linewidth=2)
    gap = wide.loss["one-hot"] - wide.loss["zero-centred"]
    loss.plot(wide.times, gap, ":", color="black", linewidth=2, label="difference: the constant")
    top.set_title("Infinite width: the decisions are the same", fontsize=11)
    top.set(ylabel="accuracy on test images", ylim=(0, 1))
    loss.set_title("The loss is not, until the constant is learned", fontsize=11)
    loss.set(ylabel="½ ‖f - y‖² per training image", ylim=(0, None))
    for axes in (top, loss):
        axes.set(xlabel="time, in units of 1/λ₁", xscale="log")
        axes.legend(fontsize=9)
    places = range(1, EIGENVECTORS + 1)
    for shift, name, shares, colour in (
        (-0.2, "the constant function", wide.constant, "black"),
        (0.2, "zero-centred classes", wide.classes, BLUE),
    ):
        heights = shares[:EIGENVECTORS].tolist()
        bars.bar([k + shift for k in places], heights, 0.38, color=colour, label=name)
    bars.set_title("Where the constant lies: in the fastest direction", fontsize=11)
    bars.set(ylabel="share in the eigenvector", ylim=(0, 1.05))
    names = [f"{k}\n{v:.0f}" for k, v in zip(places, wide.eigenvalues, strict=False)]
    bars.set_xticks(places, names)
    bars.set_xlabel("eigenvector of Θ, and its eigenvalue")
    bars.legend(fontsize=9)
    sizes = [n.width for n in networks]
    for i, (way, mark) in enumerate((("predicted from Θ_0", "o--"), ("trained", "s-"))):
        for name, values, colour in (
            ("leak", [n.leak for n in networks], GREEN),
            ("other class", [n.changed for n in networks], PINK),
        ):
            means = [float(v[:, i].mean()) or math.nan for v in values]  # 0 has no logarithm
            fill = colour if i else "white"
            label = f"{name}, {way}"
            widths.plot(sizes, means, mark, color=colour, mfc=fill, label=label)
    first = float(networks[0].leak[:, 0].mean())
    widths.plot(sizes, scaled(sizes, -0.5, first), color="0.45", lw=1, label="width^-½")
    widths.set_title("Finite networks: classes are coupled", fontsize=11)
    width_axis(widths, sizes)
    widths.set(xlabel="width of the hidden layers", ylabel="share of the outputs, or of the images")
    low, high = widths.get_ylim()
    widths.set_ylim(low, 8 * high)  # room for the legend
    widths.legend(fontsize=8, ncols=2)
    return figure


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print, draw."""
    parser = parser_of(__doc__, out="targets.png")
    parser.add_argument("--train", type=int, default=400, help="images for infinite width")
    parser.add_argument("--few", type=int, default=60, help="images for finite networks")
    parser.add_argument("--test", type=int, default=200)
    parser.add_argument("--widths", type=int, nargs="+", default=[16, 64, 256, 1024])
    parser.add_argument("--seeds", type=int, default=3, help="networks of each width")
    parser.add_argument("--steps", type=int, default=300, help="of the finite networks")
    args = parser.parse_args(argv)
    if args.quick:
        args.train, args.few, args.widths, args.seeds = 200, 30, [16, 64, 256], 4
        args.test, args.steps = 200, 150
    if min(args.train, args.few, args.test, *args.widths, args.seeds, args.steps) < 1:
        parser.error("all numbers must be at least 1")
    args.widths = sorted(set(args.widths))
    if len(args.widths) < 2:
        parser.error("--widths needs at least 2 for a slope")
    wide, few = infinite(digits(args.train, args.test)), digits(args.few, args.test)
    bar = tqdm(args.widths, desc="finite networks", unit="width", leave=False)
    networks = [finite(few, width, args.seeds, args.steps) for width in bar]
    found = numbers(wide, networks)
    print_tables(wide, networks, found)
    save(draw(wide, networks, found), found, args.out)
    return found


if __name__ == "__main__":
    main()
