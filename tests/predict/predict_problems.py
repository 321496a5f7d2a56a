"""Kernels, targets and reference values that the tests of predictions share."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

REFERENCE = Path(__file__).resolve().parents[1] / "reference" / "dynamics.npz"


@cache
def dynamics() -> dict[str, Tensor]:
    """Predictions of neural-tangents in float64, with the kernels and targets they belong to."""
    with np.load(REFERENCE, allow_pickle=False) as stored:
        return {name: torch.from_numpy(stored[name]) for name in stored.files}


@dataclass(frozen=True)
class Problem:
    """A kernel of features φ, so that train and test kernels belong together."""

    train_train: Tensor
    test_train: Tensor
    test_test: Tensor
    y: Tensor
    f0_train: Tensor
    f0_test: Tensor


def draw(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def shared(n: int = 6, m: int = 3, o: int = 2, features: int = 20, seed: int = 0) -> Problem:
    """A kernel `[N, N]` for every output alike."""
    a, b = draw(n, features, seed=seed), draw(m, features, seed=seed + 1)
    return Problem(
        a @ a.T / features,
        b @ a.T / features,
        b @ b.T / features,
        draw(n, o, seed=seed + 2),
        draw(n, o, seed=seed + 3),
        draw(m, o, seed=seed + 4),
    )


def coupled(n: int = 4, m: int = 3, o: int = 3, features: int = 40, seed: int = 0) -> Problem:
    """A kernel `[N, N, O, O]` whose outputs influence each other."""
    a, b = draw(n, o, features, seed=seed), draw(m, o, features, seed=seed + 1)

    def kernel(left: Tensor, right: Tensor) -> Tensor:
        return torch.einsum("nip,mjp->nmij", left, right) / features

    return Problem(
        kernel(a, a),
        kernel(b, a),
        kernel(b, b),
        draw(n, o, seed=seed + 2),
        draw(n, o, seed=seed + 3),
        draw(m, o, seed=seed + 4),
    )


def matrix(kernel: Tensor) -> Tensor:
    """The matrix of a full kernel, row (n, i), column (m, j), by loops."""
    n, m, o, _ = kernel.shape
    rows = [
        torch.stack([kernel[a, b, i, j] for b in range(m) for j in range(o)])
        for a in range(n)
        for i in range(o)
    ]
    return torch.stack(rows)


def kron_identity(kernel: Tensor, outputs: int) -> Tensor:
    """The full kernel of outputs that do not interact."""
    return kernel[:, :, None, None] * torch.eye(outputs, dtype=kernel.dtype)
