"""A table of Hermite coefficients by variance, which are computed once and differentiable."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._hermite import Moments, hermite_moments

# The largest number of coefficients that a table stores (32 MB). A kernel that is computed in
# blocks uses the same variances repeatedly, and the coefficients of one take a millisecond.
_KEPT = 1 << 22


class MomentTable:
    """E[g(√q z) h_j(z)] for some functions g, stored for the variances of previous calls.

    Args:
        moments: A function that returns the values `[G, ...]` of all g at the entries of a tensor.
        kinks: The points where they or their derivatives jump.
    """

    def __init__(self, moments: Moments, kinks: Tensor) -> None:
        self._moments = moments
        self._kinks = kinks
        self._kept: tuple[Tensor, Tensor] | None = None

    def __call__(self, q: Tensor, terms: int) -> Tensor:
        """Return coefficients `[G, M, terms]` at variances q > 0 `[M]`, differentiable by q."""
        result: Tensor = _Coefficients.apply(q, self, terms)[0]
        return result

    def __getstate__(self) -> dict[str, Any]:
        """Return the state of a copy or a pickle, which does not contain stored coefficients."""
        return {**self.__dict__, "_kept": None}

    def rows(self, q: Tensor, terms: int) -> Tensor:
        """Return coefficients for distinct variances in ascending order, without derivatives."""
        # Tensors of a caller's inference mode must not be kept for later.
        with torch.inference_mode(False), torch.no_grad():
            return self._rows(q.clone(), terms)

    def _rows(self, q: Tensor, terms: int) -> Tensor:
        kept = self._kept
        if kept is None or kept[1].shape[-1] < terms or kept[0].device != q.device:
            known, table = q, hermite_moments(q, self._moments, self._kinks, terms)
        else:
            known, table = kept
            new = q[~torch.isin(q, known)]
            if len(new):
                more = hermite_moments(new, self._moments, self._kinks, table.shape[-1])
                known, order = torch.cat([known, new]).sort()
                table = torch.cat([table, more], dim=1)[:, order]
        result = table[:, torch.searchsorted(known, q), :terms]
        if table.numel() <= _KEPT:
            self._kept = known, table
        else:
            self._kept = (q, result) if result.numel() <= _KEPT else None
        return result


class _Coefficients(torch.autograd.Function):
    """Coefficients `[G, M, terms]`, whose derivatives by q do not use derivatives of g.

    For any g, also one with kinks,

        d/dq E[g(√q z) h_j(z)] = (j E[g h_j] + √((j+1)(j+2)) E[g h_{j+2}]) / (2q).
    """

    @staticmethod
    def forward(q: Tensor, table: MomentTable, terms: int) -> tuple[Tensor, Tensor]:
        # Variances are often equal: of normalized inputs, or at all positions of a periodic image.
        distinct, places = torch.unique(q, return_inverse=True)
        rows = table.rows(distinct, terms + 2)
        return rows[:, places, :-2], _derivatives_by_variance(rows, distinct)[:, places]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(inputs[0], output[1])
        ctx.table, ctx.terms = inputs[1:]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        q, derivatives = ctx.saved_tensors
        if torch.is_grad_enabled():  # the result is to be differentiated again
            derivatives = _derivatives_by_variance(ctx.table(q, ctx.terms + 2), q)
        return (gradient * derivatives).sum(dim=(0, 2)), None, None


def _derivatives_by_variance(table: Tensor, q: Tensor) -> Tensor:
    """Return the derivatives by q of coefficients `[..., M, J]` except for the last two degrees."""
    j = torch.arange(table.shape[-1] - 2, dtype=q.dtype, device=q.device)
    higher = ((j + 1) * (j + 2)).sqrt() * table[..., 2:]
    return (j * table[..., :-2] + higher) / (2 * q).unsqueeze(-1)
