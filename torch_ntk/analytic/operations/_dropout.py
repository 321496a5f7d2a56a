"""Dropout during training, with masks that are drawn anew for every image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ._operation import Operation
from ._state import IdenticalImages, State, Variances, same_positions


@dataclass(frozen=True)
class Dropout(Operation):
    """`y = m x / p` with independent masks m of each image, 1 with probability p and else 0.

    The masks of different images have E[m m'] = p², so K and Θ between them do not change. For an
    image with itself E[m²] = p, so K and Θ are divided by p: at the same position, or at all pairs
    of positions if these have one mask.

    Attributes:
        keep: The probability p of keeping an entry.
        one_mask: Whether all positions of a channel have one mask, as with `nn.Dropout2d`.
    """

    keep: float
    one_mask: bool = False
    random_per_image = True

    def state(self, inputs: Sequence[State], variances: Sequence[Variances | None]) -> State:
        """Return the input, which is unchanged between different images."""
        return inputs[0]

    def variance(self, inputs: Sequence[Tensor]) -> Tensor:
        """Return q/p."""
        return inputs[0] / self.keep

    def with_identical(
        self, made: State, inputs: Sequence[State], identical: IdenticalImages
    ) -> State:
        """Divide K and Θ of an image with itself by p."""
        at = identical.rows, identical.columns

        def divided(a: Tensor) -> Tensor:
            a = a.clone()
            part = same_positions(a, made.full and not self.one_mask)
            part[at] = part[at] / self.keep
            return a

        return made.each(divided)

    @property
    def cost(self) -> float:
        """No arithmetic between different images."""
        return 0.0
