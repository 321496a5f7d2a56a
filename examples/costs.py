"""What an entry of a kernel costs, and what a whole data set would.

    python examples/costs.py
    python examples/costs.py --depth 21 --float64
    python examples/costs.py --quick

The kernel of N images has N (N + 1) / 2 different entries, and what one costs depends on the
network: a fully connected one needs an inner product and a few numbers per layer, a convolutional
one a number for each position and layer, and one with global average pooling a number for each
*pair* of positions and layer. The script measures the three on images of CIFAR-10's size, on
growing numbers of random ones (the values of pixels do not matter to the time), and extrapolates,
beside the orders of GPU-hours for CIFAR-10 in the lecture's table of current challenges.

Times are those of the processor, summed over its cores, so that other programs on the machine do
not count; hours of a core are not hours of a GPU, whose worth in cores depends on both.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from _common import COLOURS, parser_of, save
from matplotlib.figure import Figure
from torch import Tensor
from tqdm.auto import tqdm

from torch_ntk import CNTK, mlp_kernels

DATA_SETS = (100, 60_000, 1_000_000)  # the second is CIFAR-10
CIFAR10 = DATA_SETS[1]
# GPU-hours for CIFAR-10, orders of magnitude, by the lecture.
LECTURE = {"fully connected": 0.1, "CNN": 1.0, "CNN with pooling": 1000.0}
HOURS = {"an hour": 1.0, "a day": 24.0, "a year": 24 * 365.0}


@dataclass(frozen=True)
class Cost:
    """What was measured of one kind of network.

    Attributes:
        kind: In words.
        samples: Numbers of images N.
        entries: N (N + 1) / 2 of each.
        seconds: Core-seconds of each kernel, the shortest of some runs.
    """

    kind: str
    samples: list[int]
    entries: list[int]
    seconds: list[float]

    @property
    def each(self) -> float:
        """Core-seconds of an entry, of the largest kernel."""
        return self.seconds[-1] / self.entries[-1]

    @property
    def exponent(self) -> float:
        """The p of seconds ∝ entries^p, between the two largest kernels."""
        time_, entry = (values[-1] / values[-2] for values in (self.seconds, self.entries))
        return math.log(time_) / math.log(entry)

    def hours(self, samples: int) -> float:
        """Core-hours of the kernel of so many images."""
        return self.each * samples * (samples + 1) / 2 / 3600


def kernels(depth: int, dtype: torch.dtype) -> dict[str, Callable[[Tensor], Tensor]]:
    """A function of images for each kind of network."""
    return {
        "fully connected": lambda x: mlp_kernels(x, depth=depth, dtype=dtype).ntk,
        "CNN": CNTK(depth, pooling="flatten", dtype=dtype),
        "CNN with pooling": CNTK(depth, pooling="gap", dtype=dtype),
    }


def measured(
    kind: str, kernel: Callable[[Tensor], Tensor], samples: Sequence[int], side: int, repeats: int
) -> Cost:
    """Core-seconds of the kernels of so many images, after one that does not count."""
    generator = torch.Generator().manual_seed(0)
    seconds = []
    for k, n in enumerate(samples):
        x = torch.randn(n, 3, side, side, generator=generator)
        if k == 0:
            kernel(x)  # compiles
        times = []
        for _ in range(repeats):
            start = time.process_time()
            kernel(x)
            times.append(time.process_time() - start)
        seconds.append(min(times))
    return Cost(kind, list(samples), [n * (n + 1) // 2 for n in samples], seconds)


def small(seconds: float) -> str:
    """A duration in a unit that fits."""
    for unit, factor in (("s", 1.0), ("ms", 1e3), ("µs", 1e6)):
        if seconds * factor >= 1:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"


def large(hours: float) -> str:
    """Core-hours in a unit that fits."""
    if hours < 0.1:
        return small(3600 * hours)
    return f"{hours:,.2g} h" if hours < 10 else f"{hours:,.0f} h"


def print_tables(costs: Sequence[Cost]) -> None:
    """An entry, then whole data sets beside the lecture's."""
    print(f"\n{'core time':<20}{'an entry':>12}{'entries × 2: time ×':>22}")
    for cost in costs:
        print(f"{cost.kind:<20}{small(cost.each):>12}{2**cost.exponent:>22.2f}")
    print(f"\n{'core-hours':<20}" + "".join(f"{f'{n:,} images':>20}" for n in DATA_SETS))
    for cost in costs:
        print(f"{cost.kind:<20}" + "".join(f"{large(cost.hours(n)):>20}" for n in DATA_SETS))
    print(f"\n{'CIFAR-10':<20}{'here':>16}{'the lecture':>24}")
    for cost in costs:
        told = f"O({LECTURE[cost.kind]:g}) GPU-hours"
        print(f"{cost.kind:<20}{large(cost.hours(CIFAR10)):>16}{told:>24}")
    dense, cnn, pooled = (cost.each for cost in costs)
    print(
        f"\nAn entry costs {cnn / dense:,.0f} times as much with convolutions and "
        f"{pooled / dense:,.0f} times with pooling. The number of images enters\nsquared for all: "
        f"ten times as many are a hundred times the work, and a million of them take "
        f"{costs[-1].hours(DATA_SETS[-1]) / HOURS['a year']:,.0f} years of a core with pooling."
    )


