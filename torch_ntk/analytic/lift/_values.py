"""The values of nodes while a network is read: known data, and random features."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

from torch import Tensor

Units: TypeAlias = int | tuple[int, ...] | None
"""The units of a layer that some channels are: an offset (channel c is unit offset + c), the unit
of each channel, or None if this is not known."""

Matrices: TypeAlias = Callable[[], tuple[Tensor, Tensor]]
"""Makes the matrices `[1 or N, S_out, S_in]` of a linear map of positions, for x1 and for x2.

They are made only if a sum of maps needs them."""


class Layout(NamedTuple):
    """The axes of the samples of a value.

    Attributes:
        channels: The number of channels.
        spatial: The sizes of the axes of positions: none, `(L,)`, `(P, Q)` or `(D, P, Q)`.
        axis: The index of the channels among the axes of a sample: 0 for `[N, C, …]`.
    """

    channels: int
    spatial: tuple[int, ...] = ()
    axis: int = 0


def two_axes(spatial: tuple[int, ...]) -> tuple[int, int]:
    """Return the two axes that states have: the first one, and the others joined."""
    return (spatial[0] if spatial else 1), math.prod(spatial[1:])


@dataclass(frozen=True)
class Data:
    """A known value: one that depends on the inputs, but on no random weights.

    Attributes:
        first: The value for x1: a tensor, a number or a shape.
        second: The value for x2; the same object as `first` if x2 is x1, or if the value does not
            depend on the inputs.
    """

    first: Any
    second: Any

    @property
    def is_tensor(self) -> bool:
        """Whether the value is a tensor, and not a number or a shape."""
        return isinstance(self.first, Tensor)

    def map(self, function: Callable[[Any], Any]) -> Data:
        """Return a function of the value, which is computed once if both sides are the same."""
        first = function(self.first)
        return Data(first, first if self.second is self.first else function(self.second))


@dataclass(frozen=True, eq=False)
class Value:
    """Random features, the result of a step.

    The attributes state what the rules for later nodes must know of the features' distribution.

    Attributes:
        step: The index of the step.
        channels: The number of features at each position, in the given network.
        spatial: The sizes of the axes of positions: none, `(L,)`, `(P, Q)` or `(D, P, Q)`.
        gaussian: Whether the features are jointly Gaussian with zero mean, and all channels have
            the same distribution. An elementwise activation needs this.
        sources: The layers of which the features are sums of outputs, if there is no activation
            after these layers.
        ancestors: All layers on which the features depend.
        unflattened: The value before it was flattened, if it was.
        alike: Whether all channels have the same distribution, so that the kernel of a part of
            them is the kernel of all.
        gained: Whether the features contain a trained gain of a normalization, with no layer
            after it.
        ungained: For the result of such a normalization, the value whose tangent kernel does not
            contain the derivatives with respect to the gain.
        by_gain: Whether this value is the `ungained` of another.
        axis: The index of the channels among the axes of a sample: 0 for `[N, C, …]`.
        roots: The last layers before the value, and the units of each that its channels are. Two
            values are independent channel by channel if no channel is the same unit in both.
        taps: If positions have become channels (`F.unfold`), the value that still has them as
            positions, `[C, taps, …]`.
        multiple: A value and a factor, if the features are a constant multiple of that value.
        image: A value and its matrices, if the features are a linear map of that value's positions.
        terms: A random and a known value, if the features are their sum.
        undropped: For the result of a dropout: the Gaussian value before it, the probability of
            keeping an entry, and whether a channel has one mask for all positions.
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
    def layout(self) -> Layout:
        """The channels, the axes of positions, and the index of the channels' axis."""
        return Layout(self.channels, self.spatial, self.axis)

    @property
    def root(self) -> tuple[Value, float]:
        """The value of which this is a multiple, and the factor; by default itself and 1."""
        return self.multiple or (self, 1.0)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of a sample."""
        return (*self.spatial[: self.axis], self.channels, *self.spatial[self.axis :])

    def same(self, other: Value) -> bool:
        """Whether the features are known to be those of `other`, in the same arrangement."""
        if self is other:
            return True
        if any(units is None for _, units in self.roots):
            return False
        mine = self.step, self.shape, self.axis, self.roots
        return mine == (other.step, other.shape, other.axis, other.roots)

    @property
    def positions(self) -> tuple[int, int]:
        """The sizes of the two axes of positions of the step's states."""
        return two_axes(self.spatial)

    @property
    def centred(self) -> bool:
        """Whether the features are sums of layers' outputs and thus have zero mean."""
        return bool(self.sources)


