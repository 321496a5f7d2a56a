"""P for the parameters of a model, by their names."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def named(model: nn.Module) -> dict[str, nn.Parameter]:
    every = model.named_parameters()
    return {n.replace("_orig_mod.", ""): p for n, p in every if p.requires_grad}


def scales(model: nn.Module, kind: str) -> dict[str, Tensor]:
    """P that varies, or is one number for a parameter, or either in turn."""
    generator = torch.Generator().manual_seed(7)
    found = {}
    for k, (n, p) in enumerate(named(model).items()):
        varied = torch.rand(p.shape, generator=generator, dtype=torch.float64) * 3 + 0.1
        one = float(torch.rand((), generator=generator)) + 0.3
        is_one = {"uniform": True, "varied": False, "even": k % 2 == 0, "odd": k % 2 == 1}[kind]
        found[n] = torch.full_like(varied, one) if is_one else varied
    return found


def times_root(j: Tensor, p: dict[str, Tensor]) -> Tensor:
    """J P^½ of a Jacobian `[N, O, P]` in the order of the parameters."""
    return j * torch.cat([t.reshape(-1) for t in p.values()]).sqrt()
