"""Is my training lazy? One network at three widths and two learning rates, and what decides it.

    python examples/is_my_training_lazy.py
    python examples/is_my_training_lazy.py --quick
    python examples/is_my_training_lazy.py --dataset fashion-mnist --data-root data
    python examples/is_my_training_lazy.py --loss cross-entropy

Six trainings of a network of two hidden layers in the NTK parameterization, by SGD, each watched by
a `Monitor` in a plain loop. The learning rates are shares of the largest stable one of squared
error, 2 / λ_max of the kernel at the start, and all trainings cover the same time, learning rate
times steps: the slow ones take more steps. Curves and verdicts say which of them were lazy, and the
last lines what width and learning rate had to do with it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from _common import COLOURS, Data, digits, drawn, exponent, parser_of, save, torchvision_images
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional as F
from tqdm.auto import tqdm

from torch_ntk import MLP, empirical_ntk
from torch_ntk.monitor import Monitor
from torch_ntk.predict import max_learning_rate, one_hot

CLASSES = 10
STYLES = ("-", ":")
# Key of the history, what it is, and the thresholds of the verdict.
CURVES = (
    ("ntk/drift", "kernel drift", {"lazy below": 0.1}),
    ("ntk/kernel_distance", "kernel distance, 1 - cosine", {"feature learning above": 0.05}),
    (
        "ntk/linearization_gap",
        "linearization gap",
        {"lazy below": 0.1, "feature learning above": 0.3},
    ),
    ("ntk/alignment", "alignment with the classes", {}),
)
METRICS = ("drift", "kernel_distance", "linearization_gap", "alignment", "param_drift")


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        width: Of the two hidden layers.
        share: The learning rate over the largest stable one at the start.
        lr: The learning rate.
        history: The monitor's curves, with `"time"`, learning rate times step, and `"loss"` and
            `"accuracy"` on test images at the same steps.
        regime: The verdict's first word or two.
        verdict: All of it.
    """

    width: int
    share: float
    lr: float
    history: dict[str, list[float]]
    regime: str
    verdict: str

    def end(self, name: str) -> float:
        """The last value of a curve."""
        return self.history[name][-1]


def data_of(args: argparse.Namespace) -> Data:
    """Digits, or torchvision's Fashion-MNIST; one row of pixels per image, in float32."""
    if args.dataset == "digits":
        data = digits(args.train, args.test, args.seed)
    else:
        pixels, labels = torchvision_images(args.dataset, args.data_root)
        data = drawn(pixels.flatten(1), labels, args.train, args.test, args.seed)
    return Data(data.x.float(), data.labels, data.x_test.float(), data.test_labels)


def loss_of(name: str) -> Callable[[Tensor, Tensor], Tensor]:
    """Of outputs and labels: the mean over images, without the factor 1/C of `mse_loss`."""
    if name == "cross-entropy":
        return F.cross_entropy

    def squared(outputs: Tensor, labels: Tensor) -> Tensor:
        targets = one_hot(labels, CLASSES, zero_centered=True)
        return 0.5 * (outputs - targets).square().sum(1).mean()

    return squared


def trained(data: Data, width: int, share: float, args: argparse.Namespace) -> Run:
    """Train with the monitor beside it."""
    torch.manual_seed(args.seed)
    net, loss = MLP([data.x.shape[1], width, width, CLASSES]), loss_of(args.loss)
    probe = (data.x[: args.probe], data.labels[: args.probe])
    theta = empirical_ntk(net, data.x[: args.batch], output="mean")
    lr = share * max_learning_rate(theta, reduction="mean", num_outputs=1)
    # So many that all trainings take the time of the fastest one's --steps.
    steps = round(args.steps * max(args.shares) / share)
    at = sorted({round(steps * (k / args.points) ** 2) for k in range(args.points + 1)})
    optimizer = torch.optim.SGD(net.parameters(), lr=lr)
    monitor = Monitor(probe, metrics=METRICS, at_steps=at)
    losses, accuracies = [], []
    for step in range(steps + 1):
        if step in at:
            with torch.no_grad():
                outputs = net(data.x_test)
            losses.append(float(loss(outputs, data.test_labels)))
            accuracies.append(float((outputs.argmax(1) == data.test_labels).double().mean()))
        if step == steps:
            break
        rows = torch.randint(len(data.x), (args.batch,))
        monitor.step(net, optimizer)
        optimizer.zero_grad()
        loss(net(data.x[rows]), data.labels[rows]).backward()
        optimizer.step()
    verdict = monitor.finish(net, optimizer)
    curves = ("step", *(key for key, _, _ in CURVES), "ntk/param_drift")
    history = {key: [float(value) for value in monitor.history[key]] for key in curves}
    history |= {"time": [lr * k for k in history["step"]], "loss": losses, "accuracy": accuracies}
    return Run(width, share, lr, history, verdict.regime, str(verdict))


