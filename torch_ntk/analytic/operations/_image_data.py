"""Data of each image besides its features (a graph's matrix, a mask), and operations that use them.

Such numbers belong to an image and not to a pair of images. They enter a program as an `Input`.
Operations receive them as that input's variances, which are what the engine stores per image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from ._input import Input
from ._operation import Operation
from ._state import State, Variances, joined_positions


@dataclass(frozen=True)
class ImageData(Input):
    """Numbers `[N, A, B]` that are no features: A × B for each image of x1 and of x2."""

    def variance(self, side: int, images: slice) -> Tensor:
        """Return the numbers of some images, `[n, A, B]`."""
        return self.both[side][images]

    def pairs(self, rows: slice, columns: slice, full: bool, ntk: bool) -> State:
        """Return zeros for a block of pairs, since the numbers have no covariance."""
        a, b = self.both[0][rows], self.both[1][columns]
        nothing = a.new_zeros(len(a), len(b), 1, 1)
        return State(nothing, a.new_zeros(()) if ntk else None, False, False)

    def distances(self, rows: slice, columns: slice, variances: Variances, ntk: bool) -> State:
        """Return zeros, as `pairs`, in a program that stores distances."""
        return replace(self.pairs(rows, columns, False, ntk), distance=True)

    def within(self, side: int, images: slice) -> State:
        """Return the numbers of some images, `[n, 1, A, B]`."""
        return State(self.both[side][images].unsqueeze(1), None, False, False)


@dataclass(frozen=True)
class Mixing(Operation):
    """`y(p) = Σ_s M[p, s] x(s)` with a matrix `[S_out, S_in]` for each image.

    `K[p, p'] ← Σ_{s,s'} M[p, s] M'[p', s'] K[s, s']`, and Θ likewise. The second input, an
    `ImageData`, gives M.

    Attributes:
        positions: `(P, Q)` of y.
    """

    positions: tuple[int, int]
    needs_variances = True
    mixes_positions = True

    def wants_full(self, full: bool, several: bool) -> bool:
        """Return True, unless x and y have one position."""
        return several

    def state(self, inputs: Sequence[State], variances: Sequence[Variances | None]) -> State:
        """Multiply K and Θ of each pair of images by the two matrices."""
        s, matrices = inputs[0], variances[1]
        assert matrices is not None
        if not s.full:  # one position, with a weight
            return _weighted(s, variances[0], matrices)
        one, two = matrices

        def mixed(a: Tensor) -> Tensor:
            a = one @ joined_positions(a) @ two.mT
            return a.reshape(*a.shape[:2], *self.positions, *self.positions)

        return s.each(mixed)

    def variance(self, inputs: Sequence[Tensor]) -> Tensor:
        """Return M² q, for inputs of one position."""
        return inputs[0] * inputs[1].square()

    @property
    def cost(self) -> float:
        """Two matrix products, estimated."""
        return 100.0


@dataclass(frozen=True)
class Weighting(Operation):
    """`y(p) = w(p) x(p)` with weights for each image, such as a mask.

    `K[p, p'] ← w(p) w'(p') K[p, p']`, and Θ likewise. The second input, an `ImageData`, gives w,
    `[N, P, Q]`.
    """

    needs_variances = True

    def state(self, inputs: Sequence[State], variances: Sequence[Variances | None]) -> State:
        """Multiply by the weights, without cancellation where distances are small."""
        assert variances[1] is not None
        return _weighted(inputs[0], variances[0], variances[1])

    def variance(self, inputs: Sequence[Tensor]) -> Tensor:
        """Return w² q."""
        return inputs[0] * inputs[1].square()

    @property
    def cost(self) -> float:
        """A product for K and one for Θ."""
        return 4.0


def _weighted(s: State, variances: Variances | None, weights: Variances) -> State:
    """Return K and Θ times w w'.

    The distance becomes `w² q + w'² q' - 2 w w' k = w w' d + (w - w')(w q - w' q')`.
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
