"""The kernel by the plainest loop there is, which shares no code with the methods."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from .._functional import evaluating, select_parameters, unwrap
from .._types import ModelLike, Output, ParameterSelection


def kernel_by_loops(
    model: ModelLike, x: Tensor, output: Output, params: ParameterSelection
) -> tuple[Tensor, int]:
    """The kernel of the samples `x`, in float64 where the model allows it, and O."""
    if isinstance(model, nn.Module):
        module = unwrap(model)
        names = select_parameters(module, params)
        twin = _in_double(module, x)
        with evaluating(twin, x), torch.enable_grad():
            jacobian = _of_module(twin, names, x)
    else:
        assert isinstance(params, Mapping)
        with evaluating(None, x), torch.enable_grad():
            leaves = {n: p.detach().double().requires_grad_() for n, p in params.items()}
            samples = x.detach().double() if x.is_floating_point() else x.detach()
            rows = [_rows(model(dict(leaves), s[None].clone()), leaves) for s in samples]
            jacobian = torch.stack(rows)
    return _contracted(jacobian, output), jacobian.shape[1]


def _of_module(module: nn.Module, names: list[str], x: Tensor) -> Tensor:
    """Jacobians `[N, O, P]` by the module's own parameters, which are left as they were."""
    own = dict(module.named_parameters())
    saved = [(t, t.detach().clone()) for t in (*own.values(), *module.buffers())]
    flags = {n: p.requires_grad for n, p in own.items()}
    kind = next((p.dtype for p in own.values() if p.is_floating_point()), torch.float64)
    samples = x.detach().to(kind) if x.is_floating_point() else x.detach()
    rows = []
    try:
        for n, p in own.items():
            if p.is_floating_point() or p.is_complex():
                p.requires_grad_(n in names)
        for s in samples:
            one = s[None].clone()
            if x.requires_grad:
                one = one.requires_grad_().clone()
            rows.append(_rows(module(one), {n: own[n] for n in names}))
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


def _in_double(module: nn.Module, x: Tensor) -> nn.Module:
    """A copy in float64, if it can be one; else the module itself.

    It cannot if the copy reaches parameters of the original, through a closure or a list.
    """
    kinds = {p.dtype for p in module.parameters() if p.is_floating_point()}
    if kinds <= {torch.float64}:
        return module
    try:
        twin = copy.deepcopy(module).double()
    except (RuntimeError, TypeError):
        return module
    with evaluating(module, x), evaluating(twin, x), torch.enable_grad():
        one = x[:1].detach()
        try:
            out = twin(one.double() if one.is_floating_point() else one.clone())
        except RuntimeError:
            return module
        originals = {id(p) for p in module.parameters()}
        nodes, seen = [out.grad_fn], set()
        while nodes:
            node = nodes.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            if id(getattr(node, "variable", None)) in originals:
                return module
            nodes.extend(following for following, _ in node.next_functions)
    return twin
