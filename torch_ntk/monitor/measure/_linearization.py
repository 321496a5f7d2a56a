"""The outputs of the network's linearization at the reference."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from ... import metrics as m
from ..._functional import Batch, RightOperations, copied, failure, leaves_of, slope
from ..._types import Parameters
from ...linearize._network_function import NetworkFunction
from ...linearize._steady import steady
from ...memory import is_out_of_memory
from ..reference._reference import Reference
from ._adapted_network import Samples
from ._evaluation import Evaluation

T = TypeVar("T")
_At: TypeAlias = Callable[[Parameters, Parameters], Tensor]

_SHOWN = 4096  # the number of outputs that are stored for a figure if there are more
_REMEDY = "Leave out what needs it: metrics=(...) without 'linearization_gap'."


@dataclass(frozen=True)
class Movement:
    """The distance of the outputs from those at the reference and those of the linearization.

    Attributes:
        outputs: The outputs f_t `[N, O]`, or `[N, K]` for K of them if O is very large.
        linearized: The same outputs of the linearization f_t^lin.
        missed: The difference f_t - f_t^lin, or a vector of the same norm.
        moved: The difference f_t - f_0, or a vector of the same norm.
    """

    outputs: Tensor
    linearized: Tensor
    missed: Tensor
    moved: Tensor

    @staticmethod
    def of(outputs: Tensor, linearized: Tensor, f_0: Tensor) -> Movement:
        """The movement of outputs, all of shape `[N, O]`."""
        return Movement(outputs, linearized, outputs - linearized, outputs - f_0)

    @property
    def gap(self) -> Tensor:
        """The linearization gap ‖f_t - f_t^lin‖ / ‖f_t - f_0‖."""
        # The function has three points as arguments, but only their differences matter.
        origin = torch.zeros_like(self.missed)
        return m.linearization_gap(origin, self.missed, self.moved)


@dataclass(frozen=True)
class Linearization:
    """The linearization `f^lin = f_0 + ⟨θ - θ_0, ∇f_0⟩` on the probe of a reference.

    The slope ⟨δ, ∇f_0⟩ is computed at the parameters and buffers of the reference, in the floating
    type of the network's gradients, and added to f_0 in the precision of f_0.

    Attributes:
        network: The module to measure, whose present parameters are θ.
        reference: The reference with θ_0, the buffers, f_0 and the samples.
        evaluation: The settings of precision and blocks.
    """

    network: nn.Module
    reference: Reference
    evaluation: Evaluation

    def outputs(self, f_0: Tensor) -> Tensor:
        """The outputs f^lin `[N, O]` of the linearization at the network's parameters, from f_0.

        All parameters that have changed contribute, also those that were frozen at the reference.
        """
        delta = self._delta()
        if not delta:
            return f_0
        batch = self._samples.batch
        blocks = self._over_blocks(batch, delta, lambda f_0, along, at: along)
        return f_0 + torch.cat(blocks).view_as(f_0)

    def movement_in_blocks(self) -> Movement:
        """The movement, computed in blocks of samples without storing all outputs.

        f_0 is evaluated again, together with the slopes. For every block only the squared norms are
        stored, and some outputs for a figure.
        """
        batch, size = self._samples.batch, self.reference.size
        if self.reference.probe.coupled:  # one sample with the outputs of all rows
            size *= len(self.reference.probe)
        count = max(1, min(size, _SHOWN // len(batch)))
        chosen = torch.linspace(0, size - 1, count).round().long().to(batch.tensors[0].device)
        wide = self.evaluation.result_dtype(batch.tensors[0].device)
        theta_t = {n: copied(p, self._dtype) for n, p in self.network.named_parameters()}
        buffers_t = {n: copied(b, self._dtype) for n, b in self.network.named_buffers()}

        # These small tensors are allocated before the loop. If they were allocated between large
        # ones, the allocator could not reuse the memory of those in one piece.
        shown = torch.empty(2, len(batch), count, dtype=wide, device=chosen.device)
        squares = torch.zeros(2, 1, dtype=wide, device=chosen.device)
        starts = iter(range(0, len(batch), self.evaluation.block))

        def of_block(f_0: Tensor, along: Tensor, at: _At) -> None:
            with torch.no_grad():
                moved = at(theta_t, buffers_t).to(wide, copy=True)
            start = next(starts)
            block = slice(start, start + len(moved))
            shown[0, block] = moved[:, chosen]
            shown[1, block] = (f_0[:, chosen] + along[:, chosen]).to(wide)
            moved -= f_0
            squares[1] += moved.square().sum()
            squares[0] += moved.sub_(along).square_().sum()

        self._over_blocks(batch, self._delta(), of_block)
        missed, moved = squares.sqrt()
        return Movement(shown[0], shown[1], missed, moved)

    def check(self) -> None:
        """Linearize one sample, so that an error is raised at the reference and not steps later."""
        direction = {n: self._theta_0[n] for n in self.reference.trained}
        first = self._samples.batch[:1]
        self._over_blocks(first, direction, lambda f_0, along, at: None)

    def _delta(self) -> Parameters:
        """The differences θ - θ_0 of the parameters that have changed, by name."""
        theta_0 = self._theta_0
        now = {n: p.detach() for n, p in self.network.named_parameters() if n in theta_0}
        delta = {n: copied(p, self._dtype) - theta_0[n] for n, p in now.items()}
        return {n: d for n, d in delta.items() if bool(d.any())}

    def _over_blocks(
        self, x: Batch, delta: Parameters, use: Callable[[Tensor, Tensor, _At], T]
    ) -> list[T]:
        """Evaluate f_0 and the slope in blocks of samples, and apply `use` to each block.

        Args:
            x: The samples.
            delta: The displacement δ of some of the parameters, by name.
            use: A function of f_0 `[n, O]`, of the slope ⟨δ, ∇f_0⟩ `[n, O]`, and of a function that
                returns the outputs `[n, O]` on the block at other parameters and buffers.

        Raises:
            ValueError: The network cannot be differentiated.
        """
        network, call = self.network, self._samples.call
        leaves = leaves_of({n: self._theta_0[n] for n in delta})
        theta_0 = {**self._theta_0, **leaves}
        x = x.to(self._dtype)

        def function(x: Batch, buffers: Parameters, keep_hooks: bool) -> NetworkFunction:
            def copies() -> Parameters:  # some forwards write into their buffers
                return {n: b.clone() for n, b in buffers.items()}

            return NetworkFunction(network, copies, x, RightOperations(), keep_hooks, call)

        def used(block: Batch, keep_hooks: bool) -> T:
            def at(theta: Parameters, buffers: Parameters) -> Tensor:
                return function(block, buffers, keep_hooks)(theta).reshape(len(block), -1)

            with function(block, self._buffers_0, keep_hooks).evaluated(theta_0) as out:
                along = slope(out, leaves, delta) if delta else torch.zeros_like(out)
                f_0, along = (t.detach().reshape(len(block), -1) for t in (out, along))
            return use(f_0, along, at)

        with steady(network, x.tensors[0].device):
            try:
                keep = function(x[:1], self._buffers_0, False).hooks_matter(theta_0)
                return [used(block, keep) for block in x.split(self.evaluation.block)]
            except (RuntimeError, NotImplementedError) as error:
                if is_out_of_memory(error):
                    raise
                raise failure(error, "linearize the outputs of the model", _REMEDY) from error

    @cached_property
    def _samples(self) -> Samples:
        return Samples.of(self.network, self.reference.probe)

    @cached_property
    def _buffers_0(self) -> Parameters:
        return {n: copied(b, self._dtype) for n, b in self.reference.buffers.items()}

    @cached_property
    def _dtype(self) -> torch.dtype:
        return self.evaluation.movement_dtype(self.network)

    @cached_property
    def _theta_0(self) -> Parameters:
        return {n: copied(p, self._dtype) for n, p in self.reference.params.items()}
