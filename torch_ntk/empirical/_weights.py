"""What is known of one weight for a block of samples: its Jacobian, or the factors of that."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .._types import Output
from ._columns import Formed, Piece, whole
from .rules import Use

Call = tuple[Use, Tensor]
"""A use and its sources, or what it `held` of them."""


@dataclass(frozen=True)
class Part:
    """One weight's factors for a block of samples, laid out by `of_jacobian` or `of_factors`.

    All are stacks of matrices whose rows run over samples before all else.

    Attributes:
        samples, outputs, positions: N, O and T.
        j: The Jacobian, as `_columns.laid` lays it out.
        a: Features `[G, N·T, a]`.
        b: Cotangents: `[G, N·O·T, b]`, `[G·O, N·T, b]` and `[G, N·T, O·b]`.
        pieces: The Jacobian in pieces of consecutive samples, in place of `j`.
        sources: For pieces of consecutive samples the calls and what they `held` of their inputs,
            in place of `a`.
        is_last: Whether the cotangents of every sample are the identity matrix.
        use: Multiplies features.
        shift: What a bias adds to products of features: one, as its features are 1 in the same
            calls and its cotangents are the same.
        between: Whether the Gram matrix of the features goes between the cotangents; see `_cost`.
    """

    samples: int
    outputs: int
    positions: int = 1
    j: Tensor | None = None
    pieces: tuple[Piece, ...] = ()
    sources: tuple[Sequence[Call], ...] = ()
    a: Tensor | None = None
    b: Tensor | None = None
    use: Use | None = None
    shift: float = 0.0
    between: bool = False
    is_last: bool = False

    @property
    def device(self) -> torch.device:
        """Where it is."""
        like = self.b if self.j is None else self.j
        return self.pieces[0].like.device if like is None else like.device

    @property
    def multiplications(self) -> float:
        """How many a product with itself takes, about."""
        if self.b is not None:  # that of the features is small beside that of the cotangents
            return float(self.b.shape[1]) * self.b.numel()
        if self.j is not None:
            return float(self.j.shape[1]) * self.j.numel()
        first = self.pieces[0]
        columns = self.outputs * first.width * first.each
        return float(self.samples) ** 2 * self.outputs * columns

    def narrow(self, start: int, stop: int) -> Part:
        """The part for the samples `start … stop`, without a copy; not of pieces or sources."""

        def rows(t: Tensor | None) -> Tensor | None:
            if t is None:
                return None
            each = t.shape[1] // self.samples
            return t[:, start * each : stop * each]

        # Of a kernel of few operations `replace` takes a tenth: it makes all fields anew.
        found = copy.copy(self)
        vars(found).update(samples=stop - start, j=rows(self.j), a=rows(self.a), b=rows(self.b))
        return found

    def whole(self, output: Output) -> Part:
        """The same with the Jacobian in one piece."""
        return replace(self, j=whole(self.pieces, output), pieces=()) if self.pieces else self

    def factors_in(self, dtype: torch.dtype) -> Part:
        """The same with features and cotangents in `dtype`, for products with several others."""
        if self.b is None:
            return self
        a = None if self.a is None else to(self.a, dtype)
        return replace(self, a=a, b=to(self.b, dtype))

    def gathered(self, dtype: torch.dtype) -> Part:
        """The same with features in place of sources."""
        a: Tensor | None = None
        start = 0
        for calls in self.sources:
            each = [use.narrowed(held, 0, use.steps) for use, held in calls]
            rows = _rows(_joined(each))
            del each
            if len(self.sources) == 1:
                a = to(rows, dtype)
                break
            if a is None:  # written piece by piece, so that all pieces never stand beside it
                length = self.samples * self.positions
                kind = dtype if rows.is_floating_point() else rows.dtype
                a = rows.new_empty(rows.shape[0], length, rows.shape[2], dtype=kind)
            a[:, start : start + rows.shape[1]] = rows
            start += rows.shape[1]
        return replace(self, a=a, sources=())

    def ready(self, dtype: torch.dtype, output: Output) -> Part:
        """For products with several others: whole, unless it is to be converted anyway."""
        is_same = bool(self.pieces) and self.pieces[0].dtype == dtype
        return self.whole(output) if is_same else self

    @staticmethod
    def joined(parts: list[Part]) -> Part:
        """Parts of consecutive blocks of samples as that of one block."""

        def cat(tensors: list[Tensor | None]) -> Tensor | None:
            present = [t for t in tensors if t is not None]
            return torch.cat(present, dim=1) if present else None

        return replace(
            parts[0],
            samples=sum(p.samples for p in parts),
            pieces=tuple(piece for p in parts for piece in p.pieces),
            sources=tuple(calls for p in parts for calls in p.sources),
            a=cat([p.a for p in parts]),
            b=cat([p.b for p in parts]),
            is_last=all(p.is_last for p in parts),
        )


def of_jacobian(*pieces: Tensor | Piece) -> Part:
    """A part from the Jacobian `[N, O, p]`, or from pieces of it."""
    found = tuple(Formed(p) if isinstance(p, Tensor) else p for p in pieces)
    return Part(sum(p.samples for p in found), found[0].outputs, pieces=found)


def of_factors(
    a: Tensor | Sequence[Call],
    b: Tensor,
    use: Use,
    output: Output,
    shift: float = 0.0,
    between: bool = False,
) -> Part:
    """A part from features `[N, G, T, a]`, or sources, and cotangents `[N, O, G, T, b]`."""
    n, o, g, t, units = b.shape
    if output == "full":
        laid = b.permute(2, 0, 1, 3, 4).reshape(g, n * o * t, units)
    elif output == "diagonal":
        laid = b.permute(2, 1, 0, 3, 4).reshape(g * o, n * t, units)
    else:  # Σ_i ⟨B[n, i, t], B[m, i, s]⟩ is one product over (i, b)
        laid = b.permute(2, 0, 3, 1, 4).reshape(g, n * t, o * units)
    is_last = g * t == 1 and units == o and bool((b.view(n, o, o) == torch.eye(o).to(b)).all())
    found = Part(n, o, t, b=laid, use=use, shift=shift, between=between, is_last=is_last)
    return replace(found, a=_rows(a)) if isinstance(a, Tensor) else replace(found, sources=(a,))


def features(calls: Sequence[Call]) -> Tensor:
    """Features `[N, G, T, a]` of the positions of all calls."""
    return _joined([use.features(source) for use, source in calls])


def _joined(each: Sequence[Tensor]) -> Tensor:
    """Features `[N, G, T, a]` of several calls as those of one."""
    return each[0] if len(each) == 1 else torch.cat(list(each), dim=2)


def _rows(a: Tensor) -> Tensor:
    """Features `[N, G, T, a]` as `[G, N·T, a]`."""
    n, g, t, width = a.shape
    return a.transpose(0, 1).reshape(g, n * t, width)


def to(t: Tensor, dtype: torch.dtype) -> Tensor:
    """Factors in `dtype`; features that are indices stay what they are."""
    return t.to(dtype) if t.is_floating_point() else t
