"""Derivatives of any order of a function of parameters along a displacement.

Each method computes `d^k/dt^k f(θ_0 + t δ)` at t = 0 for k = 0 … order, without forming a Jacobian
or a tensor of higher derivatives.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from math import factorial, sqrt
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor
from torch.func import grad, jvp

from .._checks import value_error
from .._functional import agree, failure, leaves_of, slope, transposed_product
from .._types import Parameters
from ..memory import is_out_of_memory


class ParameterFunction(Protocol):
    """A function of parameters that can also be differentiated by plain backward passes."""

    def __call__(self, params: Parameters) -> Tensor:
        """The outputs, computed by a call that torch.func can transform."""

    def evaluated(self, params: Parameters) -> AbstractContextManager[Tensor]:
        """The outputs; the network keeps `params` within the block, for backward passes there."""


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
    """The derivatives in nested forward mode."""

    def value_at(t: Tensor) -> tuple[Tensor, ...]:
        return (f({k: v + t * delta[k] for k, v in theta_0.items()}),)

    terms: _Terms = value_at
    for _ in range(order):
        terms = _with_next_derivative(terms)
    tracked = torch.is_grad_enabled()
    with torch.enable_grad():  # without it, some rules return tensors without further derivatives
        found = terms(_zero(theta_0))
    return found if tracked else tuple(term.detach() for term in found)


def backwards(
    f: ParameterFunction, theta_0: Parameters, delta: Parameters, order: int
) -> tuple[Tensor, ...]:
    """The derivatives by nested backward passes.

    `⟨u, f(θ_0 + t δ)⟩` is differentiated with respect to t once for each order. The results are
    linear in u, so that one more backward pass with respect to u gives the derivatives of all
    outputs.
    """
    tracked = torch.is_grad_enabled()
    with torch.enable_grad():
        t = _zero(theta_0).requires_grad_()
        with f.evaluated({k: v + t * delta[k] for k, v in theta_0.items()}) as out:
            u = torch.zeros_like(out, requires_grad=True)
            terms, number = [out], (u * out).sum()
            for _ in range(order):
                number = _derivative(number, t, create_graph=True)
                terms.append(_derivative(number, u, create_graph=tracked))
    return tuple(terms) if tracked else tuple(term.detach() for term in terms)


def backwards_by_torch_func(
    f: Callable[[Parameters], Tensor], theta_0: Parameters, delta: Parameters, order: int
) -> tuple[Tensor, ...]:
    """The same by torch.func, for callers that transform the whole expansion by torch.func."""

    def weighted(t: Tensor, u: Tensor) -> Tensor:
        return (u * f({k: v + t * delta[k] for k, v in theta_0.items()})).sum()

    terms, number = [f(theta_0)], weighted
    t, u = _zero(theta_0), torch.zeros_like(terms[0])
    for _ in range(order):
        number = grad(number, argnums=0)
        terms.append(grad(number, argnums=1)(t, u))
    return tuple(terms)


def right_terms(
    f: ParameterFunction, theta_0: Parameters, delta: Parameters, order: int
) -> tuple[Tensor, ...]:
    """The derivatives, after a check with the given parameters and displacement.

    Torch lacks rules for some operations in one of the two modes, and some rules are wrong when
    they are applied twice. Therefore both modes must agree, or one of them must agree with finite
    differences of the derivatives of one order less; otherwise the model is refused. If δ = 0, the
    check uses a random displacement.
    """
    still = {k: d.detach() for k, d in delta.items()}
    has_moved = any(bool(d.any()) for d in still.values())
    if not has_moved:
        still = {k: _random(d) for k, d in still.items()}
    found: dict[Way, tuple[Tensor, ...]] = {}
    problems: list[Exception] = []
    ways: tuple[Way, ...] = (forwards, backwards)
    for way in ways:
        try:
            found[way] = way(f, theta_0, delta if has_moved else still, order)
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            problems.append(failure(error, "expand the outputs of the model"))
    numbers = {way: [term.detach() for term in terms] for way, terms in found.items()}
    if not all(bool(t.isfinite().all()) for terms in numbers.values() for t in terms):
        refuse_gradients_that_are_not_finite(f, theta_0)
    elif len(numbers) < 2 or not all(map(_near, numbers[forwards], numbers[backwards])):
        for way, terms in numbers.items():
            unlike = _unlike_differences(way, terms[1:], f, theta_0, still)
            if unlike is None:
                found = {way: found[way]}
                break
            problems.append(unlike)
        else:
            raise problems[-1]
    way = next(reversed(found))
    return found[way] if has_moved else way(f, theta_0, delta, order)


def refuse_gradients_that_are_not_finite(f: ParameterFunction, theta_0: Parameters) -> None:
    """Raise `ValueError` if the gradients of a plain backward pass have NaN or infinite entries."""
    leaves = leaves_of(theta_0)
    with torch.enable_grad(), f.evaluated(leaves) as out:
        gradient = transposed_product(out, leaves, torch.ones_like(out))
    if not all(bool(g.isfinite().all()) for g in gradient.values()):
        raise value_error(
            "x",
            "a batch at which the gradients of the network's outputs are finite",
            "one at which some are NaN or infinite",
            "Remove or impute such entries of the inputs.",
        )


def _unlike_differences(
    way: Way,
    terms: Sequence[Tensor],
    f: ParameterFunction,
    theta_0: Parameters,
    delta: Parameters,
) -> Exception | None:
    """An error if a derivative differs from the difference quotient of the one before it.

    The difference quotient is taken between θ_0 - h δ and θ_0 + h δ. The first derivative is
    compared with that of plain backward passes instead, because the expansion must have the
    gradients that train the network itself, which end where a forward uses `torch.no_grad()`. h is
    small, so that few kinks of a piecewise linear function lie in between; in float32, rounding
    then leaves two or three correct digits.
    """
    eps = torch.finfo(terms[0].dtype).eps ** 0.5
    length = torch.stack([d.abs().square().sum() for d in delta.values()]).sum().sqrt()
    h = 32 * eps / length

    def lower(step: Tensor) -> list[Tensor]:
        theta = {k: t + step * delta[k] for k, t in theta_0.items()}
        higher = way(f, theta, delta, len(terms) - 1)[2:]
        return [_plain_slope(f, theta, delta), *(term.detach() for term in higher)]

    differences = [(_plain_slope(f, theta_0, delta), 0 * h)]
    for a, b in zip(lower(-h), lower(h), strict=True):
        rounding = eps * length * torch.maximum(a.abs().max(), b.abs().max())
        differences.append(((b - a) / (2 * h), rounding))
    for k, (term, (expected, rounding)) in enumerate(zip(terms, differences, strict=True), start=1):
        if (term - expected).abs().max() > 0.01 * expected.abs().max() + rounding:
            at = (term - expected).abs().argmax()
            return _unlike(term.flatten()[at], expected.flatten()[at], k)
    return None


def _plain_slope(f: ParameterFunction, theta: Parameters, delta: Parameters) -> Tensor:
    leaves = leaves_of(theta)
    with torch.enable_grad(), f.evaluated(leaves) as out:
        return slope(out, leaves, delta).detach()


def _unlike(found: Tensor, expected: Tensor, order: int) -> Exception:
    return value_error(
        "model",
        "a module with the same derivatives in forward mode as in its backward pass",
        f"{float(found):.6g} and {float(expected):.6g} for the derivative of order {order}",
        "It may stop gradients by torch.no_grad() (x.detach() works), or use an operation that "
        "torch differentiates wrongly at higher orders: try order=1.",
    )


def _near(a: Tensor, b: Tensor) -> bool:
    return agree([a], [b], slack=100)


def _random(like: Tensor) -> Tensor:
    """Fixed pseudo-random normal numbers with a norm of about one."""
    kind = torch.complex128 if like.is_complex() else torch.float64
    generator = torch.Generator().manual_seed(like.numel())
    numbers = torch.randn(like.shape, generator=generator, device="cpu", dtype=kind).to(like)
    return numbers / sqrt(max(1, like.numel()))


def _derivative(value: Tensor, by: Tensor, create_graph: bool) -> Tensor:
    """The gradient, or zero if the value does not depend on the variable."""
    if not value.requires_grad:
        return torch.zeros_like(by)
    (found,) = torch.autograd.grad(
        value, by, create_graph=create_graph, retain_graph=True, allow_unused=True
    )
    return torch.zeros_like(by) if found is None else found


def _zero(theta: Parameters) -> Tensor:
    """The real scalar t = 0."""
    first = next(iter(theta.values()))
    return torch.zeros((), dtype=first.dtype.to_real(), device=first.device)


def _with_next_derivative(terms: _Terms) -> _Terms:
    """Turn the function `t -> (f, f', …, f^(k))` into one that also returns `f^(k+1)`."""

    def more(t: Tensor) -> tuple[Tensor, ...]:
        found: Any = jvp(terms, (t,), (torch.ones_like(t),))
        values, slopes = found
        return (*values, slopes[-1])

    return more
