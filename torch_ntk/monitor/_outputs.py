"""Outputs on the probe: of the network now, and of its linearization at the anchor."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .._functional import ModelFunction, model_function, quiet
from .._types import Parameters
from ..linearize import expand
from ._anchor import Anchor


def current_outputs(
    network: nn.Module, trained: tuple[str, ...], x: Tensor, dtype: torch.dtype, batch_size: int
) -> Tensor:
    """f_t on `x`, `[N, O]`, in eval mode with the current parameters and buffers."""
    with quiet(network, x.device):
        fn = model_function(network, list(trained), dtype)
        parts = fn.input("probe", x).split(batch_size)  # type: ignore[no-untyped-call]
        return torch.cat([fn.batch(fn.params, part) for part in parts])


def linearized_outputs(
    network: nn.Module, anchor: Anchor, dtype: torch.dtype, batch_size: int
) -> Tensor:
    """`f_t^lin = f_0 + ⟨θ_t - θ_0, ∇f_0⟩` on the probe, `[N, O]`, by one forward-mode derivative.

    The buffers are those of the anchor. Every parameter that has moved counts, also one that was
    frozen when the anchor was taken.
    """
    with quiet(network, anchor.probe.x.device):
        fn = model_function(network, list(anchor.trained), dtype)
        theta_0 = _floating(anchor.params, dtype)
        buffers = _floating(anchor.buffers, dtype)
        current = {n: p.detach().to(dtype) for n, p in network.named_parameters() if n in theta_0}
        delta = {n: p - theta_0[n] for n, p in current.items()}
        moved = {n: d for n, d in delta.items() if bool(d.any())}
        if not moved:
            return anchor.outputs.to(dtype)
        still = {n: theta_0[n] for n in theta_0 if n not in moved}
        fixed = {**buffers, **still}
        start = {n: theta_0[n] for n in moved}
        parts = fn.input("probe", anchor.probe.x).split(batch_size)  # type: ignore[no-untyped-call]
        return torch.cat([_expand_batch(fn, fixed, start, moved, part) for part in parts])


def _expand_batch(
    fn: ModelFunction, fixed: Parameters, theta_0: Parameters, delta: Parameters, x: Tensor
) -> Tensor:
    def outputs(params: Parameters) -> Tensor:
        own = {n: t.clone() for n, t in fixed.items()}  # a forward may write to its buffers
        return fn.batch({**own, **params}, x)

    return expand(outputs, theta_0, delta, order=1)


def _floating(tensors: Parameters, dtype: torch.dtype) -> Parameters:
    return {n: t.to(dtype) if t.is_floating_point() else t for n, t in tensors.items()}
