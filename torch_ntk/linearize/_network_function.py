"""A network at a batch of inputs as a function of its parameters."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.stateless import _reparametrize_module

from .._functional import Batch, Watch, call_model, forward_hooks_matter, tensor_of
from .._functional._quiet import python_state, values_of
from .._functional._state import hidden_modules
from .._types import ForwardFn, Parameters

Call = Callable[[nn.Module, Any], Any]
"""From a network and a batch in the caller's form to what the network returns."""


def has_samples(x: Batch) -> bool:
    """Whether every tensor has as many rows as the others, so that a row is a sample."""
    sizes = {t.shape[:1] for t in x.tensors}
    return len(sizes) == 1 and sizes != {()}


class NetworkFunction:
    """`θ -> f(x; θ)`, with fixed x and buffers; to be evaluated within `steady`."""

    def __init__(
        self,
        network: nn.Module,
        buffers: Callable[[], Parameters],
        x: Batch,
        around: AbstractContextManager[Any] | None = None,
        keep_hooks: bool = False,
        forward_fn: ForwardFn | None = None,
        call: Call = call_model,
        watch: Watch | None = None,
    ) -> None:
        """The function of `network` at `x`.

        Args:
            network: The module.
            buffers: Makes new copies: some forwards write into the tensors that they are given.
            x: A batch.
            around: In which its forward runs.
            keep_hooks: Whether forward hooks of the user run, as they are part of the function.
            forward_fn: In place of the call of the network.
            call: How the network is called without it.
            watch: Sees tensors that no forward may use.
        """
        self._network, self._buffers, self._x = network, buffers, x
        self._around = contextlib.nullcontext() if around is None else around
        self._keep_hooks = keep_hooks
        self._forward_fn, self._call = forward_fn, call
        self._watch = watch
        self._rows = len(x) if has_samples(x) else None

    def of_another(
        self, network: nn.Module, tensors: Parameters, around: AbstractContextManager[Any]
    ) -> Tensor:
        """The outputs of a network with these parameters and buffers, run within a context."""
        other = NetworkFunction(
            network, dict, self._x, around, self._keep_hooks, self._forward_fn, self._call
        )
        return other(tensors)

    def hooks_matter(self, params: Parameters) -> bool:
        """Whether forward hooks of the user change the outputs; to be asked without them."""
        with self.in_place(params):
            return forward_hooks_matter(self._network, self._outputs)

    def __call__(self, params: Parameters) -> Tensor:
        """The outputs."""
        with self.evaluated(params) as out:
            return out

    @contextlib.contextmanager
    def evaluated(self, params: Parameters) -> Iterator[Tensor]:
        """The outputs; within it `params` are in place, for backward passes that run it again."""
        with self.in_place(params):
            with self._around, self._watch or contextlib.nullcontext():
                out = self._outputs()
            if self._watch is not None:
                own = all(p.is_leaf for p in params.values())
                self._watch.refuse_others(out if own else None)
            yield out

    def _outputs(self) -> Tensor:
        call = self._call if self._forward_fn is None else self._forward_fn
        out = call(self._network, self._x.clone().value)
        return tensor_of(out, self._x, self._rows, self._forward_fn)

    @contextlib.contextmanager
    def in_place(self, params: Parameters) -> Iterator[None]:
        """Within it, the network has these parameters; afterwards it is as it was."""
        tensors = {**self._buffers(), **params}
        own = {id(m) for m in self._network.modules()}
        others = [m for m in hidden_modules(self._forward_fn) if id(m) not in own]
        with (
            python_state(self._network, self._keep_hooks),
            values_of(others),
            _reparametrize_module(self._network, tensors, tie_weights=True),
        ):
            yield