@dataclass(eq=False)
class Elementwise:
    """An elementwise function of a Gaussian value that has not become a step yet.

    Compositions, sums and products of functions of the same value are again a function of it. So
    `x * torch.sigmoid(x)` becomes one activation.

    Attributes:
        base: The Gaussian value.
        function: The function.
        lookup: The argument with which `dual_activation` finds its dual functions; None if the
            function itself is looked up.
        factor: A constant factor.
        flat: Whether the result is flattened.
        node: The name of the node, for messages.
        made: The result as a value, once there is a step for it.
        unscaled: The function without the factor, if it exists in the network.
    """

    base: Value
    function: Callable[[Tensor], Tensor]
    lookup: Any = None
    factor: float = 1.0
    flat: bool = False
    node: str = ""
    made: Value | None = field(default=None, repr=False)
    unscaled: Elementwise | None = field(default=None, repr=False)

    @property
    def alike(self) -> bool:
        """Whether all channels have the same distribution, as those of the base have."""
        return self.base.alike

    @property
    def axis(self) -> int:
        """The index of the channels among the axes of a sample."""
        return 0 if self.flat else self.base.axis

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of a sample."""
        return (math.prod(self.base.shape),) if self.flat else self.base.shape

    def __call__(self, x: Tensor) -> Tensor:
        """Return the function, with its factor, of entries of the base."""
        y = self.function(x)
        return y if self.factor == 1 else y * self.factor


@dataclass(frozen=True, eq=False)
class Joined:
    """The concatenated channels of several values.

    Attributes:
        parts: The values.
    """

    parts: tuple[Value | Elementwise, ...]

    @property
    def alike(self) -> bool:
        """False, since channels of different values may have different distributions."""
        return False

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of a sample."""
        shape = list(self.parts[0].shape)
        shape[self.axis] = sum(p.shape[self.axis] for p in self.parts)
        return tuple(shape)

    @property
    def axis(self) -> int:
        """The index of the channels among the axes of a sample."""
        return self.parts[0].axis


Features: TypeAlias = Value | Elementwise | Joined
"""Random features: a value, a function of one that is no step yet, or several concatenated."""

RANDOM = (Value, Elementwise, Joined)
"""The classes of random features."""


def sample_shape(x: Data | Features) -> tuple[int, ...]:
    """Return the shape of a sample of features, or of a known tensor."""
    return tuple(x.first.shape[1:]) if isinstance(x, Data) else tuple(x.shape)


def is_trained(parameter: Tensor | None) -> bool:
    """Whether a parameter, if a layer has it, is among those of Θ."""
    return parameter is not None and parameter.requires_grad


def leaves(arguments: Any) -> list[Any]:
    """Return the items of nested containers and slices."""
    found: list[Any] = []
    stack = [arguments]
    while stack:
        item = stack.pop()
        if isinstance(item, dict):
            stack.extend(item.values())
        elif isinstance(item, (tuple, list)):
            stack.extend(item)
        elif isinstance(item, slice):
            stack.extend((item.start, item.stop, item.step))
        else:
            found.append(item)
    return found


def each_known(arguments: Any, function: Callable[[Data], Any]) -> Any:
    """Return nested containers and slices with `function` applied to every known value in them."""
    if isinstance(arguments, Data):
        return function(arguments)
    if isinstance(arguments, Mapping):
        return {k: each_known(v, function) for k, v in arguments.items()}
    if isinstance(arguments, (tuple, list)):
        return type(arguments)(each_known(a, function) for a in arguments)
    if isinstance(arguments, slice):
        ends = arguments.start, arguments.stop, arguments.step
        return slice(*(each_known(a, function) for a in ends))
    return arguments


def side(arguments: Any, which: int) -> Any:
    """Return arguments for x1 (0) or for x2 (1), without the `Data` around known values."""
    return each_known(arguments, lambda known: (known.first, known.second)[which])
