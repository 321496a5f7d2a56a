"""A network at a batch of inputs as a function of its parameters."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.stateless import _reparametrize_module

from .._checks import describe, type_error
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
    ) -> None:
        """`buffers` makes new copies: some forwards write into the tensors that they are given."""
        self._network, self._buffers, self._x = network, buffers, x
        self._around = contextlib.nullcontext() if around is None else around

    def of_another(
        self, network: nn.Module, tensors: Parameters, around: AbstractContextManager[Any]
    ) -> Tensor:
        """The outputs of a network with these parameters and buffers, run within a context."""
        return NetworkFunction(network, dict, self._x, around)(tensors)

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
            python_state(self._network),
            _reparametrize_module(self._network, tensors, tie_weights=True),
        ):
            yield
