"""What is added to random features: encodings of positions, tokens, and norms of such sums."""

# ruff: noqa: E501  # tables are easier to read with one row a line
from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from small_nets import Function, dense
from test_lift_sequences import finite, sequences
from torch import Tensor, nn

from torch_ntk import NTKSelfAttention, analytic_kernels, analytic_nngp, analytic_ntk

DOUBLE = {"dtype": torch.float64}


class Transformer(nn.Module):
    """A token before the others, encodings of positions, norms before attention and layers."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.embed, self.up, self.down, self.out = (
            dense(3, n),
            dense(n, n),
            dense(n, n),
            dense(n, n),
        )
        self.attention = NTKSelfAttention(n, n, **DOUBLE)
        self.norms = nn.ModuleList(nn.LayerNorm(n, **DOUBLE) for _ in range(3))
        generator = torch.Generator().manual_seed(1)
        wave = torch.tensor([1.0, -0.5, 0.3, 0.1], **DOUBLE).repeat(n // 4)
        places = torch.randn(1, 5, 1, generator=generator, **DOUBLE)
        self.register_buffer("token", wave.flip(0)[None, None])
        self.register_buffer("places", places * wave)

    def forward(self, x: Tensor) -> Tensor:
        token = self.token.expand(x.shape[0], -1, -1)
        h = torch.cat([token, self.embed(x)], 1) + self.places
        h = h + self.attention(self.norms[0](h))
        h = h + self.down(torch.relu(self.up(self.norms[1](h))))
        return self.out(self.norms[2](h)[:, 0])


def test_a_transformer_with_a_token() -> None:
    finite(Transformer, 128, 40, (sequences(2), sequences(2, 1)))


def test_its_derivatives_by_the_inputs() -> None:
    x, y = sequences(2).requires_grad_(), sequences(1, 1)
    net = Transformer(4)
    assert torch.autograd.gradcheck(lambda a: analytic_ntk(net, a, y), x, fast_mode=True, atol=1e-6)


class Known(nn.Module):
    """A layer, what a test does with it and its buffer, and another layer."""

    def __init__(self, forward: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.last = dense(3, 4), dense(4, 2)
        self.register_buffer(
            "e", torch.randn(4, 4, generator=torch.Generator().manual_seed(4), **DOUBLE)
        )
        self._written = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self._written(self.first(x), self.e))


def norm(t: Tensor) -> Tensor:
    return nn.functional.layer_norm(t, (4,))


# Two ways of writing one network.
SAME: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]] = {
    "two encodings": (lambda h, e: norm(h + e + e.flip(0)), lambda h, e: norm(h + (e + e.flip(0)))),
    "scaled": (lambda h, e: norm(2 * (h + e) - e), lambda h, e: norm(2 * h + e)),
    "less its mean": (lambda h, e: norm(h + (e + 3)), lambda h, e: norm(h + (e - e.mean(-1, keepdim=True)))),
    "one position": (lambda h, e: norm((h + e)[:, 1]), lambda h, e: norm(h + e)[:, 1]),
    "in another layout": (lambda h, e: norm((h + e).mT.contiguous().mT.flip(1)), lambda h, e: norm(h + e).flip(1)),
    "of one token": (lambda h, e: norm((h[:, :1] + e[:1]).flatten(1)), lambda h, e: norm(h[:, 0] + e[0])),
    "a token": (lambda h, e: norm(torch.cat([e[None, :1].expand(h.shape[0], -1, -1), h[:, 1:] + e[1:]], 1)), lambda h, e: norm(h * MASK + e)),
}  # fmt: skip
MASK = torch.tensor([[0.0], [1.0], [1.0], [1.0]], **DOUBLE)


@pytest.mark.parametrize("name", SAME)
def test_one_sum_in_two_ways(name: str) -> None:
    x1, x2 = sequences(3), sequences(2, 1)
    one, two = (Known(f) for f in SAME[name])
    for other in (None, x2):
        got, wanted = analytic_kernels(one, x1, other), analytic_kernels(two, x1, other)
        for mine, right in zip(got, wanted, strict=True):
            torch.testing.assert_close(mine, right, rtol=1e-10, atol=1e-12)


def test_rms_norm_of_any_features() -> None:
    """K/(s s') with s² = K(x, x), whatever their mean."""
    x = torch.randn(3, 4, **DOUBLE)
    first, second = dense(4, 6), dense(6, 2, 1.0, 0.0)
    inside = analytic_nngp(nn.Sequential(first, nn.ReLU()), x)
    net = nn.Sequential(first, nn.ReLU(), nn.RMSNorm(6, 0.1, **DOUBLE), second)
    s = (inside.diagonal() + 0.1).sqrt()
    torch.testing.assert_close(analytic_nngp(net, x), inside / (s[:, None] * s), rtol=1e-7, atol=0)


def test_a_mean_that_is_not_known_is_refused() -> None:
    net = nn.Sequential(dense(4, 6), Function(lambda t: nn.functional.layer_norm(t.relu(), (6,))))
    with pytest.raises(ValueError, match=r"mean over channels is not 0.*RMSNorm"):
        analytic_ntk(net, torch.randn(2, 4, **DOUBLE))
