"""Kernels that other processes import, and what they are in NumPy alone."""

from __future__ import annotations

import os
import time
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def quadratic(a: Tensor, b: Tensor) -> Tensor:
    """(a·b/d + 1)²."""
    return (a.double().flatten(1) @ b.double().flatten(1).T / a[0].numel() + 1).square()


def slow(a: Tensor, b: Tensor) -> Tensor:
    """The same, after a while; notes the call in the file `NTK_CALLS`."""
    if path := os.environ.get("NTK_CALLS"):
        with open(path, "ab") as file:
            file.write(b".")
    time.sleep(0.03)
    return quadratic(a, b)


def skew(a: Tensor, b: Tensor) -> Tensor:
    """Not symmetric in its arguments."""
    return a.double().flatten(1).sum(1)[:, None] - b.double().flatten(1).sum(1)


def oracle(x: Tensor, z: Tensor | None = None) -> NDArray[Any]:
    """`quadratic`, entry by entry."""
    a, b = x.double().flatten(1).numpy(), (x if z is None else z).double().flatten(1).numpy()
    return np.array([[(float(np.dot(u, v)) / len(u) + 1) ** 2 for v in b] for u in a])


def samples(n: int, *shape: int, seed: int = 0) -> Tensor:
    """Random samples in float32."""
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(seed))
