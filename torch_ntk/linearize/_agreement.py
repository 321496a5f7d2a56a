"""Whether a function has the same derivatives forwards as backwards."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.func import grad, vjp

from .._checks import value_error
from .._types import Parameters
from ._expand import derivatives_along
from ._plain_norms import PlainNorms


def check_derivatives_agree(
    f: Callable[[Parameters], Tensor], theta_0: Parameters, order: int
) -> None:
    """Raise unless forward mode and nested backward passes give the same derivatives of `f`.

    An expansion is made of derivatives in forward mode; training the network itself goes
    backwards. They differ where a forward stops gradients with `torch.no_grad()` (forward mode
    does not stop there), where an `autograd.Function` has a `jvp` that does not belong to its
    `backward`, and for some operations whose forward-mode rules are right once but not twice.

    Compared are the derivatives up to `order` of `⟨u, f(θ_0 + t v)⟩` at t = 0. The direction v is
    Jᵀu, in which nothing cancels, and a fixed one besides, for the case that Jᵀu vanishes and
    should not.

    Raises:
        ValueError: Two of the numbers differ by more than rounding.
    """
    out, pull = vjp(f, theta_0)  # type: ignore[misc]  # typed for three results
    u = torch.linspace(1.0, 0.5, max(out.numel(), 1), dtype=out.dtype, device=out.device)
    u = u[: out.numel()].reshape(out.shape)
    (gradient,) = pull(u)
    v = {k: _unit(g) + _unit(_fixed(g)) for k, g in gradient.items()}
    products = [gradient[k] * v[k] for k in v]
    backwards = [sum(float(p.sum()) for p in products)]
    size = sum(float(p.abs().sum()) for p in products)
    for k in range(2, order + 1):
        backwards.append(_derivative_backwards(f, theta_0, u, v, k))
    tolerance = 100 * torch.finfo(out.dtype).eps ** 0.5
    terms = [u * d for d in derivatives_along(f, theta_0, v, order)[1:]]
    for k, (term, other) in enumerate(zip(terms, backwards, strict=True), start=1):
        one = float(term.sum())
        scale = max(float(term.abs().sum()), abs(other), size if k == 1 else 0.0)
        if not abs(one - other) <= tolerance * scale:
            raise value_error(
                "model",
                "a module with the same derivatives in forward mode as in its backward pass",
                f"{one:.6g} forwards and {other:.6g} backwards for the derivative of order {k}",
                "Its forward may use torch.no_grad(), which forward mode ignores "
                "(x.detach() works in both)"
                + (
                    "."
                    if order == 1
                    else ", or an operation for which torch's forward mode is not right at "
                    "higher orders: try order=1."
                ),
            )


def _derivative_backwards(
    f: Callable[[Parameters], Tensor], theta_0: Parameters, u: Tensor, v: Parameters, order: int
) -> float:
    def along(t: Tensor) -> Tensor:
        return (u * f({k: p + t * v[k] for k, p in theta_0.items()})).sum()

    derivative: Callable[[Tensor], Any] = along
    for _ in range(order):
        derivative = grad(derivative)
    with PlainNorms():  # the third derivative of torch's layer_norm is wrong backwards as well
        return float(derivative(torch.zeros((), dtype=u.dtype, device=u.device)))


def _fixed(like: Tensor) -> Tensor:
    """Entries of both signs, always the same ones."""
    counted = torch.arange(like.numel(), dtype=torch.float64, device=like.device)
    return counted.cos().to(like.dtype).reshape(like.shape)


def _unit(v: Tensor) -> Tensor:
    norm = torch.linalg.vector_norm(v)
    return v / norm if bool(norm > 0) else v
