"""Power series Σ_j a_j b_j c^j for all pairs of samples, with memory-saving derivatives."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# A term is negligible if a bound of it is below this share of the sum of the bounds of all terms.
_NEGLIGIBLE = 1e-17


class PowerSeries(torch.autograd.Function):
    """Σ_j a_j b_j c^j for |c| ≤ 1, by Horner's rule, without storing intermediate sums.

    `a` and `b` are `[..., J]`; without their last dimension they broadcast against `c`.
    """

    @staticmethod
    def forward(c: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """Return the sum in the broadcast shape."""
        return _series(c, a, b)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        """Save the arguments for the backward pass."""
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients by `c`, `a` and `b`, which can be differentiated again."""
        c, a, b = ctx.saved_tensors
        by_c = by_a = by_b = None
        if ctx.needs_input_grad[0]:
            degree = torch.arange(1, a.shape[-1], dtype=c.dtype, device=c.device)
            rise = PowerSeries.apply(c, a[..., 1:] * degree, b[..., 1:])
            by_c = (gradient * rise).sum_to_size(c.shape)
        if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
            columns_a, columns_b = [], []
            power = gradient
            for j in range(a.shape[-1]):
                columns_a.append((power * b[..., j]).sum_to_size(a.shape[:-1]))
                columns_b.append((power * a[..., j]).sum_to_size(b.shape[:-1]))
                power = power * c
            by_a, by_b = torch.stack(columns_a, dim=-1), torch.stack(columns_b, dim=-1)
        return by_c, by_a, by_b


def _series(c: Tensor, a: Tensor, b: Tensor) -> Tensor:
    shape = torch.broadcast_shapes(  # type: ignore[no-untyped-call]
        c.shape, a.shape[:-1], b.shape[:-1]
    )
    if 0 in shape or a.shape[-1] == 0:
        return c.new_zeros(shape)
    last, step = _last_and_step(_largest(a) * _largest(b))
    base = c if step == 1 else c * c
    total = c.new_zeros(shape)
    for j in range(last, -1, -step):
        total.mul_(base).addcmul_(a[..., j], b[..., j])
    return total.mul_(c) if last % step else total


def _last_and_step(bounds: Tensor) -> tuple[int, int]:
    """Return the index of the last term that is summed, and the step between terms: 1 or 2.

    The step is 2 if all terms of the other parity are negligible, as for odd or even activations.
    """
    counts = (bounds > _NEGLIGIBLE * bounds.sum()).nonzero().flatten()
    if not len(counts):
        return 0, 1
    last = int(counts[-1])
    return last, 2 if bool(((counts - last) % 2 == 0).all()) else 1


def _largest(a: Tensor) -> Tensor:
    return a.abs().reshape(-1, a.shape[-1]).amax(0)
