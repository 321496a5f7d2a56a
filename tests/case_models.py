"""Modules of the table of cases that torch does not have ready-made."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


class TiedEmbedding(nn.Module):
    """Token embedding whose weight is also the readout; gradients that are sparse by request."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.mix = nn.Linear(4, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = torch.tanh(self.mix(self.embedding(tokens).mean(1)))
        return F.linear(hidden, self.embedding.weight)


class Reused(nn.Module):
    """One layer applied several times."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.layer, self.last, self.times = nn.Linear(5, 5), nn.Linear(5, 2), times

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(self.times):
            x = torch.tanh(self.layer(x))
        return self.last(x)


class TiedLinears(nn.Module):
    """Two layers that hold the same weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, 2)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.second(torch.tanh(self.first(x)))))


class LSTMCellLoop(nn.Module):
    """A recurrent network written out by hand, with a state made inside of the forward."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.last = nn.LSTMCell(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(x.shape[0], 4)
        c = torch.zeros_like(h)
        for t in range(x.shape[1]):
            h, c = self.cell(x[:, t], (h, c))
        return self.last(h)


class MaskedAttention(nn.Module):
    """Causal attention with the usual buffer of minus infinities."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.last = nn.Linear(4, 12), nn.Linear(4, 1)
        self.register_buffer("mask", torch.full((3, 3), -torch.inf).triu(1))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        return self.last(F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask))


class FunctionalNet(nn.Module):
    """No layers: bare parameters, slices of them, a scalar one."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(2, 6, 5))
        self.scale = nn.Parameter(torch.tensor(0.7))
        self.unused = nn.Parameter(torch.randn(3))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(F.linear(x, self.w[0]))
        return torch.einsum("nh,hd->nd", h, self.w[1, :, :3]) * self.scale.exp()


class OldSquare(torch.autograd.Function):
    """An autograd.Function of the kind that torch.func cannot transform."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 2 * x * grad


class ExpSquare(torch.autograd.Function):
    """An autograd.Function with everything that torch.func asks for."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.square().exp()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0], output)
        ctx.save_for_forward(inputs[0], output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        x, y = ctx.saved_tensors
        return 2 * x * y * grad

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        x, y = ctx.saved_tensors
        return 2 * x * y * tangent


class StopGradient(nn.Module):
    """A weight whose first use does not count for the derivative."""

    def __init__(self, detach: bool) -> None:
        super().__init__()
        self.layer, self.detach = nn.Linear(5, 5), detach

    def forward(self, x: Tensor) -> Tensor:
        if self.detach:
            target = self.layer(x).detach()
        else:
            with torch.no_grad():
                target = self.layer(x)
        return self.layer(x) * target


class ItemNet(nn.Module):
    """Reads numbers out of tensors: a check of its input, and a setting in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 3)
        self.register_buffer("power", torch.tensor(2))

    def forward(self, x: Tensor) -> Tensor:
        if x.isnan().any().item():
            raise ValueError("bad input")
        return self.layer(x) ** int(self.power.item())


class WritesIntoZeros(nn.Module):
    """Fills a tensor that does not depend on the input with values that do."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        out = torch.zeros(x.shape[0], 3, dtype=x.dtype, device=x.device)
        out[:, 1:] = self.layer(x)
        return out.tanh()


class CountingNet(nn.Module):
    """Leaves something behind in every kind of attribute at each forward pass.

    With `ticks`, also in a tensor that is no buffer, at which torch.func takes offence.
    """

    def __init__(self, ticks: bool) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 3)
        self.ticking = ticks
        self.calls = 0
        self.ticks = torch.zeros(1)
        self.seen: list[Tensor] = []
        self.by_name: dict[str, Tensor] = {}
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.layer(x)
        self.calls += 1
        if self.ticking:
            self.ticks += 1
        self.steps += 1
        self.seen.append(hidden)
        self.by_name["hidden"] = hidden
        self.last_hidden = hidden
        return hidden.sin()


class OwnGenerators(nn.Module):
    """Draws from generators of its own, and those of NumPy and Python, at each forward pass.

    In eval mode nothing depends on what it has drawn.
    """

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 3)
        self.source = torch.Generator().manual_seed(1)
        self.others = [torch.Generator().manual_seed(2)]

    def forward(self, x: Tensor) -> Tensor:
        random.random(), np.random.rand()  # noqa: NPY002
        noise = torch.randn(3, generator=self.source) + torch.rand(3, generator=self.others[0])
        hidden = self.layer(x).sin()
        return hidden + noise.to(hidden) if self.training else hidden


def with_statistics(model: nn.Module) -> nn.Module:
    """Running statistics and affine parameters as after some training."""
    for m in model.modules():
        if isinstance(m, nn.modules.batchnorm._BatchNorm):
            nn.init.normal_(m.running_mean)
            nn.init.uniform_(m.running_var, 0.5, 2.0)
            nn.init.normal_(m.weight)
            nn.init.normal_(m.bias)
    return model


def frozen(model: nn.Module, *names: str) -> nn.Module:
    """The model with the parameters of these names frozen."""
    for name in names:
        model.get_parameter(name).requires_grad_(False)
    return model
