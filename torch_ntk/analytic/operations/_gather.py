"""Functions that copy positions to other positions, alone or side by side as channels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ._operation import Operation
from ._state import State, Variances, joined_positions


@dataclass(frozen=True)
class Gather(Operation):
    """`y(p) = x(σ(p))`, or 0: slices, flips, padding, nearest neighbours, transposed images.

    With several sources σ_t(p), whose features are the channels of y, K is the mean over them:
    `K[p, p'] ← 1/T Σ_t K[σ_t(p), σ_t(p')]`, and Θ likewise. Each entry depends on one pair of
    positions per t, so the entries with p = p' of the input give those of the result.

    Attributes:
        positions: `(P, Q)` of y.
        sources: For each t the positions of x that are read at the positions of y, row by row; -1
            reads a zero.
    """

    positions: tuple[int, int]
    sources: tuple[tuple[int, ...], ...]

    def state(self, inputs: Sequence[State], variances: Sequence[Variances | None]) -> State:
        """Read K and Θ at the sources; an added zero has a covariance and a distance of 0."""
        (s,) = inputs
        return s.each(self._read_pairs if s.full else self._read)

    def variance(self, inputs: Sequence[Tensor]) -> Tensor:
        """Return the mean of the variances at the sources."""
        return self._read(inputs[0])

    @property
    def cost(self) -> float:
        """A sum for each source."""
        return 2.0 * len(self.sources)

    def _read(self, a: Tensor) -> Tensor:
        """Return the mean over the sources of `[..., P, Q]`, the same position in both images."""
        a = F.pad(a.flatten(-2), (0, 1))
        parts = [a.index_select(-1, index) for index in self._indices(a)]
        total = sum(parts[1:], parts[0]) / len(parts)
        return total.view(*a.shape[:-1], *self.positions)

    def _read_pairs(self, a: Tensor) -> Tensor:
        """Return the mean of `[..., P, Q, P', Q']` over t, with sources σ_t in both images."""
        a = F.pad(joined_positions(a), (0, 1, 0, 1))
        parts = [a.index_select(-1, i).index_select(-2, i) for i in self._indices(a)]
        total = sum(parts[1:], parts[0]) / len(parts)
        return total.view(*a.shape[:-2], *self.positions, *self.positions)

    def _indices(self, a: Tensor) -> list[Tensor]:
        """Return the sources as indices into the positions with a zero appended at the end."""
        zero = a.shape[-1] - 1
        return [
            torch.tensor([zero if s < 0 else s for s in read], device=a.device)
            for read in self.sources
        ]

    @property
    def trivial(self) -> bool:
        """Whether the operation is the identity."""
        return self.sources == (tuple(range(math.prod(self.positions))),)
