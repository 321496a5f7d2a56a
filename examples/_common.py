"""What several examples share: data, fitted exponents, and files that are whole or not there."""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from torch import Tensor

# Okabe and Ito's colours, which people with any kind of colour vision can tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


def parser_of(description: str | None, *, out: str) -> argparse.ArgumentParser:
    """A parser with the options of all examples that draw: `--quick`, and `--out`, in `runs/`."""
    parser = argparse.ArgumentParser(description=(description or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a small version, in seconds")
    parser.add_argument("--out", type=Path, default=Path("runs") / out, help="the picture")
    return parser


def exponent(sizes: Sequence[float], values: Tensor) -> tuple[float, float]:
    """The p of `values ∝ sizes**p` and its standard error, by least squares in logarithms.

    Args:
        sizes: `[W]`, the widths, say.
        values: `[S, W]`, a row for each seed.

    Returns:
        The mean of the rows' slopes, and its standard error: NaN where there is one row.
    """
    x = torch.tensor(sizes, dtype=torch.float64).log()
    x = x - x.mean()
    slopes = values.double().log() @ x / (x @ x)
    error = float(slopes.std()) / math.sqrt(len(slopes)) if len(slopes) > 1 else math.nan
    return float(slopes.mean()), error


def fitted(sizes: Sequence[float], values: Tensor, **beside: float) -> dict[str, float]:
    """`exponent(sizes, values)` as it is written to files, with other numbers beside it."""
    slope, error = exponent(sizes, values)
    return {"measured": round(slope, 4), "standard_error": round(error, 4), **beside}


def scaled(sizes: Sequence[float], power: float, start: float) -> list[float]:
    """A line of slope `power` on logarithmic axes that begins at `start`."""
    return [start * (size / sizes[0]) ** power for size in sizes]


def width_axis(axes: Axes, widths: Sequence[int]) -> None:
    """Logarithmic axes, with a mark at each of the widths."""
    axes.set(xscale="log", yscale="log", xlabel="width m")
    axes.xaxis.set_major_locator(FixedLocator(list(widths)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticklabels([f"{width}" for width in widths])

    def between(y: float, _: object) -> str:
        low, high = axes.get_ylim()  # over many decades, the powers of ten are labels enough
        return f"{y:g}" if high < 100 * low and f"{y:.0e}"[0] in "25" else ""

    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    axes.yaxis.set_minor_formatter(FuncFormatter(between))
    axes.grid(alpha=0.25)


def save(figure: Figure, numbers: dict[str, Any], path: Path) -> None:
    """Write the picture to `path` and the numbers beside it, as JSON, and say so.

    Those under the key `"main"` are what a table of all examples shows.
    """
    write(path, lambda part: figure.savefig(part, format=path.suffix.lstrip(".") or "png"))
    write_json(numbers, path)
    print(f"\nThe picture is {path}, the numbers are in {path.with_suffix('.json')}")


def write_json(numbers: dict[str, Any], path: Path) -> None:
    """Write numbers beside a picture, with its name and `.json`."""
    text = json.dumps(numbers, indent=1, ensure_ascii=False) + "\n"
    write(path.with_suffix(".json"), lambda part: part.write_text(text, encoding="utf-8"))


def write(path: Path, make: Callable[[Path], object]) -> None:
    """Let `make` write a file under another name first, so that nobody finds half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}")  # of the same kind
    make(part)
    os.replace(part, path)


@dataclass(frozen=True)
class Data:
    """Samples with mean 0 and variance 1 over the training part, and their labels."""

    x: Tensor
    labels: Tensor
    x_test: Tensor
    test_labels: Tensor


def digits(train: int, test: int | None, seed: int = 0, dtype: torch.dtype = torch.float64) -> Data:
    """A random choice of scikit-learn's 1,797 digits, 64 pixels each; None tests on all others."""
    from sklearn.datasets import load_digits

    pixels, labels = (torch.as_tensor(part) for part in load_digits(return_X_y=True))
    test = len(labels) - train if test is None else test
    if train + test > len(labels):
        sys.exit(f"--train must be at most {len(labels) - test}: there are {len(labels)} digits.")
    return drawn(pixels, labels.long(), train, test, seed, dtype)


def torchvision_images(name: str, root: Path, train: bool = True) -> tuple[Tensor, Tensor]:
    """Images `[N, C, P, Q]` of Fashion-MNIST, MNIST or CIFAR-10, and their labels."""
    from torchvision import datasets

    kinds = {"fashion-mnist": "FashionMNIST", "mnist": "MNIST", "cifar10": "CIFAR10"}
    try:
        data = getattr(datasets, kinds[name])(root, train=train)
    except RuntimeError as error:
        sys.exit(f"{name} is not under --data-root {root} ({error}).")
    pixels = torch.as_tensor(data.data)
    pixels = pixels.unsqueeze(1) if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2)
    return pixels, torch.as_tensor(data.targets, dtype=torch.long)


def drawn(
    samples: Tensor,
    labels: Tensor,
    train: int,
    test: int,
    seed: int,
    dtype: torch.dtype = torch.float64,
) -> Data:
    """A random choice of samples, standardized."""
    if train + test > len(labels):
        sys.exit(f"--train and --test ask for {train + test} samples; there are {len(labels)}.")
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    order = order[: train + test]
    x, y = samples[order].to(dtype), labels[order]
    x = (x - x[:train].mean()) / x[:train].std()
    return Data(x[:train], y[:train], x[train:], y[train:])
