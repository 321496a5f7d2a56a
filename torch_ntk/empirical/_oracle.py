"""The kernel by the plainest loop there is, which shares no code with the methods."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from .._functional import (
    Batch,
    call_model,
    evaluating,
    evaluating_on,
    leaves_reached,
    rows_of,
    select_parameters,
    unwrap,
)
from .._types import ForwardFn, ModelLike, Output, ParameterSelection


def kernel_by_loops(
    model: ModelLike,
    x: Batch,
    output: Output,
    params: ParameterSelection,
    forward_fn: ForwardFn | None = None,
) -> tuple[Tensor, int]:
    """The kernel of the samples `x`, in float64 where the model allows it, and O."""
    if isinstance(model, nn.Module):
        module = unwrap(model)
        names = select_parameters(module, params)
        twin = _in_double(module, x, forward_fn)
        with evaluating_on(twin, None, forward_fn), torch.enable_grad():
            jacobian = _of_module(twin, names, x, forward_fn)
    else:
        assert isinstance(params, Mapping)
        with evaluating(None, x.tensors[0]), torch.enable_grad():
            leaves = {n: p.detach().double().requires_grad_() for n, p in params.items()}
            rows = []
            for s in x.map(Tensor.detach).to(torch.float64).split(1):
                out = rows_of(model(dict(leaves), s.clone().value), s, torch.float64)
                rows.append(_rows(out, leaves))
            jacobian = torch.stack(rows)
    return _contracted(jacobian, output), jacobian.shape[1]


def _of_module(
    module: nn.Module, names: list[str], x: Batch, forward_fn: ForwardFn | None
) -> Tensor:
    """Jacobians `[N, O, P]` by the module's own parameters, which are left as they were."""
    own = dict(module.named_parameters())
    saved = [(t, t.detach().clone()) for t in (*own.values(), *module.buffers())]
    flags = {n: p.requires_grad for n, p in own.items()}
    kind = next((p.dtype for p in own.values() if p.is_floating_point()), torch.float64)
    rows = []
    try:
        for n, p in own.items():
            if p.is_floating_point() or p.is_complex():
                p.requires_grad_(n in names)
        for s in x.to(kind).split(1):
            one = s.map(lambda t: _copied(t, t.requires_grad))
            out = rows_of(call_model(module, one.value, forward_fn), one, kind, forward_fn)
            rows.append(_rows(out, {n: own[n] for n in names}))
            for t, value in saved:  # a forward may write to its parameters and buffers
                t.data.copy_(value)
    finally:
        for t, value in saved:
            t.data.copy_(value)
        for n, p in own.items():
            p.requires_grad_(flags[n])
    return torch.stack(rows)


def _rows(out: Tensor, leaves: Mapping[str, Tensor]) -> Tensor:
    """The Jacobian `[O, P]` of one sample's outputs."""
    rows = []
    for f in out.reshape(-1):
        found: tuple[Tensor | None, ...] = (None,) * len(leaves)
        if f.requires_grad:
            found = torch.autograd.grad(
                f, list(leaves.values()), retain_graph=True, allow_unused=True
            )
        row = []
        for p, g in zip(leaves.values(), found, strict=True):
            dense = torch.zeros_like(p) if g is None else g.to_dense()
            row.append((torch.view_as_real(dense) if dense.is_complex() else dense).reshape(-1))
        rows.append(torch.cat(row).detach())
    return torch.stack(rows)


def _contracted(j: Tensor, output: Output) -> Tensor:
    if output == "full":
        return torch.einsum("nip,mjp->nmij", j, j)
    if output == "diagonal":
        return torch.einsum("nip,mip->nmi", j, j)
    if output == "pseudo":
        total = j.sum(1) / math.sqrt(j.shape[1])
        return total @ total.T
    trace = torch.einsum("nip,mip->nm", j, j)
    return trace / j.shape[1] if output == "mean" else trace


def _copied(t: Tensor, tracked: bool) -> Tensor:
    """A copy of an input; autograd goes on to it if the forward is to differentiate by it."""
    return t.detach().requires_grad_().clone() if tracked else t.detach().clone()


def _in_double(module: nn.Module, x: Batch, forward_fn: ForwardFn | None) -> nn.Module:
    """A copy in float64, if it can be one; else the module itself.

    It cannot if the copy reaches parameters of the original, through a closure or a list.
    """
    kinds = {p.dtype for p in module.parameters() if p.is_floating_point()}
    if kinds <= {torch.float64} and not any(p.is_inference() for p in module.parameters()):
        return module
    try:
        with torch.inference_mode(False):  # autograd does not follow what is made in that mode
            twin = copy.deepcopy(module).double()
    except (RuntimeError, TypeError):
        return module
    with evaluating_on(module, None, forward_fn), evaluating(twin, None), torch.enable_grad():
        one = x[:1].map(lambda t: _copied(t, False)).to(torch.float64)
        try:
            out = call_model(twin, one.value, forward_fn)
            out = rows_of(out, one, torch.float64, forward_fn)
        except RuntimeError:
            return module
        reached = leaves_reached(out)
    return module if any(id(p) in reached for p in module.parameters()) else twin
