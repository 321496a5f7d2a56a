"""Embeddings whose backward pass leaves out or scales rows, which forward mode does not know."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from oracle import WAYS, Make, Net, built, check, error, inputs, jacobian, numbers, weight
from torch import Tensor, nn

from torch_ntk import linearize

# The first three samples show nothing of it.
TOKENS = torch.tensor([[1, 2, 3], [4, 5, 1], [2, 4, 5], [3, 0, 0], [5, 0, 0]])
# Each of these has a row several times, which `scale_grad_by_freq` counts.
REPEATED = torch.tensor([[1, 2, 3], [4, 4, 1], [2, 2, 2], [3, 0, 0]])


def _embedding(**options: object) -> nn.Embedding:
    layer = nn.Embedding(6, 4, **options)  # type: ignore[arg-type]
    nn.init.normal_(layer.weight)
    return layer


def _language(net: nn.Module, x: Tensor) -> Tensor:
    return F.linear(torch.tanh(net.a(net.e(x))).mean(1), net.e.weight)


MODELS: dict[str, tuple[Make, Tensor]] = {
    "tied": (lambda: Net(_language, e=_embedding(padding_idx=0), a=nn.Linear(4, 4)), TOKENS),
    "untied": (
        lambda: nn.Sequential(_embedding(padding_idx=0), nn.Tanh(), nn.Flatten(), nn.Linear(12, 2)),
        TOKENS,
    ),
    "function": (
        lambda: Net(
            lambda net, x: F.embedding(x, net.w * net.s, padding_idx=0).sum(1),
            w=weight(6, 2),
            s=weight(6, 2),
        ),
        TOKENS,
    ),
    "by frequency": (
        lambda: nn.Sequential(
            _embedding(scale_grad_by_freq=True), nn.Tanh(), nn.Flatten(), nn.Linear(12, 2)
        ),
        REPEATED,
    ),
    "by frequency, tied": (
        lambda: Net(
            _language, e=_embedding(scale_grad_by_freq=True, padding_idx=0), a=nn.Linear(4, 4)
        ),
        REPEATED,
    ),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", MODELS)
def test_value(name: str, way: str) -> None:
    make, tokens = MODELS[name]
    if way == "linearize" and "frequency" in name:
        return  # the linearization of a batch counts over it, as training does; a loop does not
    # Counted over a batch, a frequency couples its samples: then it may be named and refused.
    refusal = "scale_grad_by_freq|frequen|other samples|forward" if "frequency" in name else ""
    check(way, make, tokens, refusal=refusal)


def test_linearized_after_a_batch_without_padding() -> None:
    make, x = MODELS["tied"]
    model, j = built(make), jacobian(built(make), TOKENS)
    lin = linearize(model)
    lin(x[:3])
    steps = [0.1 * inputs(*p.shape, seed=k) for k, p in enumerate(lin.parameters())]
    with torch.no_grad():
        for p, d in zip(lin.parameters(), steps, strict=True):
            p.add_(d)
    moved = torch.einsum("nip,p->ni", j, torch.cat([numbers(d) for d in steps]))
    assert error(lin(x) - model.eval()(x), moved) < 1e-10


def test_verify() -> None:
    check("verify", *MODELS["tied"])
