r"""Dense projections: feature k is uᵀ G v / sqrt(dim), with its own random vectors u and v.

For G = Σ_t b_t a_tᵀ this is Σ_t ⟨u, b_t⟩⟨v, a_t⟩. With normal entries, by Isserlis' theorem,

    dim · Var⟨φ(G), φ(G')⟩ = ‖G‖²‖G'‖² + ⟨G, G'⟩² + 2‖GᵀG'‖² + 2‖GG'ᵀ‖² + 2 tr((GᵀG')²)

which is at most four times the sum of the first two terms; see `_sjlt`. With random signs it is
smaller.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ..empirical.rules import Use
from ._projection import Projection, ProjectionSettings, Sides

_SLAB = 256  # features that are drawn together


class DenseProjection(Projection):
    """The projection for `kind="gaussian"` and `kind="rademacher"`.

    Args:
        name, shape, settings: As in `Projection`.
        normal: Whether the entries of u and v are normal numbers; otherwise they are signs.
        kept: Whether u and v are kept in memory for the next samples instead of drawn again.
    """

    def __init__(
        self,
        name: str,
        shape: Sequence[int],
        settings: ProjectionSettings,
        *,
        normal: bool,
        kept: bool,
    ) -> None:
        super().__init__(name, shape, settings)
        self._normal, self._is_kept = normal, kept
        self._drawn: dict[int, tuple[Tensor, Tensor]] = {}

    def _slabs(self, like: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Yield slices of k features with their u `[k, joint, rows]` and v `[k, columns]`."""
        for part, start in enumerate(range(0, self.dim, _SLAB)):
            k = min(_SLAB, self.dim - start)
            drawn = self._drawn.get(part)
            if drawn is None:
                generator = self.generator(part)
                drawn = (
                    self._draw(generator, k, self.joint * self.rows),
                    self._draw(generator, k, self.columns),
                )
                if self._is_kept:
                    self._drawn[part] = drawn
            u, v = (t.to(like) for t in drawn)
            yield slice(start, start + k), u.view(k, self.joint, self.rows) / self.dim**0.5, v

    def _draw(self, generator: torch.Generator, k: int, n: int) -> Tensor:
        """Return random entries `[k, n]`, or ones if n = 1."""
        if n == 1:
            return torch.ones(k, 1, dtype=torch.int8, device=self.device)
        if self._normal:
            # In float64 the generator gives the same numbers on every CPU.
            drawn = torch.randn(
                k, n, generator=generator, device=generator.device, dtype=torch.float64
            )
        else:
            bits = torch.randint(
                2, (k, n), generator=generator, device=generator.device, dtype=torch.int8
            )
            drawn = 2 * bits - 1
        return drawn.to(self.device, torch.float32 if self._normal else torch.int8)

    @staticmethod
    def numbers(shape: Sequence[int], dim: int, joint: int) -> int:
        """The number of random entries for a parameter."""
        rows = shape[0] if len(shape) else 1
        size = torch.Size(shape).numel()
        return dim * (joint * rows + size // max(1, rows))

    def by_factors(self, use: Use, b: Tensor) -> bool:
        """Whether `of_factors` takes fewer multiplications for a sample than `of_jacobian`."""
        _, o, _, t, units = b.shape
        factors = t * (use.inputs + o * units + o) * self.dim
        formed = o * self.rows * self.columns * (t + self.dim)
        return factors < formed

    def of_factors(self, sides: Sides, a: Tensor, b: Tensor) -> Tensor:
        """Return features from one product with the inputs and one with the cotangents."""
        n, o, t, units = b.shape
        left = o // self.joint
        rows = b.reshape(n, left, self.joint, t, units).transpose(2, 3).reshape(n, left, t, -1)
        found = b.new_empty(n, left, self.dim)
        for where, u, v in self._slabs(b):
            if sides.units_are_rows:
                of_units = u[:, :, sides.of_units].flatten(1)
                of_inputs = v[:, sides.of_inputs]
            else:
                of_units, of_inputs = v[:, sides.of_units], u[:, 0, sides.of_inputs]
            found[:, :, where] = ((rows @ of_units.T) * (a @ of_inputs.T).unsqueeze(1)).sum(2)
        return found

    def of_rows(self, index: Tensor, b: Tensor) -> Tensor:
        """Return features from those entries of u that belong to these rows."""
        n, o, t, units = b.shape
        left = o // self.joint
        b = (b * (index >= 0).view(n, 1, t, 1)).reshape(n, left, self.joint, t, units)
        found = b.new_empty(n, left, self.dim)
        for where, u, v in self._slabs(b):
            of_rows = u[:, :, index.clamp(min=0)]  # [k, joint, N, T]
            found[:, :, where] = torch.einsum("nljtk,kjnt->nlk", b @ v.T, of_rows)
        return found

    def of_jacobian(self, jacobian: Tensor, use: Use | None = None) -> Tensor:
        """Return features from products with the Jacobian, with columns in the weight's order."""
        n, left = len(jacobian), jacobian.shape[1] // self.joint
        if use is not None and use.is_matrix:
            place = self.places(use).long()
            jacobian = torch.empty_like(jacobian).index_copy_(2, place, jacobian)
        matrix = jacobian.reshape(n, left, self.joint, self.rows, self.columns)
        found = jacobian.new_empty(n, left, self.dim)
        for where, u, v in self._slabs(jacobian):
            found[:, :, where] = torch.einsum("nljrk,kjr->nlk", matrix @ v.T, u)
        return found
