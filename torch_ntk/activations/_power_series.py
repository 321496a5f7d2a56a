"""A power series whose coefficients are products of one factor per side."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# Terms that together cannot add more than this share of the sum are left out.
_NEGLIGIBLE = 1e-17


class PowerSeries(torch.autograd.Function):
    """Σ_j a_j b_j c^j for |c| ≤ 1, by Horner's rule, with derivatives that keep no intermediates.

    `a` and `b` are `[..., J]`; without their last dimension they broadcast against `c`.
    """

    @staticmethod
    def forward(c: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """The sum, in the broadcast shape."""
        return _series(c, a, b)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        """Keep the arguments."""
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Derivatives by `c`, `a` and `b`, which can be differentiated again."""
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
    last, step = _needed(_largest(a) * _largest(b))
    base = c if step == 1 else c * c
    total = c.new_zeros(shape)
    for j in range(last, -1, -step):
        total.mul_(base).addcmul_(a[..., j], b[..., j])
    return total.mul_(c) if last % step else total


def _needed(bounds: Tensor) -> tuple[int, int]:
    """The last term that counts, and whether every term does (1) or every second (2)."""
    counts = (bounds > _NEGLIGIBLE * bounds.sum()).nonzero().flatten()
    if not len(counts):
        return 0, 1
    last = int(counts[-1])
    return last, 2 if bool(((counts - last) % 2 == 0).all()) else 1


def _largest(a: Tensor) -> Tensor:
    return a.abs().reshape(-1, a.shape[-1]).amax(0)
