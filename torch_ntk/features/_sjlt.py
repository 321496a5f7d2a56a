r"""Sparse projections: every entry of a gradient is added, with random signs, to four features.

A count sketch (Charikar, Chen, Farach-Colton 2002) adds entry p to feature h(p) with a sign s(p);
four of them side by side, each of dim/4 features and of half the size, are a sparse
Johnson-Lindenstrauss transform (Kane and Nelson 2014). Drawn as

    h(r, c) = h1(r) + h2(c) mod m,      s(r, c) = s1(r) s2(c),

the sketch of b aᵀ is the circular convolution of the sketches of b and a, a product of their
Fourier transforms (Pham and Pagh 2013), so that

    φ(Σ_t b_t a_tᵀ) = F⁻¹ Σ_t F(φ1(b_t)) F(φ2(a_t)),

and G need not be formed. Both computations give the same projection; the cheaper one is chosen.
With G, G' the gradients with respect to one weight, m features have the variance

    m Var⟨φ(G), φ(G')⟩ ≤ ‖G‖²‖G'‖² + ⟨G, G'⟩² + ‖GᵀG'‖² + ‖GG'ᵀ‖² + 2 tr((GᵀG')²) + O(1/m):

The first two terms are those of independent entries (without pairs of equal entries, which makes
them smaller). The others come from rectangles (r, c), (r, c'), (r', c), (r', c'), because the
product of their signs is one. With G = Σ_k σ_k u_k v_kᵀ and M = Uᵀ G' V they are

    Σ_kl (σ_k² + σ_l²) M_kl² + 2 Σ_kl σ_k σ_l M_kl M_lk ≤ 2 ‖G‖²‖G'‖² + 2 ⟨G, G'⟩²:

of a pair k < l it is at most (σ_k + σ_l)² (M_kl² + M_lk²) ≤ 2 ‖G‖² (M_kl² + M_lk²), and of the
diagonal 4 Σ σ_k² M_kk², where 2 diag(σ²) - σσᵀ ≤ ‖G‖²: only one σ_k² can exceed ‖G‖²/2, and the
determinant of the difference has the right sign. Weights are blocks of one large block-diagonal G,
so that this is also the bound of all of them together: three times that of independent entries.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import gcd

import torch
from torch import Tensor
from torch.nn import functional as F

from ..empirical.rules import Use
from ._projection import Projection, ProjectionSettings, Sides

# Several sketches have the same variance as one, but a collision of two entries weighs a quarter.
_SKETCHES = 4
# Nanoseconds per number on one core: for a Fourier transform, for a sketch, for writing it in
# another order, and for a multiplication in a product of matrices.
_TRANSFORMED, _SKETCHED, _WRITTEN, _MULTIPLIED = 3.0, 0.4, 3.0, 0.02
# The number of values that are transformed at once, and the largest number of entries of a Jacobian
# whose features are stored.
_AT_ONCE, _MOST_PLACES = 4 * 1024**2, 8 * 1024**2


@dataclass(frozen=True)
class _Sketch:
    """A sketch as signed sums of the rows of a table, one sum for each feature.

    Attributes:
        index: The rows, in the order of the features to which they are added.
        starts: The positions in `index` at which the rows of each feature begin.
        signs: The scaled signs of the rows in this order.
    """

    index: Tensor
    starts: Tensor
    signs: Tensor

    def of(self, table: Tensor) -> Tensor:
        """The sketch `[dim, n]` of a table `[rows, n]`."""
        found: Tensor = F.embedding_bag(
            self.index, table, self.starts, mode="sum", per_sample_weights=self.signs
        )
        return found


class SparseProjection(Projection):
    """The projection for `kind="sjlt"`."""

    def __init__(self, name: str, shape: Sequence[int], settings: ProjectionSettings) -> None:
        super().__init__(name, shape, settings)
        self._sketches = gcd(self.dim, _SKETCHES)
        self._m = self.dim // self._sketches
        self.most_formed = _MOST_PLACES / self.joint
        self._made: dict[Hashable, _Sketch] = {}

    @cached_property
    def _tables(self) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """The features and signs of rows `[sketches, joint · rows]` and of columns."""
        drawn = self.generator()
        return self._draw(drawn, self.joint * self.rows), self._draw(drawn, self.columns)

    def _draw(self, generator: torch.Generator, n: int) -> tuple[Tensor, Tensor]:
        """Return random features and signs `[sketches, n]`, or feature 0 and sign 1 if n = 1."""
        shape = (self._sketches, n)
        device, kind = generator.device, torch.int8
        if n == 1:
            to = torch.zeros(shape, dtype=torch.int32, device=device)
            return to, torch.ones(shape, dtype=kind, device=device)
        to = torch.randint(self._m, shape, generator=generator, device=device).int()
        bits = torch.randint(2, shape, generator=generator, device=device, dtype=kind)
        return to, 2 * bits - 1

    @staticmethod
    def numbers(shape: Sequence[int], joint: int) -> int:
        """The number of pairs of a feature and a sign that are drawn; each takes five bytes."""
        rows = shape[0] if len(shape) else 1
        return _SKETCHES * (joint * rows + torch.Size(shape).numel() // max(1, rows))

    def by_factors(self, use: Use, b: Tensor) -> bool:
        """Whether `of_factors` takes less time for a sample than `of_jacobian`, by an estimate."""
        _, o, _, t, units = b.shape
        left = o // self.joint
        sketched = t * (use.inputs + o * units) * self._sketches
        factors = sketched * _SKETCHED + t * (1 + left) * self.dim * _TRANSFORMED
        p = o * self.rows * self.columns
        formed = p * (t * _MULTIPLIED + _WRITTEN + self._sketches * _SKETCHED)
        return factors < formed or self.rows * self.columns > self.most_formed

    def of_factors(self, sides: Sides, a: Tensor, b: Tensor) -> Tensor:
        """Return features from products of Fourier transforms, which are summed over positions."""
        n, o, t, units = b.shape
        left = o // self.joint
        of_units, of_inputs = self._sketches_of(sides, b)
        total: Tensor | None = None
        step = max(1, _AT_ONCE // (n * (1 + left) * self.dim))
        for start in range(0, t, step):
            some = a[:, start : start + step]
            table = some.permute(2, 0, 1).reshape(a.shape[2], -1)
            of_a = self._transformed(of_inputs, table).view(self._sketches, n, 1, some.shape[1], -1)
            cotangents = b[:, :, start : start + step].reshape(n, left, self.joint, -1, units)
            table = cotangents.permute(2, 4, 0, 1, 3).reshape(self.joint * units, -1)
            of_b = self._transformed(of_units, table).view(
                self._sketches, n, left, some.shape[1], -1
            )
            summed = (of_a * of_b).sum(3)
            total = summed if total is None else total + summed
        if total is None:
            return b.new_zeros(n, left, self.dim)
        found: Tensor = torch.fft.irfft(total, n=self._m)
        return found.permute(1, 2, 0, 3).reshape(n, left, self.dim)

    def _transformed(self, sketch: _Sketch, table: Tensor) -> Tensor:
        """The transforms `[sketches, n, f]` of the sketches of a table `[entries, n]`."""
        found = sketch.of(table).view(self._sketches, self._m, -1)
        transformed: Tensor = torch.fft.rfft(found.transpose(1, 2).contiguous())
        return transformed

    def of_rows(self, index: Tensor, b: Tensor) -> Tensor:
        """Return features by adding single entries, of the rows that have a gradient."""
        n, o, t, units = b.shape
        left = o // self.joint
        found = b.new_zeros(n, left, self._sketches, self._m)
        read = index.clamp(min=0)
        b = b * (index >= 0).view(n, 1, t, 1)
        of_each = (t.to(self.device) for table in self._tables for t in table)
        rows, of_rows, columns, of_columns = (t.view(self._sketches, -1) for t in of_each)
        rows, of_rows = (t.view(self._sketches, self.joint, -1) for t in (rows, of_rows))
        for k in range(self._sketches):
            for i in range(self.joint):
                to = (rows[k, i][read].unsqueeze(2) + columns[k]) % self._m
                signs = of_rows[k, i][read].unsqueeze(2) * of_columns[k]
                own = b[:, i :: self.joint] * signs.unsqueeze(1)
                index_of = to.long().view(n, 1, t * units).expand(n, left, -1)
                found[:, :, k].scatter_add_(2, index_of, own.reshape(n, left, -1))
        return found.reshape(n, left, self.dim).div_(self._sketches**0.5)

    def of_jacobian(self, jacobian: Tensor, use: Use | None = None) -> Tensor:
        """Return features as a sketch of the entries of the Jacobian."""
        n, o, p = jacobian.shape
        left = o // self.joint
        if not p:
            return jacobian.new_zeros(n, left, self.dim)
        key = ("jacobian", None if use is None else use.kind, jacobian.dtype)
        if key not in self._made:
            self._made[key] = self._sketch(*self._of_entries(use), jacobian)
        table = (
            jacobian.reshape(n, left, self.joint * p).permute(2, 0, 1).reshape(self.joint * p, -1)
        )
        return self._made[key].of(table).view(self.dim, n, left).permute(1, 2, 0)

    def _of_entries(self, use: Use | None) -> tuple[Tensor, Tensor]:
        """Features and signs `[sketches, joint, p]` of the columns of a Jacobian."""
        (rows, of_rows), (columns, of_columns) = self._tables
        shape = (self._sketches, self.joint, self.rows)
        rows, of_rows = rows.view(shape), of_rows.view(shape)
        sides = None if use is None else self._sides(use)
        by_rows = sides if sides is not None and sides.units_are_rows else None
        if by_rows is not None:  # permute rows and columns: no index for each entry
            r, c = by_rows.of_units.cpu(), by_rows.of_inputs.cpu()
            rows, of_rows, columns, of_columns = (
                rows[:, :, r],
                of_rows[:, :, r],
                columns[:, c],
                of_columns[:, c],
            )
        to = ((rows.unsqueeze(3) + columns[:, None, None]) % self._m).flatten(2)
        signs = (of_rows.unsqueeze(3) * of_columns[:, None, None]).flatten(2)
        if use is None or by_rows is not None:
            return to, signs
        place = self.places(use).cpu()
        return to[:, :, place], signs[:, :, place]

    def _sketches_of(self, sides: Sides, like: Tensor) -> tuple[_Sketch, _Sketch]:
        """The sketches of cotangents, with separate rows for each output, and of inputs."""
        each = []
        for are_rows, index in (
            (sides.units_are_rows, sides.of_units),
            (not sides.units_are_rows, sides.of_inputs),
        ):
            key = (sides, are_rows, like.dtype)
            if key not in self._made:
                shape = (self._sketches, self.joint if are_rows else 1, -1)
                table = self._tables[0 if are_rows else 1]
                to, signs = (t.view(shape)[:, :, index.cpu()] for t in table)
                self._made[key] = self._sketch(to, signs, like, are_rows)
            each.append(self._made[key])
        return each[0], each[1]

    def _sketch(self, to: Tensor, signs: Tensor, like: Tensor, scaled: bool = True) -> _Sketch:
        """The sketch with features `to` and signs `[sketches, …]` for the rows of a table."""
        to, signs = to.flatten(1), signs.flatten(1)
        sketch = torch.arange(self._sketches, dtype=to.dtype, device=to.device)
        to, order = (to + self._m * sketch.unsqueeze(1)).reshape(-1).sort(stable=True)
        starts = torch.searchsorted(to, torch.arange(self.dim, dtype=to.dtype, device=to.device))
        scale = self._sketches**-0.5 if scaled else 1.0
        weights = signs.reshape(-1)[order].to(like.dtype) * scale
        index = (order % signs.shape[1]).int()
        return _Sketch(*(t.to(self.device) for t in (index, starts.int(), weights)))
