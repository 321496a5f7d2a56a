"""Networks and their kernels by depth: CNN-V, CNTK-V, CNN-GAP, CNTK-GAP, as Arora et al. 2019.

    python examples/cntk_table.py
    python examples/cntk_table.py --quick
    python examples/cntk_table.py --dataset fashion-mnist --data-root data --size 14
    python examples/cntk_table.py --dataset cifar10 --data-root data --train 2000 --test 10000

A convolutional network of d - 1 convolutions and a dense layer on the flattened features (V) or on
their average over positions (GAP) is trained by SGD on squared error with the targets 0.9 and -0.1;
the network with infinitely many channels by its kernel, f(x) = Θ(x, X) Θ(X, X)⁻¹ Y, without a
ridge. That is the protocol of table 1 in "On exact computation with an infinitely wide neural net";
networks here are in the NTK parameterization, with few channels, and trained until they fit.

The default takes scikit-learn's digits of 8×8 pixels, which need no download, and few of them: the
numbers compare the four columns with each other, not with other people's digits. The published
table is printed beside ours on CIFAR-10 with 2,000 training images alone, where the data are the
same. There a kernel with pooling takes days of a core; `torch_ntk.scale` spreads such kernels over
machines.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from _common import COLOURS, Data, digits, parser_of, save, torchvision_images
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from torch_ntk import CNTK, NTKClassifier, NTKConv2d, NTKLinear, empirical_ntk
from torch_ntk.predict import max_learning_rate, one_hot

CLASSES = 10
MOMENTUM = 0.9
# Of the largest learning rate that is stable at the start. The kernel of a deep network with
# pooling grows so much in training that the larger one fails.
SHARES = (0.5, 0.05)
FITTED = 0.98  # of the training images, from which on a network has learned what it was shown
CHECKED = 50  # steps between looks at the loss of all training images
COLUMNS = (("CNN", "flatten"), ("CNTK", "flatten"), ("CNN", "gap"), ("CNTK", "gap"))
ENDS = {"flatten": "V", "gap": "GAP"}
# CIFAR-10, accuracy in per cent by depth: CNTK-V and CNTK-GAP with 2,000 training images, and the
# columns CNN-V, CNTK-V, CNN-GAP, CNTK-GAP with all 50,000 (Arora et al. 2019, table 1).
PUBLISHED_2K = {
    3: (40.94, 49.71),
    4: (42.54, 51.06),
    6: (43.43, 51.73),
    11: (43.42, 51.92),
    21: (42.53, 52.22),
}
PUBLISHED = {
    3: (59.97, 64.47, 63.81, 70.47),
    4: (60.20, 65.52, 80.93, 75.93),
    6: (64.11, 66.03, 83.75, 76.73),
    11: (69.48, 65.90, 82.92, 77.43),
    21: (75.57, 64.09, 83.30, 77.08),
}


@dataclass(frozen=True)
class Entry:
    """One number of the table.

    Attributes:
        kind: `"CNN"` or `"CNTK"`.
        pooling: `"flatten"` or `"gap"`.
        depth: Convolutions and the dense layer.
        accuracy: On test images.
        error: Its standard error, from the number of test images.
        fitted: Accuracy on the training images: a network that has not fitted them is unfinished.
        steps: For which a network was trained.
        seconds: It took.
    """

    kind: str
    pooling: str
    depth: int
    accuracy: float
    error: float
    fitted: float
    steps: int
    seconds: float

    @property
    def is_finished(self) -> bool:
        """Whether it has learned what it was shown."""
        return self.fitted > FITTED


def images(args: argparse.Namespace) -> Data:
    """A random choice of training and test images `[N, C, P, Q]`, standardized."""
    if args.dataset == "digits":
        data = digits(args.train, args.test, args.seed)
        shape = (-1, 1, 8, 8)
        return Data(
            data.x.reshape(shape), data.labels, data.x_test.reshape(shape), data.test_labels
        )
    pixels, labels = [], []
    for train, number in ((True, args.train), (False, args.test)):
        x, y = torchvision_images(args.dataset, args.data_root, train)
        if number > len(x):
            sys.exit(f"--train or --test asks for {number} images; {args.dataset} has {len(x)}.")
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(args.seed))
        x = x[order[:number]].double()
        if args.size is not None:
            x = F.interpolate(x, (args.size, args.size), mode="bilinear", antialias=True)
        pixels.append(x)
        labels.append(y[order[:number]])
    mean, std = pixels[0].mean((0, 2, 3), keepdim=True), pixels[0].std((0, 2, 3), keepdim=True)
    x, x_test = ((part - mean) / std for part in pixels)
    return Data(x, labels[0], x_test, labels[1])


def network(channels: int, width: int, depth: int, pooling: str, positions: int) -> nn.Module:
    """The network whose limit `CNTK(depth, pooling=pooling)` is: 3×3, ReLU, no biases."""
    layers: list[nn.Module] = []
    for i in range(depth - 1):
        given = channels if i == 0 else width
        conv = NTKConv2d(given, width, 3, padding=1, bias=False, sigma_w=math.sqrt(2.0))
        layers += [conv, nn.ReLU()]
    if pooling == "gap":
        layers.append(nn.AdaptiveAvgPool2d(1))
    features = width if pooling == "gap" else width * positions
    return nn.Sequential(*layers, nn.Flatten(), NTKLinear(features, CLASSES, bias=False))


def by_kernel(data: Data, depth: int, pooling: str) -> tuple[float, float, int]:
    """Accuracies on test and training images of kernel regression with the CNTK."""
    kernel = CNTK(depth, pooling=pooling, scaling="arora")
    model = NTKClassifier(kernel, diag_reg=0.0).fit(data.x, data.labels)
    # On the training images kernel regression without a ridge returns the targets.
    return float(model.score(data.x_test, data.test_labels.numpy())), 1.0, 0


def by_training(
    data: Data, depth: int, pooling: str, args: argparse.Namespace
) -> tuple[float, float, int]:
    """Accuracies on test and training images of a network, and in how many steps it learned.

    One that does not fit its training images is trained anew in smaller steps.
    """
    found = 0.0, 0.0, 0
    for share in SHARES:
        found = _trained(data, depth, pooling, share, args)
        if found[1] > FITTED:
            break
    return found


def _trained(
    data: Data, depth: int, pooling: str, share: float, args: argparse.Namespace
) -> tuple[float, float, int]:
    torch.manual_seed(args.seed)
    x, x_test = data.x.float(), data.x_test.float()
    net = network(x.shape[1], args.channels, depth, pooling, x[0, 0].numel())
    y = one_hot(data.labels, CLASSES, zero_centered=True)
    few = x[: min(len(x), 32)]
    theta = empirical_ntk(net, few, output="mean")
    largest = max_learning_rate(theta, reduction="mean", num_outputs=1, momentum=MOMENTUM)
    optimizer = torch.optim.SGD(net.parameters(), lr=share * largest, momentum=MOMENTUM)
    step, order = 0, torch.randperm(len(x))
    for step in range(1, args.steps + 1):
        rows, order = order[: args.batch], order[args.batch :]
        if len(order) == 0:
            order = torch.randperm(len(x))
        optimizer.zero_grad()
        loss = squared_error(net(x[rows]), y[rows])
        loss.backward()
        optimizer.step()
        if step % CHECKED == 0 and float(squared_error(outputs_of(net, x), y)) < args.until:
            break
    fitted = accuracy(outputs_of(net, x), data.labels)
    return accuracy(outputs_of(net, x_test), data.test_labels), fitted, step


def squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """½ ‖f - y‖², the mean over images."""
    return 0.5 * (outputs - targets).square().sum(1).mean()


@torch.no_grad()
def outputs_of(net: nn.Module, x: Tensor) -> Tensor:
    """Outputs `[N, 10]`, some images at a time."""
    return torch.cat([net(part) for part in x.split(500)])


def accuracy(outputs: Tensor, labels: Tensor) -> float:
    """The share of images that are classified right."""
    return float((outputs.argmax(1) == labels).double().mean())


def table_of(data: Data, args: argparse.Namespace) -> list[Entry]:
    """All columns at all depths."""
    entries = []
    jobs = [(depth, *column) for depth in args.depths for column in COLUMNS]
    bar = tqdm(jobs, unit="column", leave=False)
    for depth, kind, pooling in bar:
        bar.set_description(f"{kind}-{ENDS[pooling]}, depth {depth}")
        start = time.perf_counter()
        if kind == "CNTK":
            found, fitted, steps = by_kernel(data, depth, pooling)
        else:
            found, fitted, steps = by_training(data, depth, pooling, args)
        error = math.sqrt(max(found * (1 - found), 1 / len(data.x_test)) / len(data.x_test))
        seconds = time.perf_counter() - start
        entries.append(Entry(kind, pooling, depth, found, error, fitted, steps, seconds))
    return entries


def column(entries: Sequence[Entry], kind: str, pooling: str) -> list[Entry]:
    """Those of one column, by depth."""
    return [e for e in entries if (e.kind, e.pooling) == (kind, pooling)]


def print_table(entries: Sequence[Entry], args: argparse.Namespace) -> None:
    """Accuracies, and the published ones where the data are the same."""
    names = [f"{kind}-{ENDS[pooling]}" for kind, pooling in COLUMNS]
    same = args.dataset == "cifar10" and args.size in (None, 32)
    published = {2000: PUBLISHED_2K, 50000: PUBLISHED}.get(args.train, {}) if same else {}
    more = [f"{name} (paper)" for name in names] if published else []
    if args.train == 2000 and published:
        more = ["CNTK-V-2K", "CNTK-GAP-2K"]
    print(f"\n{'depth':<8}" + "".join(f"{n:>16}" for n in names + more))
    columns = [column(entries, *c) for c in COLUMNS]
    for row in zip(*columns, strict=True):
        cells = [f"{e.accuracy:.1%} ± {e.error:.1%}" + ("" if e.is_finished else "*") for e in row]
        cells += [f"{value:.2f}%" for value in published.get(row[0].depth, ())]
        print(f"{row[0].depth:<8}" + "".join(f"{cell:>16}" for cell in cells))
    unfinished = [e for e in entries if not e.is_finished]
    if unfinished:
        worst = min(unfinished, key=lambda e: e.fitted)
        print(
            f"* has not fitted its training images (at least {worst.fitted:.0%} right): more "
            "--steps."
        )
    if published:
        which = "two columns are" if args.train == 2000 else "four columns are"
        drawn = ", on other 2,000" if args.train == 2000 else ""
        print(f"The last {which} the published ones (Arora et al. 2019){drawn}.")
    print(
        f"\n{args.dataset}, {args.train} training and {args.test} test images"
        + (f" of {args.size}×{args.size} pixels" if args.size else "")
        + f"; networks of {args.channels} channels. ± is the standard error from the test images."
    )
    for pooling, name in ENDS.items():
        pairs = zip(column(entries, "CNTK", pooling), column(entries, "CNN", pooling), strict=True)
        ahead = [kernel.accuracy - net.accuracy for kernel, net in pairs if net.is_finished]
        if ahead:
            print(
                f"{name}: the kernel is ahead of the network at {sum(a > 0 for a in ahead)} of "
                f"{len(ahead)} depths, by {sum(ahead) / len(ahead):+.1%} on average."
            )
    if not published:
        print(
            "No published number is beside these: table 1 of the paper is on CIFAR-10,"
            " all of it or 2,000 images."
        )


def numbers(entries: Sequence[Entry], args: argparse.Namespace) -> dict[str, Any]:
    """What is written as JSON."""
    best = {
        f"best {kind}-{ENDS[pooling]}": max(e.accuracy for e in column(entries, kind, pooling))
        for kind, pooling in COLUMNS
    }
    keys = ("dataset", "train", "test", "size", "channels", "seed")
    return {
        "main": best,
        "settings": {key: getattr(args, key) for key in keys},
        "entries": [asdict(entry) for entry in entries],
    }


def draw(entries: Sequence[Entry], args: argparse.Namespace) -> Figure:
    """Accuracy against depth, a panel for each end of the network."""
    figure = Figure(figsize=(9.2, 4.2), dpi=110, layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    lowest = 100 * min(e.accuracy - e.error for e in entries)
    for axes, (pooling, name) in zip(panels, ENDS.items(), strict=True):
        for kind, colour, mark in (("CNTK", COLOURS[0], "o-"), ("CNN", COLOURS[1], "s--")):
            found = column(entries, kind, pooling)
            depths = [e.depth for e in found]
            values, errors = ([100 * getattr(e, k) for e in found] for k in ("accuracy", "error"))
            label = f"{kind}-{name}" + (f", {args.channels} channels" if kind == "CNN" else "")
            axes.errorbar(depths, values, errors, fmt=mark, color=colour, capsize=3, label=label)
            unfinished = [(e.depth, 100 * e.accuracy) for e in found if not e.is_finished]
            if unfinished:
                label = f"{kind}-{name}, training images not yet fitted"
                depths, values = zip(*unfinished, strict=True)
                open_mark = {"color": colour, "mfc": "white", "zorder": 5}
                axes.plot(depths, values, mark[0], label=label, **open_mark)
        axes.set(xlabel="depth (convolutions and the dense layer)", xscale="log")
        axes.set_xticks(args.depths, [f"{d}" for d in args.depths])
        axes.minorticks_off()
        axes.grid(alpha=0.25)
        axes.set_ylim(max(0.0, lowest - 25), 100)  # room for the legend
        axes.legend(fontsize=9, loc="lower left")
    panels[0].set_title("flattened features (V)", fontsize=11)
    panels[1].set_title("global average pooling (GAP)", fontsize=11)
    panels[0].set_ylabel("accuracy on test images, %")
    figure.suptitle(f"{args.dataset}, {args.train} training images", fontsize=12)
    return figure


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = parser_of(__doc__, out="cntk_table.png")
    sets = ("digits", "fashion-mnist", "cifar10")
    parser.add_argument("--dataset", choices=sets, default="digits")
    parser.add_argument("--data-root", type=Path, default=Path("data"))
    parser.add_argument("--size", type=int, help="side to which torchvision's images are resized")
    parser.add_argument("--depths", type=int, nargs="+", default=[3, 4, 6, 11, 21])
    parser.add_argument("--train", type=int, default=80)
    parser.add_argument("--test", type=int, default=200)
    parser.add_argument("--channels", type=int, default=32, help="of trained networks")
    parser.add_argument("--steps", type=int, default=1500, help="of SGD, at most")
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--until", type=float, default=0.01, help="loss at which training ends")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    if args.quick:
        args.depths, args.train, args.test = [3, 4, 6], min(args.train, 50), min(args.test, 60)
        args.steps = 600
    counts = (args.train, args.test, args.channels, args.steps, args.batch, args.size or 1)
    if min(counts) < 1 or min(args.depths) < 2:
        parser.error("--depths must be at least 2, all other numbers at least 1")
    args.depths = sorted(set(args.depths))
    return args


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Kernels, networks, the table, the picture."""
    args = arguments(argv)
    data = images(args)
    entries = table_of(data, args)
    print_table(entries, args)
    found = numbers(entries, args)
    save(draw(entries, args), found, args.out)
    return found


if __name__ == "__main__":
    main()
