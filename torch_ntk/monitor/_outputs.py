"""Outputs on the probe: of the network now, and of its linearization at the anchor."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd.graph import disable_saved_tensors_hooks
from torch.func import jvp

from .._functional import (
    CANNOT_TRANSFORM,
    ModelFunction,
    agree,
    failure,
    model_function,
    quiet,
)
from .._types import Parameters
from ..memory import is_out_of_memory
from ._anchor import Anchor

_NO_CHECKPOINTING = "saved tensor hooks, which activation checkpointing uses, are refused here"
_REMEDY = "Leave out what needs it: metrics=(...) without 'linearization_gap'."


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
    """`f_t^lin = f_0 + ⟨θ_t - θ_0, ∇f_0⟩` on the probe, `[N, O]`.

    The gradients are taken in `dtype` and added to f_0 in its precision. The buffers are those of
    the anchor. Every parameter that has moved counts, also one that was
    frozen when the anchor was taken.

    Raises:
        ValueError: The network cannot be differentiated, or checkpoints activations.
    """
    theta_0 = _floating(anchor.params, dtype)
    current = {n: p.detach().to(dtype) for n, p in network.named_parameters() if n in theta_0}
    delta = {n: p - theta_0[n] for n, p in current.items()}
    moved = {n: d for n, d in delta.items() if bool(d.any())}
    forwards = anchor.forwards and moved.keys() <= set(anchor.trained)
    slopes = _slopes(network, anchor, moved, dtype, batch_size, anchor.probe.x, forwards)
    return anchor.outputs + slopes


def check_linearizable(network: nn.Module, anchor: Anchor, dtype: torch.dtype) -> bool:
    """Raise at the anchor, on one sample, what `linearized_outputs` would raise steps later.

    Returns:
        Whether forward mode gives the slopes as well. It is asked for large networks only, for
        which it takes a third of the time.

    Raises:
        ValueError: As `linearized_outputs`.
    """
    theta_0 = _floating(anchor.params, dtype)
    direction = {n: theta_0[n] for n in anchor.trained}
    one = anchor.probe.x[:1]
    slopes = _slopes(network, anchor, direction, dtype, 1, one)
    if dtype == torch.float64:
        return False
    try:
        forwards = _slopes(network, anchor, direction, dtype, 1, one, forwards=True)
    except CANNOT_TRANSFORM:
        return False
    return agree([forwards], [slopes])


def _slopes(
    network: nn.Module,
    anchor: Anchor,
    delta: Parameters,
    dtype: torch.dtype,
    batch_size: int,
    x: Tensor,
    forwards: bool = False,
) -> Tensor:
    """⟨δ, ∇f_0⟩ `[N, O]` for a displacement δ of some of the parameters, or 0 if there is none."""
    if not delta:
        return torch.zeros((), dtype=dtype, device=x.device)
    with quiet(network, x.device), disable_saved_tensors_hooks(_NO_CHECKPOINTING):
        fn = model_function(network, list(anchor.trained), dtype)
        theta_0 = _floating(anchor.params, dtype)
        fixed = {
            **_floating(anchor.buffers, dtype),
            **{n: t for n, t in theta_0.items() if n not in delta},
        }
        start = {n: theta_0[n] for n in delta}
        parts = fn.input("probe", x).split(batch_size)  # type: ignore[no-untyped-call]
        try:
            way = _slope_forwards if forwards else _slope
            return torch.cat([way(fn, fixed, start, delta, part) for part in parts])
        except (RuntimeError, NotImplementedError) as error:
            if is_out_of_memory(error):
                raise
            raise failure(error, "linearize the outputs of the model", _REMEDY) from error


def _slope(
    fn: ModelFunction, fixed: Parameters, theta_0: Parameters, delta: Parameters, x: Tensor
) -> Tensor:
    r"""`⟨δ, ∇f⟩` at θ_0 by reverse mode twice.

    The gradient of `⟨u, f⟩` is linear in u, so the gradient of `⟨δ, ∇_θ ⟨u, f⟩⟩` in u is the slope
    of every output along δ. Forward mode takes one pass, but does not know every operation and
    does not stop where a forward stops its gradients with `torch.no_grad()`.
    """
    leaves = {n: t.clone().requires_grad_() for n, t in theta_0.items()}
    # Reentrant checkpointing would lose the gradients of a block without a word. Autograd refuses
    # it once it has to go through the block, as it does on its way to the input.
    x = x.detach().requires_grad_(x.is_floating_point())
    inputs = [x] if x.requires_grad else []

    def gradients(out: Tensor, weight: Tensor, again: bool) -> list[tuple[str, Tensor]]:
        if not out.requires_grad:
            return []
        found = torch.autograd.grad(
            out,
            [*leaves.values(), *inputs],
            weight,
            create_graph=again,
            retain_graph=True,
            allow_unused=True,
        )
        pairs = zip(leaves, found[: len(leaves)], strict=True)
        return [(n, g.to_dense()) for n, g in pairs if g is not None]

    def slope(found: list[tuple[str, Tensor]]) -> Tensor:
        return torch.stack([(g * delta[n]).sum() for n, g in found]).sum()

    with torch.enable_grad():
        # Copies, because a forward may write to its buffers, or to its weights in place.
        out = fn.batch({n: t.clone() for n, t in {**fixed, **leaves}.items()}, x)
        u = torch.zeros_like(out, requires_grad=True)
        found = gradients(out, u, again=True)
        if not found:
            return torch.zeros_like(out)
        if all(g.requires_grad for _, g in found):
            try:
                (result,) = torch.autograd.grad(slope(found), u, retain_graph=True)
                return result
            except RuntimeError as error:
                if is_out_of_memory(error):
                    raise
        # Some operations have no second derivative: then one backward pass for every output.
        rows: list[Tensor] = []
        for unit in torch.eye(out.numel(), dtype=out.dtype, device=out.device):
            rows.append(slope(gradients(out, unit.reshape(out.shape), again=False)).detach())
        return torch.stack(rows).reshape(out.shape)


def _slope_forwards(
    fn: ModelFunction, fixed: Parameters, theta_0: Parameters, delta: Parameters, x: Tensor
) -> Tensor:
    """`⟨δ, ∇f⟩` at θ_0 by forward mode."""
    copies = {n: t.clone() for n, t in fixed.items()}
    slopes: Tensor = jvp(lambda p: fn.batch({**copies, **p}, x), (theta_0,), (delta,))[1]
    return slopes.detach()


def _floating(tensors: Parameters, dtype: torch.dtype) -> Parameters:
    return {n: t.to(dtype) if t.is_floating_point() else t for n, t in tensors.items()}
