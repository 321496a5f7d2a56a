"""Products with the Jacobian J of a network by its parameters, by plain backward passes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .._types import Parameters
from ..memory import is_out_of_memory


def leaves_of(theta: Parameters) -> Parameters:
    """The same numbers as tensors that gradients can be taken by."""
    return {k: v.detach().requires_grad_() for k, v in theta.items()}


def transposed_product(
    out: Tensor, leaves: Parameters, u: Tensor, *, keep_graph: bool = True, create: bool = False
) -> Parameters:
    """`Jᵀu` by one backward pass; zero for what the outputs do not depend on.

    Args:
        out: Outputs of any shape.
        leaves: By name the parameters that they were computed with.
        u: Weights of the outputs.
        keep_graph: Whether another pass follows.
        create: Whether the result can be differentiated.
    """
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


def slope(out: Tensor, leaves: Parameters, delta: Parameters, create_graph: bool = False) -> Tensor:
    r"""`J δ`, in the shape of `out`, by two backward passes.

    The gradient `Jᵀu` of `⟨u, f⟩` is linear in u, and so is `⟨Jᵀu, δ⟩ = ⟨u, J δ⟩`: its derivative
    by u is J δ, at whatever u it is taken. Taken at random weights, the result also proves itself,
    as `⟨u, J δ⟩` has to be the number `⟨Jᵀu, δ⟩`, in which only the first pass took part. If it is
    not, or fails, an operation has a backward pass whose derivative is wrong or missing; then each
    entry of J δ takes one plain backward pass, as a row of J.

    Args:
        out: Outputs, with their graph; what they were computed with is still in place, as some
            backward passes run parts of a network again.
        leaves: By name the parameters that they were computed with.
        delta: A displacement of each of them.
        create_graph: Whether the result can be differentiated, by δ and by inputs; the one that is
            made of rows never can.
    """
    if not out.requires_grad:
        return torch.zeros_like(out)
    # Of sizes between 0.5 and 1.5: with ±1 alone, what is missing would cancel between two samples
    # that are equal in one of two calls.
    drawn = torch.rand(2, *out.shape, generator=torch.Generator().manual_seed(0))
    signs = torch.where(drawn[1] < 0.5, -1.0, 1.0) * (drawn[0] + 0.5)
    u = signs.to(out.device, out.dtype).requires_grad_()
    try:
        gradient = transposed_product(out, leaves, u, create=True)
        along = _inner_product(gradient, delta)
        (found,) = torch.autograd.grad(along, u, create_graph=create_graph, retain_graph=True)
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
    else:
        with torch.no_grad():
            difference = ((u * found).sum() - along).abs()
            size = max(_inner_product(gradient, delta, size=True), (u * found).abs().sum())
            # Of numbers that are not finite nothing can be said.
            if not bool(difference > torch.finfo(out.dtype).eps ** 0.5 * size):
                return found
    rows = [
        _inner_product(transposed_product(entry, leaves, torch.ones_like(entry)), delta).detach()
        for entry in out.flatten()
    ]
    return torch.stack(rows).reshape(out.shape)


def _inner_product(a: Parameters, b: Parameters, size: bool = False) -> Tensor:
    """`Σ a b`, of complex entries that of real and imaginary parts; or the sum of the sizes."""
    products = ((v.conj() * b[k]).real for k, v in a.items())
    return torch.stack([(p.abs() if size else p).sum() for p in products]).sum()
