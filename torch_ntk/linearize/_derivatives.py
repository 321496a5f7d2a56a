"""Derivatives of a function of parameters along a displacement, in three ways.

Each way gives `d^k/dt^k f(θ_0 + t δ)` at t = 0 for k = 0 … order; no Jacobian is formed, and no
higher derivative tensor.

- `forwards`: one more forward-mode derivative for each order.
- `backwards`: `⟨u, f(θ_0 + t δ)⟩` differentiated by t in nested backward passes, which gives
  numbers that are linear in u, so one more by u gives them for every output. For order 1 this is
  `⟨Jᵀu, δ⟩ = ⟨u, J δ⟩`. It takes up to twice as long, but knows every operation that has a second
  derivative, and stops where the backward pass of a training step does.
- `row_by_row`: one plain backward pass for each output, for the first order only. Slow, and right
  for whatever can be trained.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from math import factorial
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor
from torch.func import jvp

from .._types import Parameters


class ParameterFunction(Protocol):
    """A function of parameters that can be evaluated for backward passes of its own."""

    def __call__(self, params: Parameters) -> Tensor:
        """The outputs, by a call that torch.func can transform."""

    def evaluated(self, params: Parameters) -> AbstractContextManager[Tensor]:
        """The outputs; within it `params` are in place, for backward passes that run it again."""


Way: TypeAlias = Callable[[ParameterFunction, Parameters, Parameters, int], tuple[Tensor, ...]]
_Terms: TypeAlias = Callable[[Tensor], tuple[Tensor, ...]]


def taylor_sum(terms: Sequence[Tensor]) -> Tensor:
    """`Σ_k terms[k] / k!`, the Taylor polynomial at t = 1."""
    value, *derivatives = terms
    for k, derivative in enumerate(derivatives, start=1):
        value = value + derivative / factorial(k)
    return value


def expand(
    f: Callable[[Parameters], Tensor],
    theta_0: Parameters,
    delta: Parameters,
    order: int,
) -> Tensor:
    r"""`Σ_{k=0}^{order} (1/k!) d^k/dt^k f(θ_0 + t δ)` at t = 0, in forward mode.

    The result can be differentiated with respect to δ by reverse mode.

    Args:
        f: Maps parameters to outputs.
        theta_0: The point of expansion.
        delta: The displacement θ - θ_0, with the same names and shapes.
        order: The highest power of δ; 1 is the linearization
            `f(θ_0) + ⟨δ, ∇f(θ_0)⟩` (Lee et al. 2019).
    """
    return taylor_sum(forwards(f, theta_0, delta, order))


def forwards(
    f: Callable[[Parameters], Tensor], theta_0: Parameters, delta: Parameters, order: int
) -> tuple[Tensor, ...]:
    """The derivatives in (nested) forward mode."""
    if order == 0:
        return (f(theta_0),)
    tracked = torch.is_grad_enabled()
    with torch.enable_grad():  # without it, some rules give what has no further derivative
        # With the parameters themselves as primals, reverse mode sees δ only in the tangent;
        # through θ_0 + t δ it would also go back through the value, for a gradient of zero.
        found = _jvp(f, theta_0, delta) if order == 1 else _nested(f, theta_0, delta, order)
    return found if tracked else tuple(term.detach() for term in found)


def _nested(
    f: Callable[[Parameters], Tensor], theta_0: Parameters, delta: Parameters, order: int
) -> tuple[Tensor, ...]:
    def value_at(t: Tensor) -> tuple[Tensor, ...]:
        return (f({k: v + t * delta[k] for k, v in theta_0.items()}),)

    terms: _Terms = value_at
    for _ in range(order):
        terms = _with_next_derivative(terms)
    return terms(_zero(theta_0))


def backwards(
    f: ParameterFunction, theta_0: Parameters, delta: Parameters, order: int
) -> tuple[Tensor, ...]:
    """The derivatives by nested backward passes and one more by the weights u of the outputs."""
    tracked = torch.is_grad_enabled()
    with torch.enable_grad():
        t = _zero(theta_0).requires_grad_()
        with f.evaluated({k: v + t * delta[k] for k, v in theta_0.items()}) as out:
            u = torch.zeros_like(out, requires_grad=True)
            terms, slope = [out], (u * out).sum()
            for _ in range(order):
                slope = _derivative(slope, t, create_graph=True)
                terms.append(_derivative(slope, u, create_graph=tracked))
    return tuple(terms) if tracked else tuple(term.detach() for term in terms)


def row_by_row(
    f: ParameterFunction, theta_0: Parameters, delta: Parameters, order: int
) -> tuple[Tensor, ...]:
    """The value and J δ, of which each entry takes one plain backward pass.

    It cannot be differentiated by inputs.
    """
    assert order == 1
    leaves = leaves_of(theta_0)
    with torch.enable_grad(), f.evaluated(leaves) as out:
        rows = [
            inner_product(transposed_product(out, leaves, unit), delta)
            for unit in torch.eye(out.numel(), dtype=out.dtype, device=out.device)
        ]
        value = out.detach()
    return value, torch.stack(rows).reshape(value.shape) if rows else value


def leaves_of(theta: Parameters) -> Parameters:
    """The same numbers as tensors that gradients can be taken by."""
    return {k: v.detach().requires_grad_() for k, v in theta.items()}


def transposed_product(
    out: Tensor, leaves: Parameters, u: Tensor, *, keep_graph: bool = True, create: bool = False
) -> Parameters:
    """`Jᵀu` by one backward pass; zero for what the outputs do not depend on."""
    found: Sequence[Tensor | None] = [None] * len(leaves)
    if out.requires_grad:
        found = torch.autograd.grad(
            out,
            list(leaves.values()),
            u.reshape(out.shape),
            retain_graph=keep_graph or create,
            create_graph=create,
            allow_unused=True,
        )
    return {
        k: torch.zeros_like(leaf) if g is None else g.to_dense()
        for (k, leaf), g in zip(leaves.items(), found, strict=True)
    }


def inner_product(a: Parameters, b: Parameters) -> Tensor:
    """`Σ a b`, of complex entries that of their real and imaginary parts."""
    return torch.stack([(v.conj() * b[k]).real.sum() for k, v in a.items()]).sum()


def _derivative(value: Tensor, by: Tensor, create_graph: bool) -> Tensor:
    """The gradient, or zero where there is none."""
    if not value.requires_grad:
        return torch.zeros_like(by)
    (found,) = torch.autograd.grad(
        value, by, create_graph=create_graph, retain_graph=True, allow_unused=True
    )
    return torch.zeros_like(by) if found is None else found


def _zero(theta: Parameters) -> Tensor:
    """The place t = 0, a real number."""
    first = next(iter(theta.values()))
    return torch.zeros((), dtype=first.dtype.to_real(), device=first.device)


def _with_next_derivative(terms: _Terms) -> _Terms:
    """From `t -> (f, f', …, f^(k))` to the same with one derivative more."""

    def more(t: Tensor) -> tuple[Tensor, ...]:
        values, slopes = _jvp(terms, t, torch.ones_like(t))
        return (*values, slopes[-1])

    return more


def _jvp(f: Callable[[Any], Any], primal: Any, tangent: Any) -> tuple[Any, Any]:
    """The value of `f` and its derivative; `torch.func.jvp` is typed for three results."""
    value, slope = jvp(f, (primal,), (tangent,))  # type: ignore[misc]
    return value, slope