def draw(costs: Sequence[Cost], title: str) -> Figure:
    """What was measured, and what follows."""
    figure = Figure(figsize=(9.6, 4.6), dpi=110, layout="constrained")
    left, right = figure.subplots(1, 2)
    for cost, colour, mark in zip(costs, COLOURS, "osD", strict=False):
        left.plot(cost.entries, cost.seconds, mark, color=colour, label=cost.kind)
        ends = [cost.entries[0], cost.entries[-1]]
        left.plot(ends, [cost.each * n for n in ends], color=colour, lw=1.2)
        words, place = f"{cost.kind}:\n{small(cost.each)} an entry", (ends[1], cost.seconds[-1])
        left.annotate(
            words, place, (0, 12), textcoords="offset points", fontsize=9, color=colour, ha="center"
        )
        sizes = [10**k for k in (1, 2, 3, 4, 5, 6, 7)]
        right.plot(sizes, [cost.hours(n) for n in sizes], color=colour, lw=2, label=cost.kind)
        right.plot(CIFAR10, LECTURE[cost.kind], "*", color=colour, ms=15, mec="black")
    right.plot([], [], "*", color="white", mec="black", ms=13, label="lecture: GPU-hours, CIFAR-10")
    for words, hours in HOURS.items():
        right.axhline(hours, color="0.6", lw=0.8, ls=":")
        right.text(12, hours * 1.15, words, fontsize=8, color="0.35")
    left.set(xlabel="entries of the kernel, N (N + 1) / 2", ylabel="core-seconds", xscale="log")
    left.set_title("Measured; lines: proportional to the entries", fontsize=11)
    right.set(xlabel="images N", ylabel="core-hours", xscale="log", ylim=(1e-9, 1e9))
    right.set_title("Extrapolated", fontsize=11)
    for axes in (left, right):
        axes.set_yscale("log")
        axes.grid(alpha=0.25)
    low, high = left.get_ylim()
    left.set(xlim=(2, 2e8), ylim=(low, 3 * high))  # room for the words
    right.legend(fontsize=8, loc="lower right")
    figure.suptitle(title, fontsize=12)
    return figure


def numbers(costs: Sequence[Cost], args: argparse.Namespace) -> dict[str, Any]:
    """What is written as JSON."""
    return {
        "main": {f"{cost.kind}, core-seconds an entry": cost.each for cost in costs},
        "settings": {"depth": args.depth, "side": args.side, "float64": args.float64},
        "costs": [
            {
                **asdict(cost),
                "exponent": cost.exponent,
                "core_hours": {f"{n}": cost.hours(n) for n in DATA_SETS},
                "lecture_gpu_hours": LECTURE[cost.kind],
            }
            for cost in costs
        ],
    }


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, extrapolate, draw."""
    parser = parser_of(__doc__, out="costs.png")
    parser.add_argument("--depth", type=int, default=11, help="of all networks")
    parser.add_argument("--side", type=int, default=32, help="of the images, of three channels")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--float64", action="store_true", help="twice the time, all the digits")
    args = parser.parse_args(argv)
    if args.depth < 2 or args.side < 1 or args.repeats < 1:
        parser.error("--depth must be at least 2, --side and --repeats at least 1")
    samples = {
        "fully connected": (400, 800, 1600, 3200),
        "CNN": (32, 64, 128, 256),
        "CNN with pooling": (4, 6, 9, 13),
    }
    if args.quick:
        samples = {kind: counts[:-1] for kind, counts in samples.items()}
        args.repeats = min(args.repeats, 2)
    dtype = torch.float64 if args.float64 else torch.float32
    bar = tqdm(kernels(args.depth, dtype).items(), unit="kind", leave=False)
    costs = []
    for kind, kernel in bar:
        bar.set_description(kind)
        costs.append(measured(kind, kernel, samples[kind], args.side, args.repeats))
    print_tables(costs)
    found = numbers(costs, args)
    word = "float64" if args.float64 else "float32"
    title = f"Kernels of depth {args.depth} on images of {args.side}×{args.side}×3, {word}"
    save(draw(costs, title), found, args.out)
    return found


if __name__ == "__main__":
    main()