def numbers(runs: Sequence[Run], args: argparse.Namespace) -> dict[str, Any]:
    """What is written as JSON."""
    slopes = {}
    for share in args.shares:
        ends = [run.end("ntk/drift") for run in runs if run.share == share]
        slopes[f"{share:g}"] = exponent(args.widths, torch.tensor([ends]))[0]
    return {
        "main": {
            "lazy of the trainings": sum(run.regime == "lazy" for run in runs),
            **{f"drift at share {share}, width^": slope for share, slope in slopes.items()},
        },
        "settings": {
            key: getattr(args, key)
            for key in ("dataset", "loss", "train", "widths", "shares", "steps", "batch")
        },
        "drift_exponents": slopes,
        "runs": [vars(run) for run in runs],
    }


def print_table(runs: Sequence[Run], found: dict[str, Any], args: argparse.Namespace) -> None:
    """A line for each training, its verdict, and what was learned from all of them."""
    heads = ("drift", "distance", "gap", "weights", "accuracy")
    print(f"\n{'width':>6}{'lr / largest':>14}{'steps':>8}" + "".join(f"{h:>10}" for h in heads))
    for run in runs:
        keys = ("drift", "kernel_distance", "linearization_gap", "param_drift")
        cells = "".join(f"{run.end(f'ntk/{key}'):>10.3f}" for key in keys)
        steps = int(run.end("step"))
        print(
            f"{run.width:>6}{run.share:>14g}{steps:>8}{cells}{run.end('accuracy'):>10.1%}"
            f"  {run.regime}"
        )
    print()
    for run in runs:
        print(f"Width {run.width}, {run.share:g} of the largest learning rate: {run.verdict}.")
    print("\n" + learned(runs, found, args))


def learned(runs: Sequence[Run], found: dict[str, Any], args: argparse.Namespace) -> str:
    """What the six trainings say about width and learning rate."""
    fast, slow = max(args.shares), min(args.shares)
    by_share = {s: [run for run in runs if run.share == s] for s in (fast, slow)}
    slope = found["drift_exponents"][f"{fast:g}"]
    ends = [run.end("ntk/drift") for run in by_share[fast]]
    sentences = [
        f"Width decides: at {fast:g} of the largest learning rate the drift goes from "
        f"{ends[0]:.2f} at width {args.widths[0]} to {ends[-1]:.2f} at {args.widths[-1]}, as "
        f"width^{slope:.2f}."
    ]
    if fast != slow:
        pairs = zip(by_share[fast], by_share[slow], strict=True)
        ratios = [a.end("ntk/drift") / b.end("ntk/drift") for a, b in pairs]
        sentences.append(
            f"The learning rate does less: at {fast / slow:g} times the rate, and the same time, "
            f"the kernel ends {min(ratios):.2f} to {max(ratios):.2f} times as far away: small "
            "steps follow the same flow. Large ones turn narrow kernels: by "
            f"{by_share[fast][0].end('ntk/kernel_distance'):.2f} against "
            f"{by_share[slow][0].end('ntk/kernel_distance'):.2f} at width {args.widths[0]}."
        )
    best = max(runs, key=lambda run: run.end("accuracy"))
    sentences.append(
        f"The best test accuracy, {best.end('accuracy'):.1%}, is that of width {best.width} "
        f"({best.regime}). Lazy is not a fault: it says that the kernel at the start predicts the "
        "training."
    )
    return "\n".join(sentences)


