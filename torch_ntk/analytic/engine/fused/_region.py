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
    """The kind of image of which the loops of a region process one after the other."""

    DISPLACEMENTS = "all pairs of positions, image by image of one displacement"
    SAME_POSITIONS = "the same position in both images, pair by pair"
    VECTORS = "pairs of vectors, block by block"


@dataclass
class Region:
    """Steps that go through fused loops together.

    Attributes:
        shape: The kind of image.
        level: The place in the order of evaluation; see `_regions.py`.
        steps: The numbers of the steps in order, with those of known features.
        fused: The fused form of each step that has one.
        collectors: The steps that are sums over all positions, with the factors of the sums.
        averages: The steps that are averages over some positions, with their windows.
        inputs: The steps outside of the region whose values it takes.
        outside: The steps whose values are needed outside of the region, without collectors and
            averages.
        layout: The layout of the values in memory; None for vectors.
        reach: The largest displacement that is needed along either axis.
        kept: The largest displacement along either axis at which each value that goes into the
            region or out of it is stored.
        between: The steps whose values are taken by other regions of images only.
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
