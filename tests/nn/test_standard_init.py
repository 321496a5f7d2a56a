"""The standard parameterization's draw."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from torch_ntk.nn import NTKConv1d, NTKLinear, standard_init_


@pytest.mark.parametrize(
    ("layer", "fan_in"),
    [
        (nn.Linear(300, 200), 300),
        (nn.Conv1d(60, 200, 5), 300),
        (nn.Conv2d(40, 200, (3, 5), groups=2), 300),
        (nn.Conv3d(20, 200, (1, 3, 5)), 300),
        (nn.ConvTranspose1d(60, 200, 5), 300),
        (nn.ConvTranspose2d(40, 200, (3, 5), groups=2), 300),
        (nn.ConvTranspose3d(20, 200, (1, 3, 5)), 300),
    ],
)
def test_variances(layer: nn.Module, fan_in: int) -> None:
    generator = torch.Generator().manual_seed(0)
    assert standard_init_(layer, 1.5, 0.2, generator=generator) is layer
    assert layer.weight.std().item() == pytest.approx(1.5 / math.sqrt(fan_in), rel=0.02)
    assert layer.weight.mean().item() == pytest.approx(0.0, abs=0.002)
    assert layer.bias.std().item() == pytest.approx(0.2, rel=0.25)


def test_leaves_the_rest_and_is_reproducible() -> None:
    net = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 4), nn.LayerNorm(4), nn.Bilinear(4, 4, 2))
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    state = torch.get_rng_state()
    standard_init_(net, 1.0, 0.0, generator=torch.Generator().manual_seed(1))
    assert torch.equal(torch.get_rng_state(), state)
    changed = {n for n, p in net.named_parameters() if not torch.equal(p, before[n])}
    assert changed == {"1.weight", "1.bias"}
    assert not bool(net[1].bias.any())
    first = net[1].weight.detach().clone()
    standard_init_(net, 1.0, 0.0, generator=torch.Generator().manual_seed(1))
    assert torch.equal(net[1].weight, first)
    assert net[1].weight.requires_grad


def test_leaves_layers_of_other_kinds_as_its_documentation_says() -> None:
    net = nn.ModuleDict(
        {
            "bilinear": nn.Bilinear(3, 3, 2),
            "lstm": nn.LSTM(3, 2),
            "cell": nn.GRUCell(3, 2),
            "norm": nn.BatchNorm1d(3),
            "embedding": nn.EmbeddingBag(3, 2),
            "attention": nn.MultiheadAttention(4, 2),
        }
    )
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    standard_init_(net, generator=torch.Generator().manual_seed(1))
    changed = {n for n, p in net.named_parameters() if not torch.equal(p, before[n])}
    assert changed == {"attention.out_proj.weight", "attention.out_proj.bias"}
    for named in ("Bilinear", "LSTM", "MultiheadAttention", "embeddings"):
        assert named in str(standard_init_.__doc__)


def test_a_tied_weight_is_drawn_once() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    net[1].weight = net[0].weight
    standard_init_(net, 1.0, 0.1, generator=torch.Generator().manual_seed(1))
    alone = standard_init_(nn.Linear(4, 4), 1.0, 0.1, generator=torch.Generator().manual_seed(1))
    assert torch.equal(net[0].weight, alone.weight)


def pruned() -> nn.Module:
    layer = nn.Linear(4, 4)
    prune.l1_unstructured(layer, "weight", 0.5)
    return layer


@pytest.mark.parametrize(
    ("model", "arguments", "error", "words"),
    [
        (lambda: "net", (), TypeError, "`model` must be a torch.nn.Module"),
        (lambda: nn.ReLU(), (), ValueError, "`model` .* nothing to draw"),
        (lambda: NTKLinear(3, 2), (), ValueError, "the NTKLinear itself"),
        (
            lambda: nn.Sequential(nn.Linear(3, 3), NTKConv1d(3, 2, 1)),
            (),
            ValueError,
            "'1' .NTKConv1d",
        ),
        (lambda: nn.Sequential(nn.LazyLinear(3)), (), ValueError, "'0' .LazyLinear.*one batch"),
        (
            lambda: nn.Sequential(torch.nn.utils.parametrizations.weight_norm(nn.Linear(3, 3))),
            (),
            ValueError,
            "'0' .ParametrizedLinear. whose weight or bias is computed",
        ),
        (pruned, (), ValueError, "the Linear itself whose weight or bias is computed"),
        (lambda: nn.Linear(3, 3), (0.0, 0.0), ValueError, "`sigma_w`"),
        (lambda: nn.Linear(3, 3), (1.0, -1.0), ValueError, "`sigma_b`"),
    ],
)
def test_refusals_draw_nothing(
    model: Any, arguments: tuple[float, ...], error: type[Exception], words: str
) -> None:
    made = model()
    parameters = list(made.parameters()) if isinstance(made, nn.Module) else []
    before = [p.detach().clone() for p in parameters if not nn.parameter.is_lazy(p)]
    with pytest.raises(error, match=words):
        standard_init_(made, *arguments)
    after = [p for p in parameters if not nn.parameter.is_lazy(p)]
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))


def test_refuses_a_shared_parameter_with_two_scales() -> None:
    layer = nn.Linear(4, 1)
    net = nn.Sequential(layer, nn.Linear(1, 1))
    net[1].weight = nn.Parameter(torch.ones(1, 1))
    layer.bias = net[1].weight  # a bias here, a weight there
    with pytest.raises(ValueError, match="'1' shares a parameter"):
        standard_init_(net, 1.0, 0.1)
    assert bool((net[1].weight == 1).all())