def draw(runs: Sequence[Run], args: argparse.Namespace) -> Figure:
    """Loss, accuracy and the monitor's curves against time."""
    figure = Figure(figsize=(10.2, 6.8), dpi=110, layout="constrained")
    panels = figure.subplots(2, 3)
    drawn_curves = [
        ("loss", f"{args.loss} on test images", {}),
        ("accuracy", "accuracy on test images", {}),
        *CURVES,
    ]
    colours = dict(zip(args.widths, COLOURS, strict=False))
    styles = dict(zip(sorted(args.shares, reverse=True), STYLES, strict=False))
    for axes, (key, title, limits) in zip(panels.flat, drawn_curves, strict=True):
        for run in runs:
            label = f"width {run.width}, {run.share:g} of the largest lr: {run.regime}"
            style = {"color": colours[run.width], "ls": styles[run.share], "lw": 2}
            # Without the start, at time 0, where the kernel has not moved.
            axes.plot(run.history["time"][1:], run.history[key][1:], label=label, **style)
        for words, limit in limits.items():
            axes.axhline(limit, color="0.4", lw=0.9, ls="--")
            place = {"va": "top" if "below" in words else "bottom"}
            axes.text(0.02, limit, words, fontsize=8, color="0.3", **place,
                      transform=axes.get_yaxis_transform())  # fmt: skip
        if limits or key == "loss":
            axes.set_yscale("log")
        axes.set_title(title, fontsize=11)
        axes.set(xlabel="time: learning rate × steps", xscale="log")
        axes.grid(alpha=0.25)
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=9, frameon=False)
    figure.suptitle(f"{args.dataset}, {args.train} training images, SGD", fontsize=12)
    return figure


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = parser_of(__doc__, out="is_my_training_lazy.png")
    parser.add_argument("--dataset", choices=("digits", "fashion-mnist"), default="digits")
    parser.add_argument("--data-root", type=Path, default=Path("data"))
    parser.add_argument("--loss", choices=("squared error", "cross-entropy"),
                        default="squared error")  # fmt: skip
    parser.add_argument("--widths", type=int, nargs="+", default=[16, 128, 1024])
    parser.add_argument("--shares", type=float, nargs="+", default=[0.5, 0.1],
                        help="learning rates over the largest stable one: one or two")  # fmt: skip
    parser.add_argument("--train", type=int, default=1000)
    parser.add_argument("--test", type=int, default=500)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--probe", type=int, default=32, help="images on which Θ is measured")
    parser.add_argument("--steps", type=int, default=200, help="at the largest learning rate")
    parser.add_argument("--points", type=int, default=20, help="measurements of each training")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    if args.quick:
        args.widths, args.steps, args.points = [16, 64, 512], min(args.steps, 60), 8
        args.train, args.test = min(args.train, 300), min(args.test, 200)
    counts = (*args.widths, args.train, args.test, args.batch, args.probe, args.steps, args.points)
    if min(counts) < 1 or min(args.shares) <= 0:
        parser.error("all numbers must be at least 1, and --shares greater than 0")
    args.widths, args.shares = sorted(set(args.widths)), sorted(set(args.shares), reverse=True)
    if len(args.shares) > len(STYLES) or not 2 <= len(args.widths) <= len(COLOURS):
        parser.error(f"--shares takes one or two, --widths two to {len(COLOURS)}")
    return args


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Train, watch, judge, draw."""
    args = arguments(argv)
    data = data_of(args)
    jobs = [(width, share) for width in args.widths for share in args.shares]
    runs = []
    bar = tqdm(jobs, unit="training", leave=False)
    for width, share in bar:
        bar.set_description(f"width {width}, {share:g} of the largest lr")
        runs.append(trained(data, width, share, args))
    found = numbers(runs, args)
    print_table(runs, found, args)
    save(draw(runs, args), found, args.out)
    return found


if __name__ == "__main__":
    main()
