"""Taylor expansion of a function of parameters along a displacement, in forward mode."""

from __future__ import annotations

from collections.abc import Callable
from math import factorial
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.func import jvp

from .._types import Parameters
from ._plain_norms import PlainNorms

_Terms: TypeAlias = Callable[[Tensor], tuple[Tensor, ...]]


def expand(
    f: Callable[[Parameters], Tensor],
    theta_0: Parameters,
    delta: Parameters,
    order: int,
) -> Tensor:
    r"""`Σ_{k=0}^{order} (1/k!) d^k/dt^k f(θ_0 + t δ)` at t = 0.

    Each term is one more forward-mode derivative; no Jacobian and no higher derivative tensor is
    formed. The result can be differentiated with respect to δ by reverse mode.

    Args:
        f: Maps parameters to outputs.
        theta_0: The point of expansion.
        delta: The displacement θ - θ_0, with the same names and shapes.
        order: The highest power of δ; 1 is the linearization
            `f(θ_0) + ⟨δ, ∇f(θ_0)⟩` (Lee et al. 2019).
    """
    if order == 0:
        return f(theta_0)
    value, *derivatives = derivatives_along(f, theta_0, delta, order)
    for k, derivative in enumerate(derivatives, start=1):
        value = value + derivative / factorial(k)
    return value


def derivatives_along(
    f: Callable[[Parameters], Tensor], theta_0: Parameters, delta: Parameters, order: int
) -> tuple[Tensor, ...]:
    """`d^k/dt^k f(θ_0 + t δ)` at t = 0 for k = 0 … order, with order at least 1."""
    if order == 1:
        # With the parameters themselves as primals, reverse mode sees δ only in the tangent;
        # through θ_0 + t δ it would also go back through the value, for a gradient of zero.
        return jvp_of(f, theta_0, delta)

    def value_at(t: Tensor) -> tuple[Tensor, ...]:
        return (f({k: v + t * delta[k] for k, v in theta_0.items()}),)

    terms: _Terms = value_at
    for _ in range(order):
        terms = _with_next_derivative(terms)
    first = next(iter(theta_0.values()))
    with PlainNorms():
        return terms(torch.zeros((), dtype=first.dtype, device=first.device))


def _with_next_derivative(terms: _Terms) -> _Terms:
    """From `t -> (f, f', …, f^(k))` to the same with one derivative more."""

    def more(t: Tensor) -> tuple[Tensor, ...]:
        values, slopes = jvp_of(terms, t, torch.ones_like(t))
        return (*values, slopes[-1])

    return more


def jvp_of(f: Callable[[Any], Any], primal: Any, tangent: Any) -> tuple[Any, Any]:
    """The value of `f` and its derivative; `torch.func.jvp` is typed for three results."""
    value, slope = jvp(f, (primal,), (tangent,))  # type: ignore[misc]
    return value, slope
