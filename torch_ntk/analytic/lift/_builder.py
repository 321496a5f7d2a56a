"""The steps of a program as they are collected, and the operations that several rules share."""

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
from ._values import Data, Elementwise, Features, Joined, Layout, Units, Value, two_axes

_EXPECTED = "a network with an infinite-width limit"


class Builder:
    """Collects the steps of the program of one network.

    Attributes:
        node: The name of the node that is being read, for messages.
        dtype: The dtype in which the kernel is computed.
        samples: The numbers of samples of x1 and x2.
        same: Whether x2 is x1.
        standard: The distributions of the weights of layers in standard parameterization.
        training: Whether modules keep their training flags.
        device: The device of the inputs.
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
        self._uses: dict[int, str] = {}  # the node that uses a parameter, by the parameter's id
        self._keep: list[Any] = []  # so that ids stay unique

    def refusal(self, what: str, why: str, remedy: str) -> ValueError:
        """Return the error that refuses the node that is being read.

        Args:
            what: The operation or value that is refused.
            why: Why it has no kernel in the limit.
            remedy: What the user can do.
        """
        return value_error("model", _EXPECTED, f"{what} at {self.node!r}", f"{why} {remedy}")

    def layer(self, module: nn.Module) -> int:
        """Return a number for a layer, whose weights no other node may use."""
        return self.layer_of(list(module.parameters(recurse=False)))

    def layer_of(self, parameters: Sequence[Tensor]) -> int:
        """Return a number for the layer with these parameters, which no other node may use."""
        self.uses(parameters)
        self._layers += 1
        return self._layers

    def uses(self, parameters: Sequence[Tensor]) -> None:
        """Record that this node uses `parameters`; raise an error if another node does."""
        for parameter in parameters:
            if id(parameter) in self._uses:
                raise self.refusal(
                    f"the second use of the parameters that {self._uses[id(parameter)]!r} uses",
                    "Two uses of the same weights are not independent, and the recursion for "
                    "infinite width holds for independent layers only.",
                    "Use a separate layer, with its own parameters, at each place.",
                )
        self._uses.update({id(p): self.node for p in parameters})
        self._keep.extend(parameters)

    def step(
        self,
        operation: Input | Operation,
        inputs: tuple[Value, ...],
        layout: Layout | None = None,
    ) -> Value:
        """Add a step, and return its result as a value that is not known to be Gaussian.

        Args:
            operation: The operation.
            inputs: The values that it takes.
            layout: The axes of the result; None if they are those of the first input.
        """
        channels, spatial, axis = layout or inputs[0].layout
        gain = isinstance(operation, Normalization) and operation.gain_trained
        return Value(
            self._number(operation, tuple(v.step for v in inputs), two_axes(spatial)),
            channels,
            spatial,
            gaussian=False,
            sources=frozenset(),
            ancestors=frozenset().union(*(v.ancestors for v in inputs)),
            alike=all(v.alike for v in inputs),
            gained=gain or any(v.gained for v in inputs),
            axis=axis,
            roots=frozenset().union(*(v.roots for v in inputs)),
        )

    def layer_step(
        self,
        operation: Operation,
        inputs: tuple[Value, ...],
        layer: int,
        layout: Layout | None = None,
    ) -> Value:
        """Add the step of a layer, and return its outputs.

        Each output is a sum over many inputs with independent weights that nothing else uses. So
        the outputs are Gaussian in the limit, and all channels have the same distribution.

        Args:
            operation: The operation of the layer.
            inputs: The values that it takes.
            layer: The number of the layer, from `layer` or `layer_of`.
            layout: The axes of the result; None if they are those of the first input.
        """
        made = self.step(operation, inputs, layout)
        own = frozenset({layer})
        return replace(
            made,
            gaussian=True,
            sources=own,
            ancestors=made.ancestors | own,
            alike=True,
            gained=False,
            roots=frozenset({(layer, 0)}),
        )

    def _number(
        self, operation: Input | Operation, inputs: tuple[int, ...], positions: tuple[int, int]
    ) -> int:
        """Add a step if there is no equal `Gather` of the same value, and return its index."""
        number = len(self._steps)
        if isinstance(operation, Gather):
            number = self._gathered.setdefault((operation, inputs), number)
        if number == len(self._steps):
            self._steps.append(Step(operation, inputs, positions))
        return number

    def linear_step(
        self,
        operation: Operation,
        v: Value,
        spatial: tuple[int, ...] | None = None,
        data: Value | None = None,
    ) -> Value:
        """Add the step of a linear map of each channel, which keeps Gaussian features Gaussian.

        Args:
            operation: The map.
            v: The value that is mapped.
            spatial: The axes of positions of the result; None if they are those of `v`.
            data: Numbers of each sample that determine the map, from `sample_data`.
        """
        layout = v.layout if spatial is None else v.layout._replace(spatial=spatial)
        made = self.step(operation, (v,) if data is None else (v, data), layout)
        return replace(made, gaussian=v.gaussian, sources=v.sources)

    # -- forms of features ---------------------------------------------------------------

    def value(self, features: Any, what: str = "this operation", axis: int = 0) -> Value:
        """Return features of any form as a value, for which steps are added where necessary.

        Args:
            features: Random features, or a known tensor.
            what: The operation that needs them, for messages.
            axis: The index of the channels among the axes of a sample, for a known tensor.
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
            "Pass a tensor, for instance one of its items.",
        )

    def _activated(self, e: Elementwise) -> Value:
        base = e.base
        if e.factor != 1:
            plain = e.unscaled or replace(e, factor=1.0, made=None)
            return self.value(self.scale(self.value(plain), e.factor))
        try:
            dual = dual_activation(e.lookup if e.lookup is not None else e.function)
        except ArgumentError as error:
            self.node = e.node or self.node
            raise self.refusal(
                "a function that is not an elementwise activation",
                "Its dual functions cannot be computed.",
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
        made = self.step(shares, parts, parts[0].layout._replace(channels=total))
        return replace(made, alike=False, roots=frozenset(roots))

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
        made = self.step(known, (), Layout(first.shape[1], spatial, axis))
        v = replace(made, alike=False)  # the channels are what the caller passed
        self._inputs[id(data.first), axis] = v
        self._keep.append(data.first)
        return v

    def sample_data(self, first: Tensor, second: Tensor) -> Value:
        """Return known numbers `[N, A, B]` of each sample, which are no features, as a value."""
        known = ImageData(first, None if self.same else second)
        return self.step(known, (), Layout(1))

    def _features(self, tensor: Tensor, side: int) -> Tensor:
        """Return a known tensor as `[N, C, ...]` with the dtype of the computation."""
        if not 2 <= tensor.ndim <= 5 or tensor.shape[0] not in (1, self.samples[side]):
            raise self.refusal(
                f"a tensor of shape {tuple(tensor.shape)}",
                "Known features must have the shape [N, C] with at most three axes of positions.",
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
        layout: Layout,
        what: str,
    ) -> Value:
        """Add the step of a layer of independent weights, and return its outputs.

        Args:
            features: The inputs of the layer.
            operation: The operation of the layer.
            layer: The number of the layer, from `layer` or `layer_of`.
            layout: The axes of its outputs; known inputs have their channels on the same axis.
            what: The name of the layer, for messages.
        """
        return self.layer_step(operation, (self.value(features, what, layout.axis),), layer, layout)

    def channels_first(self, features: Any, what: str) -> None:
        """Raise an error if `what` needs the channels on axis 1 and they are elsewhere."""
        if not isinstance(features, Data) and features.axis != 0:
            raise self.refusal(
                f"{what} on samples of shape {tuple(features.shape)} with channels on axis "
                f"{features.axis + 1}",
                "It needs the channels on axis 1.",
                "Permute the axes to [N, C, …] first.",
            )

    def flatten(self, v: Value) -> Value:
        """Return `v` with all its positions and channels as features."""
        if not v.spatial:
            return v
        size = math.prod(v.shape)
        if v.positions == (1, 1):
            plain = None if v.ungained is None else self.flatten(v.ungained)
            of = None if v.multiple is None else (self.flatten(v.multiple[0]), v.multiple[1])
            terms = None
            if v.terms is not None:
                terms = self.flatten(v.terms[0]), v.terms[1].map(lambda t: t.flatten(1))
            kept: dict[str, Any] = {"multiple": of, "terms": terms, "taps": None}
            return replace(v, channels=size, spatial=(), ungained=plain, axis=0, **kept)
        # Features from different positions have different variances, so that not all channels
        # have the same distribution.
        made = self.step(Flatten(), (v,), Layout(size))
        roots = frozenset((layer, None) for layer, _ in v.roots)
        return replace(made, sources=v.sources, unflattened=v, alike=False, roots=roots)

    def scale(self, features: Features, factor: float) -> Features:
        """Return features times a constant."""
        if factor == 1:
            return features
        if factor == 0 or not math.isfinite(factor):
            raise self.refusal(
                f"a factor of {factor}",
                "The network's output would not depend on the features, or not be finite.",
                "Remove the branch.",
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
            terms = self.value(self.scale(random, factor)), known.map(lambda t: t * factor)
            scaled = replace(scaled, terms=terms)
        if features.unflattened is not None:
            return self.flatten(self.scale(features.unflattened, factor))  # type: ignore[arg-type]
        return scaled

    def program(self, output: Any) -> Program:
        """Return the program whose result is `output`, flattened."""
        return Program.to(self._steps, self.flatten(self.value(output, "the output")).step)
