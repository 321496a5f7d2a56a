"""The factors of one weight for a block of samples: its Jacobian, or features and cotangents."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from ..._types import Output
from .._recorder import decided
from ..rules import Use
from ._jacobian_pieces import Formed, Piece, whole

F = TypeVar("F", bound="Factor")

Call = tuple[Use, Tensor]
"""A use, and its stacked sources or what is `held` of them."""

# Jacobians with at most so many columns are joined before they are contracted.
SMALL = 4096


class Factor(ABC):
    """The factors of one weight for a block of samples.

    They are stacks of matrices; the sample is the slowest index of the rows.

    Attributes:
        samples, outputs, positions: N, O and T.
    """

    samples: int
    outputs: int
    positions: int

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """The device of the factors."""

    @property
    @abstractmethod
    def multiplications(self) -> float:
        """The approximate number of multiplications of a product with itself."""

    @property
    @abstractmethod
    def passes(self) -> bool:
        """Whether features or columns are made when they are multiplied, and are not stored."""

    @abstractmethod
    def narrow(self, start: int, stop: int) -> Factor:
        """Return the factor for the samples `start … stop`, without a copy.

        It cannot be called if the factor `passes`.
        """

    @abstractmethod
    def kept(self, dtype: torch.dtype, output: Output, alone: bool) -> Factor:
        """Return the factor prepared for products in `dtype`; with `alone`, for only one."""

    @abstractmethod
    def followed_by(self: F, parts: Sequence[Factor]) -> F:
        """Return the factor of this block of samples followed by the blocks of `parts`."""


Factors = dict[tuple[str, str], Factor]
"""The factors of a block of samples, by the key of a kernel's part and the parameter's name."""


@dataclass(frozen=True)
class JacobianFactor(Factor):
    """The Jacobian of a weight, whole or in pieces.

    Attributes:
        samples, outputs: N and O.
        pieces: The Jacobian in pieces of consecutive samples; empty if there is `j`.
        j: The whole Jacobian in the layout of `_jacobian_pieces.laid`.
    """

    samples: int
    outputs: int
    pieces: tuple[Piece, ...] = ()
    j: Tensor | None = None
    positions: int = 1

    @staticmethod
    def of(*pieces: Tensor | Piece) -> JacobianFactor:
        """Return the factor for a Jacobian `[N, O, p]`, or for pieces of it."""
        found = tuple(Formed(p) if isinstance(p, Tensor) else p for p in pieces)
        return JacobianFactor(sum(p.samples for p in found), found[0].outputs, found)

    @property
    def device(self) -> torch.device:
        """The device of the Jacobian."""
        return self.pieces[0].like.device if self.j is None else self.j.device

    @property
    def multiplications(self) -> float:
        """The approximate number of multiplications of a product with itself."""
        if self.j is not None:
            return float(self.j.shape[1]) * self.j.numel()
        first = self.pieces[0]
        return float(self.samples) ** 2 * self.outputs**2 * first.width * first.each

    @property
    def passes(self) -> bool:
        """Whether the Jacobian is in pieces, whose columns are made block by block."""
        return bool(self.pieces)

    def whole(self, output: Output) -> Tensor:
        """Return the Jacobian in one piece, in the layout of `_jacobian_pieces.laid`."""
        return whole(self.pieces, output) if self.j is None else self.j

    def narrow(self, start: int, stop: int) -> JacobianFactor:
        """Return the rows of these samples."""
        assert self.j is not None
        return replace(self, samples=stop - start, j=_rows_of(self.j, self.samples, start, stop))

    def kept(self, dtype: torch.dtype, output: Output, alone: bool) -> JacobianFactor:
        """Return it in one piece, unless it is multiplied once or must be converted."""
        if not alone and self.pieces and self.pieces[0].dtype == dtype:
            return replace(self, j=whole(self.pieces, output), pieces=())
        return self

    def followed_by(self, parts: Sequence[Factor]) -> JacobianFactor:
        """Return the pieces of all blocks."""
        every = [self, *(p for p in parts if isinstance(p, JacobianFactor))]
        pieces = tuple(piece for p in every for piece in p.pieces)
        return replace(self, samples=sum(p.samples for p in every), pieces=pieces)


@dataclass(frozen=True)
class GramFactor(Factor):
    """The features and cotangents of a weight, which are contracted by their Gram matrices.

    Attributes:
        samples, outputs, positions: N, O and T.
        b: The cotangents: `[G, N·O·T, b]` for "full", `[G·O, N·T, b]` for "diagonal", and
            `[G, N·T, O·b]` if the outputs are summed.
        use: A use, which computes Gram matrices of features.
        a: The features `[G, N·T, a]`; None if there are `sources`.
        sources: For each piece of consecutive samples, the calls and what is `held` of their
            inputs.
        scale: The P of the weight, by which products of features are multiplied.
        shift: The P of a bias, which is added to them: in the same calls the bias has features of 1
            and the same cotangents.
        between: Whether the Gram matrix of the features multiplies the cotangents of one side
            first; see `_cost`.
        is_last: Whether the cotangents of every sample are the identity matrix.
        p: P for the entries of the weight `[G, b, a]` if it is not constant; see `_through_p`.
    """

    samples: int
    outputs: int
    positions: int
    b: Tensor
    use: Use
    a: Tensor | None = None
    sources: tuple[Sequence[Call], ...] = ()
    scale: float = 1.0
    shift: float = 0.0
    between: bool = False
    is_last: bool = False
    p: Tensor | None = None

    @staticmethod
    def of(
        a: Tensor | Sequence[Call],
        b: Tensor,
        use: Use,
        output: Output,
        scale: float = 1.0,
        shift: float = 0.0,
        between: bool = False,
    ) -> GramFactor:
        """Return the factor for features `[N, G, T, a]`, or sources, and B `[N, O, G, T, b]`."""
        n, o, g, t, units = b.shape
        if output == "full":
            laid = b.permute(2, 0, 1, 3, 4).reshape(g, n * o * t, units)
        elif output == "diagonal":
            laid = b.permute(2, 1, 0, 3, 4).reshape(g * o, n * t, units)
        else:  # Σ_i ⟨B[n, i, t], B[m, i, s]⟩ is a single product over (i, b)
            laid = b.permute(2, 0, 3, 1, 4).reshape(g, n * t, o * units)
        # Cotangents that will be differentiated may be the identity only at these parameters.
        is_last = g * t == 1 and units == o and not b.requires_grad
        if is_last:
            identity = torch.eye(o, dtype=b.dtype, device=b.device)
            is_last = decided((b.view(n, o, o) == identity).all())
        found = GramFactor(n, o, t, laid, use, None, (), scale, shift, between, is_last)
        if isinstance(a, Tensor):
            return replace(found, a=_rows(a))
        return replace(found, sources=(a,))

    @property
    def device(self) -> torch.device:
        """The device of the cotangents."""
        return self.b.device

    @property
    def multiplications(self) -> float:
        """The approximate number for the Gram matrix of the cotangents, the larger one."""
        return float(self.b.shape[1]) * self.b.numel()

    @property
    def passes(self) -> bool:
        """Whether features are made from sources for one weight at a time."""
        return bool(self.sources)

    def narrow(self, start: int, stop: int) -> GramFactor:
        """Return the rows of these samples."""
        assert self.a is not None
        a, b = (_rows_of(t, self.samples, start, stop) for t in (self.a, self.b))
        return replace(self, samples=stop - start, a=a, b=b)

    def kept(self, dtype: torch.dtype, output: Output, alone: bool) -> GramFactor:
        """Return the factor converted to `dtype`."""
        a = None if self.a is None else to(self.a, dtype)
        p = None if self.p is None else to(self.p, dtype)
        return replace(self, a=a, b=to(self.b, dtype), p=p)

    def followed_by(self, parts: Sequence[Factor]) -> GramFactor:
        """Return the features and cotangents of all blocks."""
        every = [self, *(p for p in parts if isinstance(p, GramFactor))]
        features = [p.a for p in every if p.a is not None]
        return replace(
            self,
            samples=sum(p.samples for p in every),
            sources=tuple(calls for p in every for calls in p.sources),
            a=torch.cat(features, dim=1) if features else None,
            b=torch.cat([p.b for p in every], dim=1),
            is_last=all(p.is_last for p in every),
        )

    def gathered(self, dtype: torch.dtype) -> GramFactor:
        """Return the factor with features instead of sources."""
        a: Tensor | None = None
        start = 0
        for calls in self.sources:
            each = [use.narrowed(held, 0, use.steps) for use, held in calls]
            rows = _rows(_joined(each))
            del each
            if len(self.sources) == 1:
                a = to(rows, dtype)
                break
            if a is None:  # written piece by piece, so that not all pieces are in memory beside it
                length = self.samples * self.positions
                kind = dtype if rows.is_floating_point() else rows.dtype
                a = rows.new_empty(rows.shape[0], length, rows.shape[2], dtype=kind)
            a[:, start : start + rows.shape[1]] = rows
            start += rows.shape[1]
        return replace(self, a=a, sources=())


def join(blocks: list[Factors]) -> Factors:
    """Return the factors of consecutive blocks as those of one block, and empty `blocks`."""
    if len(blocks) == 1:
        return blocks[0]
    names = list(blocks[0])
    found: Factors = {}
    for name in names:
        first, *others = (block.pop(name) for block in blocks)
        found[name] = first.followed_by(others)
    return found


def joined_features(calls: Sequence[Call]) -> Tensor:
    """Return the features `[N, G, T, a]` at the positions of all calls."""
    return _joined([use.features(source) for use, source in calls])


def _joined(each: Sequence[Tensor]) -> Tensor:
    """Return features `[N, G, T, a]` of several calls as those of one."""
    return each[0] if len(each) == 1 else torch.cat(list(each), dim=2)


def _rows(a: Tensor) -> Tensor:
    """Return features `[N, G, T, a]` as `[G, N·T, a]`."""
    n, g, t, width = a.shape
    return a.transpose(0, 1).reshape(g, n * t, width)


def _rows_of(t: Tensor, samples: int, start: int, stop: int) -> Tensor:
    each = t.shape[1] // samples
    return t[:, start * each : stop * each]


def to(t: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a factor in `dtype`; features that are indices keep their own dtype."""
    return t.to(dtype) if t.is_floating_point() else t
