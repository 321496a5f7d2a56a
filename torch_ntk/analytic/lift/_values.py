"""What is known of a value while a network is read: its shape, and whether it is Gaussian."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from torch import Tensor

Units: TypeAlias = int | tuple[int, ...] | None
"""Which units of a layer channels are: from an offset on, each by itself, or not known."""

Matrices: TypeAlias = Callable[[], tuple[Tensor, Tensor]]
"""Makes `[1 or N, S_out, S_in]` for x1 and for x2: only where sums of maps need them."""


def two_axes(spatial: tuple[int, ...]) -> tuple[int, int]:
    """Axes of positions as the two of a state: all after the first are one; (1, 1) for a vector."""
    return (spatial[0] if spatial else 1), math.prod(spatial[1:])


@dataclass(frozen=True)
class Data:
    """Something computed from the inputs without any random weight: it is simply known.

    Attributes:
        first: It for x1: a tensor, or a number, a shape.
        second: It for x2; the same object as `first` if x2 is x1 or it does not depend on them.
    """

    first: Any
    second: Any

    @property
    def is_tensor(self) -> bool:
        """Whether it is a batch of features rather than a number or a shape."""
        return isinstance(self.first, Tensor)


@dataclass(frozen=True, eq=False)
class Value:
    """Random features, whose distribution is known in the limit.

    Attributes:
        step: The number of the step that makes them.
        channels: Features at each position, in the given network.
        spatial: Axes of positions: none, `(L,)`, `(P, Q)` or `(D, P, Q)`.
        gaussian: Whether the features are jointly Gaussian of zero mean, of one law for all:
            what an elementwise activation needs.
        sources: The layers whose outputs they are sums of, with no activation in between.
        ancestors: All layers before them.
        unflattened: The value before positions were made features, if they were.
        alike: Whether all channels have one law, so that any group of them represents all.
        gained: Whether a trained gain of a normalization is in it, with no layer after.
        ungained: For the value of such a normalization itself, the same with the gain left out
            of the tangent kernel.
        by_gain: Whether it is one that a gain was left out of.
        axis: The place of the channels among the axes of a sample: 0 for `[N, C, …]`.
        roots: The last layers before it, with which of their units its channels are: an offset, a
            tuple of them all, or None if that is not known. Values are independent channel by
            channel where no channel is of one unit in both.
        taps: Where several positions have become channels (`F.unfold`), the value with them as
            positions, `[C, taps, …]`.
        multiple: The value that it is a constant multiple of, and the factor.
        image: The value that it is a linear map over positions of, and what makes the matrices.
        terms: The random and the known features that it is the sum of, if it is such a sum.
        undropped: The Gaussian value before dropout with its probability to keep, and whether
            channels have one mask for all positions.
    """

    step: int
    channels: int
    spatial: tuple[int, ...]
    gaussian: bool
    sources: frozenset[int]
    ancestors: frozenset[int]
    unflattened: Value | None = None
    alike: bool = True
    gained: bool = False
    ungained: Value | None = None
    by_gain: bool = False
    axis: int = 0
    roots: frozenset[tuple[int, Units]] = frozenset()
    taps: Value | None = None
    multiple: tuple[Value, float] | None = None
    image: tuple[Value, Matrices] | None = None
    terms: tuple[Value, Data] | None = None
    undropped: tuple[Value, float, bool] | None = None

    @property
    def root(self) -> tuple[Value, float]:
        """What it is a multiple of, and the factor; itself and 1 if nothing else."""
        return self.multiple or (self, 1.0)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample."""
        return (*self.spatial[: self.axis], self.channels, *self.spatial[self.axis :])

    def same(self, other: Value) -> bool:
        """Whether it is known to be the same features in the same arrangement."""
        if self is other:
            return True
        if any(units is None for _, units in self.roots):
            return False
        mine = self.step, self.shape, self.axis, self.roots
        return mine == (other.step, other.shape, other.axis, other.roots)

    @property
    def positions(self) -> tuple[int, int]:
        """As the two axes that states have."""
        return two_axes(self.spatial)

    @property
    def centred(self) -> bool:
        """Whether nothing but sums of layers' outputs is in it."""
        return bool(self.sources)


@dataclass(eq=False)
class Elementwise:
    """A function of a Gaussian value, entry by entry, that has not become a step yet.

    Functions of functions of one value, and their sums and products, are again one function of
    it: `x * torch.sigmoid(x)` is one activation.

    Attributes:
        base: The Gaussian value.
        function: What is done to each entry.
        known: What names the function for a lookup of its closed form; None if it was composed.
        factor: A constant in front.
        flat: Whether positions were made features afterwards.
        node: Where it was written, for messages.
        made: The value that it has become.
        unscaled: The same without the factor, if it was written so.
    """

    base: Value
    function: Callable[[Tensor], Tensor]
    known: Any = None
    factor: float = 1.0
    flat: bool = False
    node: str = ""
    made: Value | None = field(default=None, repr=False)
    unscaled: Elementwise | None = field(default=None, repr=False)

    @property
    def alike(self) -> bool:
        """Whether all channels have one law; a Gaussian value's have."""
        return self.base.alike

    @property
    def axis(self) -> int:
        """The place of the channels among the axes of a sample."""
        return 0 if self.flat else self.base.axis

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample."""
        if not self.flat:
            return self.base.shape
        size = 1
        for n in self.base.shape:
            size *= n
        return (size,)

    def __call__(self, x: Tensor) -> Tensor:
        """The function of the entries of the base."""
        y = self.function(x)
        return y if self.factor == 1 else y * self.factor


@dataclass(frozen=True, eq=False)
class Joined:
    """Channels of several values side by side.

    Attributes:
        parts: The values.
    """

    parts: tuple[Value | Elementwise, ...]

    @property
    def alike(self) -> bool:
        """Not the channels of different values."""
        return False

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample."""
        shape = list(self.parts[0].shape)
        shape[self.axis] = sum(p.shape[self.axis] for p in self.parts)
        return tuple(shape)

    @property
    def axis(self) -> int:
        """The place of the channels among the axes of a sample."""
        return self.parts[0].axis


Features: TypeAlias = Value | Elementwise | Joined
"""Random features in any of their forms."""
