"""Jacobians of drawn networks by plain backward passes, one output of one sample after another."""

from __future__ import annotations

import torch
from torch import Tensor, nn

Jacobians = dict[str, Tensor]
"""Of each parameter `[N, O, p]`."""


def loop(net: nn.Module, x: Tensor) -> tuple[Tensor, Jacobians]:
    """Outputs `[N, O]` and Jacobians `[N, O, p]` by name, by plain backward passes.

    Each sample goes twice and is read once: of a single image `F.instance_norm` of torch returns
    wrong gradients where the cotangent is laid out with its channels innermost.
    """
    net.eval()
    named = {n: p for n, p in net.named_parameters() if p.requires_grad}
    outputs, rows = [], []
    for sample in x.split(1):
        out = net(torch.cat([sample, sample]))[0].reshape(-1)
        outputs.append(out.detach())
        rows.append([_gradients(f, list(named.values())) for f in out])
    jacobians = {
        name: torch.stack([torch.stack([r[i] for r in sample]) for sample in rows])
        for i, name in enumerate(named)
    }
    return torch.stack(outputs), jacobians


def _gradients(f: Tensor, params: list[Tensor]) -> list[Tensor]:
    if not f.requires_grad:
        return [torch.zeros(p.numel(), dtype=p.dtype) for p in params]
    grads = torch.autograd.grad(f, params, retain_graph=True, allow_unused=True)
    pairs = zip(grads, params, strict=True)
    return [(torch.zeros_like(p) if g is None else g.to_dense()).reshape(-1) for g, p in pairs]


def joined(jacobians: Jacobians, names: list[str]) -> Tensor:
    return torch.cat([jacobians[n] for n in names], dim=2)
