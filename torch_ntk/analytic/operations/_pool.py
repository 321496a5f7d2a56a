"""Averages over positions, and other separable linear maps of positions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ._operation import Operation
from ._state import State, Variances


@dataclass(frozen=True)
class Pool(Operation):
    """`y(p) = Σ_s M[p, s] x(s)` along each of the two axes of positions.

    `K[p, p'] ← Σ_{s,s'} M[p, s] M[p', s'] K[s, s']`, and Θ likewise. So the result depends on
    covariances between *different* positions.

    Attributes:
        rows: The matrix M of the first axis, `[P_out, P_in]`, float64.
        columns: The matrix M of the second axis, `[Q_out, Q_in]`, float64.
    """

    rows: Tensor
    columns: Tensor
    mixes_positions = True

    @property
    def to_one_position(self) -> bool:
        """Whether the result has one position, a sum of all with equal weights."""
        return all(
            m.shape[0] == 1 and bool(torch.all(m == m[0, 0])) for m in (self.rows, self.columns)
        )

    def wants_full(self, full: bool, several: bool) -> bool:
        """Return True, unless the input and the result have one position."""
        return several

    def state(self, inputs: Sequence[State], variances: Sequence[Variances | None]) -> State:
        """Multiply K and Θ by a matrix along each of their four axes of positions."""
        (s,) = inputs
        assert s.full
        assert not s.distance
        return s.each(self._pooled)

    def _pooled(self, a: Tensor) -> Tensor:
        if self.to_one_position:
            factor = math.prod(float(m[0, 0]) * m.shape[1] for m in (self.rows, self.columns))
            return a.mean(dim=(-4, -3, -2, -1), keepdim=True) * factor**2
        rows, columns = self.rows.to(a), self.columns.to(a)
        p, q = a.shape[-2:]
        pairs, out = a.shape[:-4], self.rows.shape[0]
        # Each product is from the left, so that no axes are transposed in memory.
        a = rows @ a.flatten(-3)
        a = columns @ a.view(*pairs, out, q, p * q)
        a = rows @ a.view(*pairs, out, self.columns.shape[0], p, q)
        return torch.matmul(a, columns.T)

    def variance(self, inputs: Sequence[Tensor]) -> Tensor:
        """Return the variance times the squared weight, for inputs of one position."""
        return inputs[0] * (float(self.rows.sum()) * float(self.columns.sum())) ** 2

    def collected(self, full: bool, positions: int) -> float | None:
        """Return the squared weight of an average over all positions."""
        if not full or not self.to_one_position:
            return None
        return float(self.rows[0, 0] * self.columns[0, 0]) ** 2

    def averages(self) -> tuple[Tensor, Tensor]:
        """Its two matrices."""
        return self.rows, self.columns

    @property
    def cost(self) -> float:
        """The cost of the four products."""
        return 4.0 * (self.rows.shape[1] + self.columns.shape[1])
