"""A network at a batch of inputs as a function of its parameters."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.stateless import _reparametrize_module

from .._checks import describe, type_error
from .._functional import forward_hooks_matter
from .._functional._quiet import python_state
from .._types import Parameters


class NetworkFunction:
    """`θ -> f(x; θ)`, with fixed x and buffers; to be evaluated within `steady`."""

    def __init__(
        self,
        network: nn.Module,
        buffers: Callable[[], Parameters],
        x: Tensor,
        around: AbstractContextManager[Any] | None = None,
        keep_hooks: bool = False,
    ) -> None:
        """The function of `network` at `x`.

        Args:
            network: The module.
            buffers: Makes new copies: some forwards write into the tensors that they are given.
            x: A batch.
            around: In which its forward runs.
            keep_hooks: Whether forward hooks of the user run, as they are part of the function.
        """
        self._network, self._buffers, self._x = network, buffers, x
        self._around = contextlib.nullcontext() if around is None else around
        self._keep_hooks = keep_hooks

    def of_another(
        self, network: nn.Module, tensors: Parameters, around: AbstractContextManager[Any]
    ) -> Tensor:
        """The outputs of a network with these parameters and buffers, run within a context."""
        return NetworkFunction(network, dict, self._x, around, self._keep_hooks)(tensors)

    def hooks_matter(self, params: Parameters) -> bool:
        """Whether forward hooks of the user change the outputs; to be asked without them."""
        with self.in_place(params):
            return forward_hooks_matter(self._network, lambda: self._network(self._x.clone()))

    def __call__(self, params: Parameters) -> Tensor:
        """The outputs."""
        with self.evaluated(params) as out:
            return out

    @contextlib.contextmanager
    def evaluated(self, params: Parameters) -> Iterator[Tensor]:
        """The outputs; within it `params` are in place, for backward passes that run it again."""
        with self.in_place(params):
            with self._around:
                out: Any = self._network(self._x.clone())
            if not isinstance(out, Tensor) or not out.is_floating_point():
                raise type_error(
                    "model",
                    "a module that returns one real floating-point tensor",
                    describe(out),
                    "Wrap it in a module whose forward returns the part you mean.",
                )
            yield out

    @contextlib.contextmanager
    def in_place(self, params: Parameters) -> Iterator[None]:
        """Within it, the network has these parameters; afterwards it is as it was."""
        tensors = {**self._buffers(), **params}
        with (
            python_state(self._network, self._keep_hooks),
            _reparametrize_module(self._network, tensors, tie_weights=True),
        ):
            yield
