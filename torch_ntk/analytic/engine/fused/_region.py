"""Steps of a program that go through fused loops together."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import Enum

from ...operations import Fused
from ._layout import Layout
from ._packed import Extent, Pair
from ._windows import Windows


class Shape(Enum):
    """What one image is that the loops of a region process one after the other."""

    DISPLACEMENTS = "all pairs of positions, image by image of one displacement"
    SAME_POSITIONS = "the same position in both images, pair by pair"
    VECTORS = "pairs of vectors, block by block"


@dataclass
class Region:
    """Steps that go through fused loops together.

    Attributes:
        shape: What is one image.
        level: See above.
        steps: Their numbers, with those of known features, in order.
        fused: Their fused forms.
        collectors: Those that are sums over positions, with the factors of the sums.
        averages: Those that are averages over some positions, with their windows.
        inputs: The steps outside whose values they take.
        outside: Those whose values are needed outside, other than collectors and averages.
        layout: Of their values; None for vectors.
        reach: The largest displacement that is needed along either axis.
        kept: The same of each value that goes into the region or out of it.
        between: Those of its values that only other regions of images take.
    """

    shape: Shape
    level: int
    steps: list[int] = field(default_factory=list)
    fused: dict[int, Fused] = field(default_factory=dict)
    collectors: dict[int, float] = field(default_factory=dict)
    averages: dict[int, tuple[Windows, Windows]] = field(default_factory=dict)
    inputs: tuple[int, ...] = ()
    outside: tuple[int, ...] = ()
    layout: Layout | None = None
    reach: Pair = (0, 0)
    kept: dict[int, Pair] = field(default_factory=dict)
    between: frozenset[int] = frozenset()

    @property
    def full(self) -> bool:
        """Whether values have all pairs of positions."""
        return self.shape is Shape.DISPLACEMENTS

    def summed(self, i: int) -> bool:
        """Return whether a step is a sum over positions of a value of the loop."""
        return i in self.collectors or i in self.averages

    def displacements(self, positions: Pair) -> int:
        """Return the number of displacements at which a value of this size is computed."""
        return math.prod(Extent.within(positions, self.reach).displacements)
