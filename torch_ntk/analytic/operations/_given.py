"""What is known of each image besides its features, and operations that take it.

A graph's matrix, the mask of a sequence: numbers that belong to an image and not to a pair. They
enter a program as an `Input` and reach operations in the place of that input's variances, which
are what the engine keeps for each image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from ._input import Input
from ._operation import Operation
from ._state import State, Variances


@dataclass(frozen=True)
class Given(Input):
    """Numbers `[N, A, B]` of each image, of the first and of the second images."""

    def variance(self, side: int, images: slice) -> Tensor:
        """The numbers of some images."""
        return self.both[side][images]

    def pairs(self, rows: slice, columns: slice, full: bool, ntk: bool) -> State:
        """No features: nothing to be taken of pairs."""
        a, b = self.both[0][rows], self.both[1][columns]
        nothing = a.new_zeros(len(a), len(b), 1, 1)
        return State(nothing, a.new_zeros(()) if ntk else None, False, False)

    def distances(self, rows: slice, columns: slice, variances: Variances, ntk: bool) -> State:
        """The same where the features are kept as distances."""
        return replace(self.pairs(rows, columns, False, ntk), distance=True)

    def within(self, side: int, images: slice) -> State:
        """The numbers of some images, as pairs of an image with itself."""
        return State(self.both[side][images].unsqueeze(1), None, False, False)


@dataclass(frozen=True)
class Mixing(Operation):
    """`y(p) = Σ_s M[p, s] x(s)` with a matrix `[S_out, S_in]` for each image.

    `K[p, p'] ← Σ_{s,s'} M[p, s] M'[p', s'] K[s, s']`, and Θ likewise. The second input gives M.

    Attributes:
        positions: Of y.
    """

    positions: tuple[int, int]
    needs_variances = True
    mixes_positions = True

    def wants_full(self, full: bool, several: bool) -> bool:
        """Unless one position becomes one position."""
        return several

    def state(self, inputs: Sequence[State], variances: Sequence[Variances | None]) -> State:
        """Two matrix products for each pair of images."""
        s, matrices = inputs[0], variances[1]
        assert matrices is not None
        if not s.full:  # one position, with a weight
            return _weighted(s, variances[0], matrices)
        one, two = matrices

        def mixed(a: Tensor) -> Tensor:
            a = one @ a.flatten(-4, -3).flatten(-2) @ two.mT
            return a.reshape(*a.shape[:2], *self.positions, *self.positions)

        return s.each(mixed)

    def variance(self, inputs: Sequence[Tensor]) -> Tensor:
        """Of one position."""
        return inputs[0] * inputs[1].square()

    @property
    def cost(self) -> float:
        """Two products for each entry of the matrices, about."""
        return 100.0


@dataclass(frozen=True)
class Weighting(Operation):
    """`y(p) = w(p) x(p)` with weights of each image: masks.

    `K[p, p'] ← w(p) w'(p') K[p, p']`, and Θ likewise. The second input gives w, `[N, P, Q]`.
    """

    needs_variances = True

    def state(self, inputs: Sequence[State], variances: Sequence[Variances | None]) -> State:
        """Without subtracting equal numbers where distances are small."""
        assert variances[1] is not None
        return _weighted(inputs[0], variances[0], variances[1])

    def variance(self, inputs: Sequence[Tensor]) -> Tensor:
        """w² q."""
        return inputs[0] * inputs[1].square()

    @property
    def cost(self) -> float:
        """A product of K and one of Θ."""
        return 4.0


def _weighted(s: State, variances: Variances | None, weights: Variances) -> State:
    """K and Θ times w w'.

    Of a distance, `w² q + w'² q' - 2 w w' k = w w' d + (w - w')(w q - w' q')`.
    """
    one, two = weights
    if s.full:
        one, two = one[..., None, None], two[:, :, None, None]
    product = one * two
    made = s.each(lambda a: a * product)
    if not s.distance:
        return made
    assert variances is not None
    q1, q2 = variances
    return replace(made, nngp=made.nngp + (one - two) * (one * q1 - two * q2))
