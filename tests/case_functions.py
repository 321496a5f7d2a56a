"""Networks for the table of cases whose outputs are more than what a stack of layers returns."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence


class RotaryLanguageModel(nn.Module):
    """LLaMA's block as it was first written: positions are rotations, kept as complex numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.last = nn.Embedding(11, 8), nn.Linear(8, 3, bias=False)
        self.norm, self.mixed = nn.RMSNorm(8), nn.Linear(8, 24, bias=False)
        self.gate, self.up, self.down = nn.Linear(8, 6), nn.Linear(8, 6), nn.Linear(6, 8)
        frequencies = 100.0 ** -torch.arange(0, 4, 2, dtype=torch.float64).div(4)
        angles = torch.outer(torch.arange(8, dtype=torch.float64), frequencies)
        self.register_buffer("freqs_cis", torch.polar(torch.ones_like(angles), angles))

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.embedding(tokens)
        n, t, _ = h.shape
        q, k, v = self.mixed(self.norm(h)).view(n, t, 3, 2, 4).permute(2, 0, 3, 1, 4)
        q, k = self._rotated(q), self._rotated(k)
        h = h + F.scaled_dot_product_attention(q, k, v, is_causal=True).mT.reshape(n, t, 8)
        h = h + self.down(F.silu(self.gate(h)) * self.up(h))
        return self.last(self.norm(h[:, -1]))

    def _rotated(self, x: Tensor) -> Tensor:
        pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], 2, 2))
        turned = pairs * self.freqs_cis[: x.shape[-2]].to(pairs.dtype)
        return torch.view_as_real(turned).flatten(-2)


class Field(nn.Module):
    """A function of a point in space and time."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh())
        self.last = nn.Linear(6, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.layers(x))


def residual(net: nn.Module, x: Tensor) -> Tensor:
    """Of the heat equation, `∂u/∂t - ∂²u/∂s²`, as physics-informed networks are trained."""
    with torch.enable_grad():
        x = x if x.requires_grad else x.requires_grad_()
        (first,) = torch.autograd.grad(net(x).sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(first[:, 0].sum(), x, create_graph=True)
    return first[:, 1] - second[:, 0]


class Energy(nn.Module):
    """Energy and forces of atoms: the forward differentiates by the positions."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 6), nn.SiLU(), nn.Linear(6, 1))

    def forward(self, positions: Tensor) -> Tensor:
        with torch.enable_grad():
            r = positions if positions.requires_grad else positions.requires_grad_()
            distances = (r[:, :, None] - r[:, None]).square().sum(-1)
            energy = self.net(distances).sum((1, 2))
            (gradient,) = torch.autograd.grad(energy.sum(), r, create_graph=True)
        return torch.cat([energy[:, None], -gradient.flatten(1)], dim=1)


class Packed(nn.Module):
    """An LSTM over sequences of different lengths."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 4, batch_first=True)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
        return self.head(self.lstm(packed)[1][0][-1])


def with_lengths(x: Tensor) -> tuple[Tensor, Tensor]:
    return x, 2 + x[:, 0].argmax(1)


class Autoencoder(nn.Module):
    """A variational one, of noise that is drawn outside."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(5, 4), nn.Linear(2, 5)

    def loss(self, x: Tensor, noise: Tensor) -> Tensor:
        """The negative evidence bound of each sample."""
        mean, log_var = self.encoder(x).chunk(2, dim=1)
        again = self.decoder(mean + noise * (0.5 * log_var).exp())
        divergence = 0.5 * (mean.square() + log_var.exp() - 1 - log_var).sum(1)
        return (again - x).square().sum(1) + divergence


def with_noise(x: Tensor) -> dict[str, Tensor]:
    return {"x": x[:, :5], "noise": x[:, 5:]}


def evidence(net: nn.Module, batch: Any) -> Tensor:
    return net.loss(**batch)  # type: ignore[operator]
