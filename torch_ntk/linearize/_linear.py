"""The value of a linearized network; derivatives are computed by plain backward passes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from .._checks import value_error
from .._functional import leaves_of, slope, transposed_product
from .._types import Parameters
from ._expansion import refuse_gradients_that_are_not_finite
from ._network_function import NetworkFunction


def linearized(
    f: NetworkFunction,
    theta_0: Parameters,
    delta: Parameters,
    inputs: Sequence[Tensor],
    tracked: bool,
    around: Callable[[], AbstractContextManager[None]],
) -> Tensor:
    """`f(θ_0) + J δ`, whose gradients with respect to δ are `Jᵀu`.

    Such a gradient is one backward pass of `f` at θ_0, which is as fast as that of the network and
    gives the same digits. Gradients with respect to inputs differentiate the two passes that
    compute J δ, because J depends on the inputs.

    Args:
        f: The function, at a batch of inputs.
        theta_0: The point at which it is differentiated.
        delta: The displacement; gradients are for those that require grad.
        inputs: The tensors of the batch that require grad.
        tracked: Whether gradients are recorded at all.
        around: Returns the context in which a backward pass must run.
    """
    by_inputs = tracked and bool(inputs)
    still = {k: d.detach() for k, d in delta.items()}
    leaves = leaves_of(theta_0)
    with f.evaluated(leaves) as out:
        along = slope(out, leaves, delta if by_inputs else still, create_graph=by_inputs)
    if not bool(along.isfinite().all()):
        refuse_gradients_that_are_not_finite(f, theta_0)
    if by_inputs and along.requires_grad:
        return out + along
    value = out.detach() + along.detach()
    trained = {k: d for k, d in delta.items() if d.requires_grad}
    if not (by_inputs or (tracked and trained)):
        return value

    def transposed(u: Tensor) -> Parameters:
        keep = torch._C._autograd._get_current_graph_task_keep_graph()
        wanted = {k: leaves[k] for k in trained}
        with around(), f.in_place(leaves):
            return transposed_product(
                out, wanted, u, keep_graph=keep, create=torch.is_grad_enabled()
            )

    numbers: Tensor = _Linear.apply(value, transposed, len(inputs), *inputs, *trained.values())
    return numbers


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, transposed: Any, n: int, *by: Tensor) -> Tensor:
        # The first n of the tensors `by` are inputs, the others are displacements.
        ctx.transposed, ctx.n = transposed, n
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, u: Tensor) -> Any:
        if any(ctx.needs_input_grad[3 : 3 + ctx.n]):
            raise value_error(
                "x",
                "a batch that does not require grad",
                "one that does, for a network with an operation of which torch has no "
                "second derivative",
                "Detach it: gradients by the inputs need one derivative more than those by θ.",
            )
        return *(None,) * (3 + ctx.n), *ctx.transposed(u).values()
