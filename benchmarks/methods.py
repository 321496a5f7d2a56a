"""Time the methods of `empirical_ntk` against each other and the torch.func tutorial's contraction.

    python benchmarks/methods.py [--quick]

Prints a table of best times in milliseconds and writes `benchmarks/methods.json` with the
environment. Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import best, environment
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap

from torch_ntk import MLP, empirical_ntk

HERE = Path(__file__).resolve().parent


def tutorial(model: nn.Module, x: Tensor, output: str) -> Tensor:
    """The Jacobian contraction of the torch.func tutorial on neural tangent kernels."""
    params = {k: v.detach() for k, v in model.named_parameters()}

    def single(p: dict[str, Tensor], sample: Tensor) -> Tensor:
        return functional_call(model, p, (sample.unsqueeze(0),)).squeeze(0)

    jac = vmap(jacrev(single), (None, 0))(params, x)
    flat = [j.flatten(2) for j in jac.values()]
    equation = "Naf,Mbf->NMab" if output == "full" else "Naf,Maf->NM"
    total = torch.stack([torch.einsum(equation, j, j) for j in flat]).sum(0)
    return total / flat[0].shape[1] if output == "mean" else total


def cnn() -> nn.Module:
    """Three convolutions with 32 channels and a dense layer, the net of the tutorial."""
    return nn.Sequential(
        nn.Conv2d(3, 32, 3),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(21632, 10),
    )


def gap_cnn() -> nn.Module:
    """Three strided convolutions, global average pooling and a dense layer."""
    return nn.Sequential(
        nn.Conv2d(3, 64, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(64, 64, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(64, 128, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(128, 10),
    )


ROWS: list[tuple[str, Callable[[], nn.Module], tuple[int, ...], int, str, torch.dtype]] = [
    ("MLP 64-512-512-10", lambda: MLP([64, 512, 512, 10]), (64,), 64, "mean", torch.float64),
    ("MLP 784-1024³-10", lambda: MLP([784, *[1024] * 3, 10]), (784,), 64, "full", torch.float32),
    ("MLP 784-1024³-10", lambda: MLP([784, *[1024] * 3, 10]), (784,), 256, "mean", torch.float32),
    ("CNN 32-32-32", cnn, (3, 32, 32), 64, "full", torch.float32),
    ("CNN 64-64-128 GAP", gap_cnn, (3, 32, 32), 32, "full", torch.float32),
    ("CNN 64-64-128 GAP", gap_cnn, (3, 32, 32), 32, "mean", torch.float32),
]
METHODS = ("structured", "jacobian", "tutorial")
SLOW = METHODS[1:]


def fits(model: nn.Module, n: int, dtype: torch.dtype) -> bool:
    """Whether three copies of the whole Jacobian, as its contraction needs, fit in 12 GB."""
    numbers = sum(p.numel() for p in model.parameters()) * n * 10
    return 3 * numbers * (torch.finfo(dtype).bits // 8) < 12e9


def measure(quick: bool) -> list[dict[str, Any]]:
    """One dictionary a row, times by method; a method that does not fit is left out."""
    rows = []
    for name, make, shape, n, output, dtype in ROWS:
        torch.manual_seed(0)
        model, x = make().to(dtype), torch.randn(n, *shape, dtype=dtype)
        times = {}
        for method in METHODS:
            if method in SLOW and (quick or not fits(model, n, dtype)):
                continue
            if method == "tutorial":
                run = partial(tutorial, model, x, output)
            else:
                run = partial(empirical_ntk, model, x, output=output, method=method)
            times[method] = 1e3 * best(run, 2 if method in SLOW else 5)
        rows.append({"net": name, "samples": n, "output": output, "dtype": str(dtype), "ms": times})
        cells = "  ".join(f"{m} {t:9.1f}" for m, t in times.items())
        print(f"{name:<20} N={n:<4} {output:<5} {str(dtype)[6:]:<8} {cells}", flush=True)
    return rows


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="only the structured method")
    parser.add_argument("--out", type=Path, default=HERE / "methods.json")
    args = parser.parse_args()
    result = {
        "environment": environment(),
        "unit": "ms, best of several",
        "rows": measure(args.quick),
    }
    args.out.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
