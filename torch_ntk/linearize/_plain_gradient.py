"""A value that is linear in the displacement, with plain backward passes for its gradient."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from .._checks import value_error
from .._types import Parameters
from ._choice import Choice, contradiction
from ._derivatives import leaves_of, transposed_product
from ._network_function import NetworkFunction


def with_plain_gradient(
    terms: tuple[Tensor, ...],
    f: NetworkFunction,
    theta_0: Parameters,
    delta: Parameters,
    x: Tensor,
    choice: Choice,
    around: Callable[[], AbstractContextManager[None]],
) -> Tensor:
    """`f(θ_0) + J δ`, such that gradients reach δ as `Jᵀu`.

    That is one backward pass of `f` at θ_0: as fast as that of the network, and with its digits,
    by whatever way `J δ` was computed. It also proves that way on its own data, in every training
    step: `⟨u, J δ⟩ = ⟨Jᵀu, δ⟩`.

    Args:
        terms: `f(θ_0)` and `J δ`.
        f: The function.
        theta_0: The point at which it is differentiated.
        delta: The displacement; gradients are for those that require grad.
        x: The inputs. Gradients by them are refused, because J depends on them.
        choice: The way by which `J δ` was computed; it is given up if the sides differ.
        around: What a backward pass has to be within.
    """
    value, slope = terms
    trained = {k: d for k, d in delta.items() if d.requires_grad}
    displaced = {k: d.detach() for k, d in trained.items()}
    leaves = leaves_of({k: theta_0[k] for k in trained})
    everything = {**theta_0, **leaves}
    way = choice.way
    # The gradients by other parameters, which would be needed if they had been moved, are not.
    comparable = not any(bool(d.any()) for k, d in delta.items() if k not in trained)
    with torch.enable_grad(), f.evaluated(everything) as out:
        pass

    def transposed(u: Tensor) -> Parameters:
        keep = torch._C._autograd._get_current_graph_task_keep_graph()
        with around(), f.in_place(everything):
            found = transposed_product(
                out, leaves, u, keep_graph=keep, create=torch.is_grad_enabled()
            )
        if comparable:
            error = contradiction(u.detach(), slope, found, displaced)
            if error is not None:
                choice.give_up(way, error)
                raise value_error(
                    "x",
                    "a batch on which the network is differentiated as on those before",
                    "one for which J (θ - θ_0) was wrong, as its backward pass shows",
                    "Repeat this step: from now on another way is taken.",
                ) from error
        return found

    numbers: Tensor = _Linear.apply(value + slope, transposed, x, *trained.values())
    return numbers


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, transposed: Any, x: Tensor, *delta: Tensor) -> Tensor:
        ctx.transposed = transposed
        return value.view_as(value)

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
