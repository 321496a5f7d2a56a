"""Products with the Jacobian J of outputs by parameters, computed by plain backward passes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .._types import Parameters
from ..memory import is_out_of_memory


def leaves_of(theta: Parameters) -> Parameters:
    """The parameters as leaf tensors that require grad, in the same memory."""
    return {k: v.detach().requires_grad_() for k, v in theta.items()}


def transposed_product(
    out: Tensor, leaves: Parameters, u: Tensor, *, keep_graph: bool = True, create: bool = False
) -> Parameters:
    """The product `Jᵀu` by one backward pass, as a dense tensor for each parameter, by name.

    It is zero for a parameter that the outputs do not depend on. u has as many entries as the
    outputs. With `create` the result has a graph.
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
    r"""The product `J δ`, in the shape of `out`, by two backward passes.

    The gradient `Jᵀu` of `⟨u, f⟩` is linear in u. The derivative of `⟨Jᵀu, δ⟩ = ⟨u, J δ⟩` by u is
    therefore J δ, for any u. Random weights u are used, so that the result can be checked:
    `⟨u, J δ⟩` must equal the number `⟨Jᵀu, δ⟩`, to which only the first backward pass contributes.
    If the second pass fails or the numbers differ, the backward pass of some operation has no
    derivative or a wrong one. Then J is computed row by row, with one backward pass for each entry
    of the result.

    Args:
        out: The outputs with their graph. If a module with replaced parameters has computed them,
            the replacements must still be in place, as some backward passes run parts of it again.
        leaves: The parameters with which the outputs were computed, by name.
        delta: The displacement δ of each parameter, in its shape, by name.
        create_graph: Whether the result can be differentiated by δ and by inputs. A result that is
            computed row by row has no graph.
    """
    if not out.requires_grad:
        return torch.zeros_like(out)
    # The weights have absolute values between 0.5 and 1.5. With weights ±1, the error of a wrong
    # derivative would cancel in half of all draws if two samples are equal.
    source = torch.Generator().manual_seed(0)
    drawn = torch.rand(2, *out.shape, generator=source, device="cpu")
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
            # With numbers that are not finite the comparison is false, and the result is returned.
            if not bool(difference > torch.finfo(out.dtype).eps ** 0.5 * size):
                return found
    rows = [
        _inner_product(transposed_product(entry, leaves, torch.ones_like(entry)), delta).detach()
        for entry in out.flatten()
    ]
    return torch.stack(rows).reshape(out.shape)


def _inner_product(a: Parameters, b: Parameters, size: bool = False) -> Tensor:
    """The inner product `Σ a b`, where complex entries count as pairs of real numbers.

    With `size` it is the sum of the absolute values of the terms.
    """
    products = ((v.conj() * b[k]).real for k, v in a.items())
    return torch.stack([(p.abs() if size else p).sum() for p in products]).sum()
