"""A network at a batch of inputs as a function of its parameters."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.stateless import _reparametrize_module

from .._functional import Batch, Watch, call_model, forward_hooks_matter, tensor_of
from .._functional._quiet import python_state, values_of
from .._functional._state import hidden_modules
from .._types import ForwardFn, Parameters

Call = Callable[[nn.Module, Any], Any]
"""Calls a network with a batch in the caller's form, and returns what the network returns."""


def has_samples(x: Batch) -> bool:
    """Whether all tensors have the same number of rows, so that a row is a sample."""
    sizes = {t.shape[:1] for t in x.tensors}
    return len(sizes) == 1 and sizes != {()}


@dataclass(frozen=True, eq=False)
class NetworkFunction:
    """`θ -> f(x; θ)` for a fixed batch x and fixed buffers; to be evaluated within `steady`.

    Attributes:
        network: The module.
        buffers: Returns new copies of the buffers, because some forwards write into them.
        x: The batch.
        around: A context in which the forward runs.
        keep_hooks: Whether the user's forward hooks run, because they are part of the function.
        forward_fn: Calls the network in place of `call`.
        call: Calls the network without a `forward_fn`.
        watch: Observes the forward and refuses tensors that it must not use.
    """

    network: nn.Module
    buffers: Callable[[], Parameters]
    x: Batch
    around: AbstractContextManager[Any] = field(default_factory=contextlib.nullcontext)
    keep_hooks: bool = False
    forward_fn: ForwardFn | None = None
    call: Call = call_model
    watch: Watch | None = None

    def of_another(
        self, network: nn.Module, tensors: Parameters, around: AbstractContextManager[Any]
    ) -> Tensor:
        """The outputs of a network with these parameters and buffers, run within a context."""
        return replace(self, network=network, buffers=dict, around=around, watch=None)(tensors)

    def hooks_matter(self, params: Parameters) -> bool:
        """Whether the user's forward hooks change the outputs; needs `keep_hooks=False`."""
        with self.in_place(params):
            return forward_hooks_matter(self.network, self._outputs)

    def __call__(self, params: Parameters) -> Tensor:
        """The outputs."""
        with self.evaluated(params) as out:
            return out

    @contextlib.contextmanager
    def evaluated(self, params: Parameters) -> Iterator[Tensor]:
        """The outputs; the network keeps `params` within the block, for backward passes there."""
        with self.in_place(params):
            with self.around, self.watch or contextlib.nullcontext():
                out = self._outputs()
            if self.watch is not None:
                own = all(p.is_leaf for p in params.values())
                self.watch.refuse_others(out if own else None)
            yield out

    def _outputs(self) -> Tensor:
        call = self.call if self.forward_fn is None else self.forward_fn
        out = call(self.network, self.x.clone().value)
        return tensor_of(out, self.x, len(self.x) if has_samples(self.x) else None, self.forward_fn)

    @contextlib.contextmanager
    def in_place(self, params: Parameters) -> Iterator[None]:
        """Within the block, the network has these parameters; afterwards it has its own again."""
        tensors = {**self.buffers(), **params}
        own = {id(m) for m in self.network.modules()}
        others = [m for m in hidden_modules(self.forward_fn) if id(m) not in own]
        with (
            python_state(self.network, self.keep_hooks),
            values_of(others),
            _reparametrize_module(self.network, tensors, tie_weights=True),
        ):
            yield
