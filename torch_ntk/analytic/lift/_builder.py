"""Steps as they are collected while a network is read, and the rules that hold between them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..._checks import ArgumentError, value_error
from ...activations import dual_activation, gain_dual
from .._program import Program, Step
from ..operations import (
    Activation,
    Flatten,
    Gained,
    Gather,
    ImageData,
    Input,
    Normalization,
    Operation,
    WeightedSum,
)
from ._standard import Standard
from ._values import Data, Elementwise, Features, Joined, Units, Value, two_axes

_EXPECTED = "a network with an infinite-width limit"


class Builder:
    """Collects the steps of one network.

    Attributes:
        node: The name of the node that is being read, for messages.
        dtype: In which the kernel is computed.
        samples: How many samples x1 and x2 have.
        same: Whether x2 is x1.
        standard: How ordinary layers are drawn.
        training: Whether modules keep their training flags.
        device: Where the inputs are.
    """

    def __init__(
        self,
        dtype: torch.dtype,
        samples: tuple[int, int],
        same: bool,
        standard: Standard | None = None,
        training: bool = False,
        device: torch.device | None = None,
    ) -> None:
        self.node = "the network"
        self.dtype = dtype
        self.samples = samples
        self.same = same
        self.standard = standard or Standard()
        self.training = training
        self.device = device or torch.device("cpu")
        self._steps: list[Step] = []
        self._inputs: dict[tuple[int, int], Value] = {}
        self._gathered: dict[tuple[Gather, tuple[int, ...]], int] = {}
        self._layers = 0
        self._uses: dict[int, str] = {}  # of a parameter, by its id: the node
        self._keep: list[Any] = []  # so that ids stay unique

    def refusal(self, what: str, why: str, remedy: str) -> ValueError:
        """What is raised for the node that is being read.

        Args:
            what: What was found there.
            why: Why it has no kernel in the limit.
            remedy: What to do.
        """
        return value_error("model", _EXPECTED, f"{what} at {self.node!r}", f"{why} {remedy}")

    def layer(self, module: nn.Module) -> int:
        """A number for the layer, whose weights only one node may use."""
        return self.layer_of(list(module.parameters(recurse=False)))

    def layer_of(self, parameters: Sequence[Tensor]) -> int:
        """A number for the layer of these parameters, which only one node may use."""
        self.uses(parameters)
        self._layers += 1
        return self._layers

    def uses(self, parameters: Sequence[Tensor]) -> None:
        """Note that this node uses `parameters`, and refuse if another one does."""
        for parameter in parameters:
            if id(parameter) in self._uses:
                raise self.refusal(
                    f"the second use of the parameters that {self._uses[id(parameter)]!r} uses",
                    "Two uses of the same weights are not independent, and the recursion for "
                    "infinite width holds for independent layers only.",
                    "Give each place a layer with parameters of its own.",
                )
        self._uses.update({id(p): self.node for p in parameters})
        self._keep.extend(parameters)

    def step(
        self,
        operation: Input | Operation,
        inputs: tuple[Value, ...],
        channels: int | None = None,
        spatial: tuple[int, ...] | None = None,
        *,
        layer: int | None = None,
        gaussian: bool = False,
        sources: frozenset[int] = frozenset(),
        unflattened: Value | None = None,
        alike: bool = True,
        axis: int | None = None,
    ) -> Value:
        """Add a step; the value that it makes.

        Args:
            operation: What is done.
            inputs: The values that it takes.
            channels: Of the value; None if they are those of the first input.
            spatial: Its axes of positions; None likewise.
            layer: The number of the layer that it is the output of: a sum over many inputs with
                independent weights that nothing else uses.
            gaussian: See `Value`, as all that follows.
            sources: The layers that the value is a sum of.
            unflattened: The value before positions were made features.
            alike: Whether its channels have one law if those of the inputs have.
            axis: The place of its channels; None if it is that of the first input.
        """
        own = frozenset() if layer is None else frozenset({layer})
        gain = isinstance(operation, Normalization) and operation.gain_trained
        spatial = inputs[0].spatial if spatial is None else spatial
        return Value(
            self._number(operation, tuple(v.step for v in inputs), two_axes(spatial)),
            inputs[0].channels if channels is None else channels,
            spatial,
            gaussian or bool(own),
            own or sources,
            own.union(*(v.ancestors for v in inputs)),
            unflattened,
            alike=bool(own) or (alike and all(v.alike for v in inputs)),
            gained=not own and (gain or any(v.gained for v in inputs)),
            axis=inputs[0].axis if axis is None else axis,
            roots=frozenset((s, 0) for s in own) or frozenset().union(*(v.roots for v in inputs)),
        )

    def _number(
        self, operation: Input | Operation, inputs: tuple[int, ...], positions: tuple[int, int]
    ) -> int:
        """The number of a step; the same positions taken of the same value are the same step."""
        number = len(self._steps)
        if isinstance(operation, Gather):
            number = self._gathered.setdefault((operation, inputs), number)
        if number == len(self._steps):
            self._steps.append(Step(operation, inputs, positions))
        return number

    def linear_step(
        self, operation: Operation, v: Value, spatial: tuple[int, ...] | None = None
    ) -> Value:
        """A linear map of each channel: the law of the features stays of the same kind."""
        return self.step(operation, (v,), spatial=spatial, gaussian=v.gaussian, sources=v.sources)

    # -- forms of features ---------------------------------------------------------------

    def value(self, features: Any, what: str = "this operation", axis: int = 0) -> Value:
        """Features as the value of a step, whatever form they have.

        Args:
            features: The features.
            what: What takes them, for messages.
            axis: The place of the channels where they are known and not random.
        """
        if isinstance(features, Value):
            return features
        if isinstance(features, Elementwise):
            if features.made is None:
                features.made = self._activated(features)
            return features.made
        if isinstance(features, Joined):
            return self._joined(features)
        if isinstance(features, Data) and features.is_tensor:
            return self._input(features, what, axis)
        raise self.refusal(
            f"{type(features).__name__} as the input of {what}",
            "It is not a batch of features.",
            "Pass one tensor, an item of what this is.",
        )

    def _activated(self, e: Elementwise) -> Value:
        base = e.base
        if e.factor != 1:
            plain = e.unscaled or replace(e, factor=1.0, made=None)
            return self.value(self.scale(self.value(plain), e.factor))
        try:
            dual = dual_activation(e.known if e.known is not None else e.function)
        except ArgumentError as error:
            self.node = e.node or self.node
            raise self.refusal(
                "a function that is no elementwise activation",
                "It has no dual functions that can be computed.",
                str(error),
            ) from error
        v = self.step(Activation(dual), (base,))
        if base.by_gain:
            by_gain = self.step(Activation(gain_dual(dual, e.function)), (base,))
            v = self.step(Gained(), (v, by_gain))
        return self.flatten(v) if e.flat else v

    def _joined(self, joined: Joined) -> Value:
        parts = tuple(self.value(p) for p in joined.parts)
        total = joined.shape[joined.axis]
        shares = WeightedSum(tuple(p.channels / total for p in parts))
        roots: set[tuple[int, Units]] = set()
        start = 0
        for part in parts:  # whose channel j - start is the joined channel j
            roots |= {(n, u - start if isinstance(u, int) else None) for n, u in part.roots}
            start += part.channels
        return replace(self.step(shares, parts, total, alike=False), roots=frozenset(roots))

    def _input(self, data: Data, what: str, axis: int) -> Value:
        if (id(data.first), axis) in self._inputs:
            return self._inputs[id(data.first), axis]
        sides = ((data.first, 0), (data.second, 1))
        first, second = (self._features(t, n).movedim(1 + axis, 1) for t, n in sides)
        if first.shape[1:] != second.shape[1:]:
            raise value_error(
                "x2",
                "of samples of the same shape as those of `x1`",
                f"{tuple(second.shape[1:])} against {tuple(first.shape[1:])} at "
                f"{self.node!r}, the input of {what}",
            )
        spatial = tuple(first.shape[2:])
        positions = two_axes(spatial)
        first, second = (t.reshape(*t.shape[:2], *positions) for t in (first, second))
        known = Input(first, None if self.same else second)
        v = self.step(known, (), first.shape[1], spatial, alike=False, axis=axis)
        self._inputs[id(data.first), axis] = v
        self._keep.append(data.first)
        return v

    def given(self, first: Tensor, second: Tensor) -> Value:
        """Known numbers `[N, A, B]` of each sample, which are no features."""
        known = ImageData(first, None if self.same else second)
        return self.step(known, (), 1, (), axis=0)

    def _features(self, tensor: Tensor, side: int) -> Tensor:
        """A known tensor as `[N, C, ...]` of the type of the computation."""
        if not 2 <= tensor.ndim <= 5 or tensor.shape[0] not in (1, self.samples[side]):
            raise self.refusal(
                f"a tensor of shape {tuple(tensor.shape)}",
                "Known features must be [N, C], or have up to three axes of positions besides.",
                "Flatten the axes of positions to at most three, and keep the samples on axis 0.",
            )
        if tensor.numel() == 0:
            raise self.refusal(
                f"a tensor of shape {tuple(tensor.shape)}",
                "It has no entries.",
                "Pass samples with features.",
            )
        full = tensor.expand(self.samples[side], *tensor.shape[1:])
        return full.to(self.dtype)

    # -- operations that several rules use -----------------------------------------------

    def affine(
        self,
        features: Any,
        operation: Operation,
        layer: int,
        channels: int,
        spatial: tuple[int, ...],
        what: str,
        axis: int = 0,
    ) -> Value:
        """A layer of independent weights."""
        v = self.value(features, what, axis)
        return self.step(operation, (v,), channels, spatial, layer=layer, axis=axis)

    def channels_first(self, features: Any, what: str) -> None:
        """Refuse features whose channels are not on axis 1, where `what` takes them to be."""
        if not isinstance(features, Data) and features.axis != 0:
            raise self.refusal(
                f"{what} on samples of shape {tuple(features.shape)} with channels on axis "
                f"{features.axis + 1}",
                "It takes axis 1 for that of the channels.",
                "Permute the axes to [N, C, …] first.",
            )

    def flatten(self, v: Value) -> Value:
        """Positions as features."""
        if not v.spatial:
            return v
        size = math.prod(v.shape)
        if v.positions == (1, 1):
            plain = None if v.ungained is None else self.flatten(v.ungained)
            of = None if v.multiple is None else (self.flatten(v.multiple[0]), v.multiple[1])
            terms = None if v.terms is None else (self.flatten(v.terms[0]), _flat(v.terms[1]))
            kept: dict[str, Any] = {"multiple": of, "terms": terms, "taps": None}
            return replace(v, channels=size, spatial=(), ungained=plain, axis=0, **kept)
        # Features from different positions have different variances: not Gaussian of one law.
        made = self.step(
            Flatten(), (v,), size, (), sources=v.sources, unflattened=v, alike=False, axis=0
        )
        return replace(made, roots=frozenset((layer, None) for layer, _ in v.roots))

    def scale(self, features: Features, factor: float) -> Features:
        """A constant factor."""
        if factor == 1:
            return features
        if factor == 0 or not math.isfinite(factor):
            raise self.refusal(
                f"a factor of {factor}",
                "The network's output would not depend on it.",
                "Leave the branch out.",
            )
        if isinstance(features, Elementwise):
            unscaled = features if features.factor == 1 else features.unscaled
            total = features.factor * factor
            return replace(features, factor=total, made=None, unscaled=unscaled)
        if isinstance(features, Joined):
            return Joined(tuple(self.scale(p, factor) for p in features.parts))  # type: ignore[misc]
        root, before = features.root
        scaled = self.linear_step(WeightedSum((factor**2,)), features)
        scaled = replace(scaled, multiple=(root, before * factor))
        if features.terms is not None:
            random, known = features.terms
            less = known.first * factor
            same = known.second is known.first
            known = Data(less, less if same else known.second * factor)
            scaled = replace(scaled, terms=(self.value(self.scale(random, factor)), known))
        if features.unflattened is not None:
            return self.flatten(self.scale(features.unflattened, factor))  # type: ignore[arg-type]
        return scaled

    def program(self, output: Any) -> Program:
        """The steps that lead to `output`, whose positions become features."""
        return Program.to(self._steps, self.flatten(self.value(output, "the output")).step)


def _flat(known: Data) -> Data:
    first = known.first.flatten(1)
    return Data(first, first if known.second is known.first else known.second.flatten(1))
