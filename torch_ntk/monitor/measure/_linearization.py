"""Outputs of the network's linearization at the reference."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from ..._functional import Batch, RightOperations, copied, failure, leaves_of, slope
from ..._types import Parameters
from ...linearize._network_function import NetworkFunction
from ...linearize._steady import steady
from ...memory import is_out_of_memory
from ..reference._reference import Reference
from ._adapted_network import call_of
from ._evaluation import Evaluation

_REMEDY = "Leave out what needs it: metrics=(...) without 'linearization_gap'."


@dataclass(frozen=True)
class Linearization:
    """`f^lin = f_0 + ⟨θ - θ_0, ∇f_0⟩` on the probe of a reference.

    The slopes ⟨δ, ∇f_0⟩ are taken at the parameters and buffers of the reference, in the dtype of
    the network's gradients, and added to f_0 in its own precision.

    Attributes:
        network: The module; its present parameters are θ.
        reference: θ_0, the buffers, f_0 and the samples.
        evaluation: Precision and size of blocks.
    """

    network: nn.Module
    reference: Reference
    evaluation: Evaluation

    def outputs(self) -> Tensor:
        """f^lin at the network's parameters, `[N, O]`.

        Every parameter that has moved counts, also one that was frozen at the reference.

        Raises:
            ValueError: The network cannot be differentiated.
        """
        theta_0, reference = self._theta_0, self.reference
        now = {n: p.detach() for n, p in self.network.named_parameters() if n in theta_0}
        delta = {n: copied(p, self._dtype) - theta_0[n] for n, p in now.items()}
        moved = {n: d for n, d in delta.items() if bool(d.any())}
        return reference.outputs + self._slopes(moved, reference.probe.batch)

    def check(self) -> None:
        """Raise at the reference, on one sample, what `outputs` would raise steps later.

        Raises:
            ValueError: As `outputs`.
        """
        direction = {n: self._theta_0[n] for n in self.reference.trained}
        self._slopes(direction, self.reference.probe.batch[:1])

    def _slopes(self, delta: Parameters, x: Batch) -> Tensor:
        """⟨δ, ∇f_0⟩ `[N, O]` for a displacement δ of some of the parameters; 0 if there is none."""
        network, dtype, device = self.network, self._dtype, x.tensors[0].device
        if not delta:
            return torch.zeros((), dtype=dtype, device=device)
        leaves = leaves_of({n: self._theta_0[n] for n in delta})
        theta_0 = {**self._theta_0, **leaves}
        x, call = x.to(dtype), call_of(network, self.reference.probe)

        def function(x: Batch, keep_hooks: bool) -> NetworkFunction:
            around = RightOperations()
            return NetworkFunction(network, self._buffers, x, around, keep_hooks, call)

        def slopes(f: NetworkFunction) -> Tensor:
            with f.evaluated(theta_0) as out:
                return slope(out, leaves, delta).detach().flatten(1)

        with steady(network, device):
            try:
                keep_hooks = function(x[:1], False).hooks_matter(theta_0)
                blocks = x.split(self.evaluation.block)
                return torch.cat([slopes(function(block, keep_hooks)) for block in blocks])
            except (RuntimeError, NotImplementedError) as error:
                if is_out_of_memory(error):
                    raise
                raise failure(error, "linearize the outputs of the model", _REMEDY) from error

    def _buffers(self) -> Parameters:
        """New copies of those of the reference."""
        return {n: copied(b, self._dtype) for n, b in self.reference.buffers.items()}

    @cached_property
    def _dtype(self) -> torch.dtype:
        return self.evaluation.gradient_dtype(self.network)

    @cached_property
    def _theta_0(self) -> Parameters:
        return {n: copied(p, self._dtype) for n, p in self.reference.params.items()}
