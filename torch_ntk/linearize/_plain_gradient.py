"""A value that is linear in the displacement, with plain backward passes for its gradient."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from .._checks import value_error
from .._types import Parameters
from ._derivatives import leaves_of, transposed_product
from ._network_function import NetworkFunction


def with_plain_gradient(
    value: Tensor,
    f: NetworkFunction,
    theta_0: Parameters,
    delta: Parameters,
    x: Tensor,
    around: Callable[[], AbstractContextManager[None]],
) -> Tensor:
    """`value`, which is `f(θ_0) + J δ`, such that gradients reach δ as `Jᵀu`.

    That is one backward pass of `f` at θ_0: as fast as that of the network, and with its digits,
    by whatever way `J δ` was computed.

    Args:
        value: The numbers.
        f: The function.
        theta_0: The point at which it is differentiated.
        delta: The displacement; gradients are for those that require grad.
        x: The inputs. Gradients by them are refused, because J depends on them.
        around: What a backward pass has to be within.
    """
    trained = {k: d for k, d in delta.items() if d.requires_grad}
    leaves = leaves_of({k: theta_0[k] for k in trained})
    everything = {**theta_0, **leaves}
    with torch.enable_grad(), f.evaluated(everything) as out:
        pass

    def transposed(u: Tensor) -> Parameters:
        keep = torch._C._autograd._get_current_graph_task_keep_graph()
        with around(), f.in_place(everything):
            return transposed_product(
                out, leaves, u, keep_graph=keep, create=torch.is_grad_enabled()
            )

    return _Linear.apply(value, transposed, x, *trained.values())  # type: ignore[no-any-return]


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, transposed: Any, x: Tensor, *delta: Tensor) -> Tensor:
        ctx.transposed = transposed
        return value.clone()

    @staticmethod
    def backward(ctx: Any, u: Tensor) -> Any:
        if ctx.needs_input_grad[2]:
            raise value_error(
                "x",
                "a batch that does not require grad",
                "one that does, for a network with an operation of which torch has no "
                "second derivative",
                "Detach it: gradients by the inputs differentiate once more than those by θ.",
            )
        return None, None, None, *ctx.transposed(u).values()
