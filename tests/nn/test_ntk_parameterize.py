"""Conversion of standard networks: what it keeps and what it carries over."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torch_ntk.nn import (
    MLP,
    NTKConv1d,
    NTKConv2d,
    NTKConv3d,
    NTKLinear,
    ntk_param_groups,
    ntk_parameterize,
)


def plain(n: int = 3) -> nn.Sequential:
    return nn.Sequential(nn.Linear(n, 5), nn.ReLU(), nn.Linear(5, 2))


class Residual(nn.Module):
    """Layers of every kind, normalization, a residual sum, a shared layer and an embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 6)
        self.conv1 = nn.Conv1d(6, 6, 3, padding="same", padding_mode="circular", groups=3)
        self.norm = nn.BatchNorm1d(6)
        self.conv2 = nn.Conv2d(1, 2, (3, 2), stride=(1, 2), bias=False)
        self.conv3 = nn.Conv3d(1, 2, 2, padding=1, dilation=(1, 2, 1), padding_mode="replicate")
        self.shared = nn.Linear(4, 4)
        self.blocks = nn.ModuleList([self.shared, nn.Linear(4, 4), self.shared])
        self.tied = nn.Linear(4, 4)
        self.tied.weight = self.blocks[1].weight
        self.listed = [self.tied]

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens).transpose(1, 2)
        x = x + F.relu(self.norm(self.conv1(x)))
        x = torch.tanh(self.conv2(x.unsqueeze(1)))
        x = self.conv3(x.unsqueeze(1)).relu().mean((1, 2))
        x = x.flatten(1)[:, :4]
        for block in self.blocks:
            x = F.gelu(block(x))
        return self.listed[0](x)


def test_preserve_keeps_the_function() -> None:
    torch.manual_seed(0)
    model = Residual().double()
    tokens = torch.randint(0, 7, (5, 8))
    model(tokens)  # moves the running statistics away from their start
    converted = ntk_parameterize(model, mode="preserve", sigma_b=0.3)
    for train in (False, True):
        torch.testing.assert_close(
            converted.train(train)(tokens), model.train(train)(tokens), rtol=1e-12, atol=1e-12
        )
    kinds = {n: type(m) for n, m in converted.named_modules() if hasattr(m, "sigma_w")}
    assert kinds == {
        "conv1": NTKConv1d,
        "conv2": NTKConv2d,
        "conv3": NTKConv3d,
        "shared": NTKLinear,
        "blocks.1": NTKLinear,
        "tied": NTKLinear,
    }
    assert converted.blocks[0] is converted.shared is converted.blocks[2]
    assert converted.tied.weight is converted.blocks[1].weight
    assert converted.listed[0] is converted.tied
    assert list(converted.state_dict()) == list(model.state_dict())


@pytest.mark.parametrize("sigma_w", ["gain", 0.7])
@pytest.mark.parametrize(
    "layer",
    [
        nn.Linear(4, 3),
        nn.Conv1d(4, 6, 3, groups=2, padding="same"),
        nn.Conv2d(4, 6, (3, 2), padding=1, padding_mode="reflect"),
        nn.Conv3d(4, 6, 2, stride=2, bias=False),
        nn.ConvTranspose1d(4, 6, 3, groups=2, stride=2, output_padding=1),
        nn.ConvTranspose2d(4, 6, (3, 2), padding=1, dilation=2),
        nn.ConvTranspose3d(4, 6, 2, stride=2, bias=False),
    ],
)
def test_a_single_layer(layer: nn.Module, sigma_w: Any) -> None:
    layer = layer.double()
    shape = (4,) if isinstance(layer, nn.Linear) else (4, *(5,) * len(layer.kernel_size))
    x = torch.randn(2, *shape, dtype=torch.float64)
    converted = ntk_parameterize(layer, mode="preserve", sigma_w=sigma_w)
    name = type(layer).__name__
    assert type(converted).__name__ == f"NTK{name}"
    torch.testing.assert_close(converted(x), layer(x), rtol=1e-12, atol=1e-12)
    assert type(layer).__name__ == name
    assert torch.equal(pickle.loads(pickle.dumps(converted))(x), converted(x))
    ntk_parameterize(layer, sigma_w=sigma_w)(x)


def test_the_model_itself_is_untouched() -> None:
    model = plain()
    before = {name: (p, p.detach().clone()) for name, p in model.named_parameters()}
    for mode in ("preserve", "reinit"):
        converted = ntk_parameterize(model, mode=mode)
        assert converted is not model
        assert type(model[0]) is nn.Linear
        for name, p in model.named_parameters():
            assert p is before[name][0]
            assert torch.equal(p, before[name][1])
        assert not set(converted.parameters()) & set(model.parameters())


def test_reinit_draws_standard_normal_weights_and_keeps_the_rest() -> None:
    model = nn.Sequential(nn.Conv2d(20, 30, 5), nn.BatchNorm2d(30), nn.ReLU(), nn.Linear(30, 9))
    nn.init.uniform_(model[1].weight)
    converted = ntk_parameterize(model, sigma_b=0.4)
    assert converted[0].weight.std().item() == pytest.approx(1.0, abs=0.03)
    assert converted[0].weight.mean().item() == pytest.approx(0.0, abs=0.03)
    assert converted[0].bias.std().item() == pytest.approx(1.0, abs=0.5)
    assert [converted[i].sigma_w for i in (0, 3)] == pytest.approx([2**0.5, 1.0])
    assert [converted[i].sigma_b for i in (0, 3)] == [0.4, 0.4]
    assert torch.equal(converted[1].weight, model[1].weight)


def test_reinit_from_a_generator() -> None:
    state = torch.get_rng_state()
    draws = [
        ntk_parameterize(plain(), generator=torch.Generator().manual_seed(seed))
        for seed in (1, 1, 2)
    ]
    first, again, other = (net[0].weight for net in draws)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    torch.set_rng_state(state)
    plain(), plain(), plain()
    after = torch.get_rng_state()
    torch.set_rng_state(state)
    for seed in range(3):
        ntk_parameterize(plain(), generator=torch.Generator().manual_seed(seed))
    assert torch.equal(torch.get_rng_state(), after)


def test_ntk_layers_stay_in_preserve_and_are_redrawn_in_reinit() -> None:
    model = nn.Sequential(NTKLinear(3, 4, sigma_w=1.3, sigma_b=0.7), nn.ReLU(), nn.Linear(4, 2))
    preserved = ntk_parameterize(model, mode="preserve")
    assert torch.equal(preserved[0].weight, model[0].weight)
    drawn = ntk_parameterize(model)
    assert not torch.equal(drawn[0].weight, model[0].weight)
    for net in (preserved, drawn):
        assert (net[0].sigma_w, net[0].sigma_b) == (1.3, 0.7)
    twice = ntk_parameterize(preserved, mode="preserve")
    x = torch.randn(5, 3)
    assert torch.equal(twice(x), preserved(x))


def test_flags_types_and_hooks_are_carried_over() -> None:
    model = plain().to(torch.bfloat16)
    model[0].eval()
    model[0].weight.requires_grad_(False)
    seen: list[str] = []
    model[2].register_forward_pre_hook(lambda *_: seen.append("pre"))
    model[2].register_forward_hook(lambda *_: seen.append("post"))
    model[2].register_full_backward_hook(lambda *_: seen.append("back"))
    model[2].note = "kept"
    for mode in ("preserve", "reinit"):
        converted = ntk_parameterize(model, mode=mode)
        assert not converted[0].training
        assert converted[2].training
        assert not converted[0].weight.requires_grad
        assert converted[0].bias.requires_grad
        assert converted[2].weight.dtype is torch.bfloat16
        assert converted[2].note == "kept"
        seen.clear()
        converted(torch.ones(2, 3, dtype=torch.bfloat16)).sum().backward()
        assert seen == ["pre", "post", "back"]


@pytest.mark.parametrize("mode", ["preserve", "reinit"])
def test_meta_device(mode: Any) -> None:
    with torch.device("meta"):
        model = plain()
    converted = ntk_parameterize(model, mode=mode)
    assert all(p.is_meta for p in converted.parameters())
    converted.to_empty(device="cpu")
    for layer in (converted[0], converted[2]):
        layer.reset_parameters()
    assert bool(converted(torch.ones(1, 3)).isfinite().all())


def test_reinit_allows_a_weight_tied_to_an_embedding() -> None:
    model = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 7, bias=False))
    model[1].weight = model[0].weight
    converted = ntk_parameterize(model)
    assert converted[1].weight is converted[0].weight
    with pytest.raises(ValueError, match=r"layer '1' shares .* the module '0' \(Embedding\)"):
        ntk_parameterize(model, mode="preserve")


def test_zero_biases_need_no_scale() -> None:
    model = plain().double()
    for layer in (model[0], model[2]):
        nn.init.zeros_(layer.bias)
    converted = ntk_parameterize(model, mode="preserve", sigma_b=0.0)
    x = torch.randn(4, 3, dtype=torch.float64)
    torch.testing.assert_close(converted(x), model(x), rtol=1e-12, atol=1e-12)


def test_layers_without_inputs() -> None:
    layer = nn.Linear(1, 3)
    layer.weight, layer.in_features = nn.Parameter(torch.ones(3, 0)), 0
    converted = ntk_parameterize(layer, mode="preserve")
    torch.testing.assert_close(converted(torch.ones(2, 0)), layer(torch.ones(2, 0)))


class Attention(nn.Module):
    """A block whose attention reads `out_proj.weight` past the layer."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.inner = (
            nn.MultiheadAttention(4, 2, batch_first=True)
            if kind == "attention"
            else nn.TransformerEncoderLayer(4, 2, 8, 0.0, batch_first=True)
        )
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.inner, nn.MultiheadAttention):
            x = self.inner(x, x, x, need_weights=False)[0]
        else:
            x = self.inner(x)
        return self.head(x)


@pytest.mark.parametrize("kind", ["attention", "encoder"])
def test_attention_stays_in_preserve_and_is_refused_in_reinit(kind: str) -> None:
    model = Attention(kind).double()
    x = torch.randn(2, 5, 4, dtype=torch.float64)
    converted = ntk_parameterize(model, mode="preserve")
    assert isinstance(converted.head, NTKLinear)
    assert not any(hasattr(m, "sigma_w") for m in converted.inner.modules())
    for train in (True, False):  # in evaluation mode the encoder layer takes its fast path
        with torch.no_grad():
            torch.testing.assert_close(
                converted.train(train)(x), model.train(train)(x), rtol=1e-12, atol=1e-12
            )
    ntk_param_groups(converted, 0.1)
    name = "MultiheadAttention" if kind == "attention" else "TransformerEncoderLayer"
    with pytest.raises(ValueError, match=rf"'inner' \({name}\).*standard parameterization"):
        ntk_parameterize(model)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Bilinear(2, 2, 2),
        nn.LSTM(2, 2),
        nn.GRUCell(2, 2),
        nn.RNNBase("RNN_TANH", 2, 2),
    ],
)
def test_layers_without_counterpart(layer: nn.Module) -> None:
    model = nn.ModuleDict({"dense": nn.Linear(2, 2), "odd": layer})
    with pytest.raises(ValueError, match=rf"'odd' \({type(layer).__name__}\)"):
        ntk_parameterize(model)
    with pytest.warns(UserWarning, match="'dense'"):
        converted = ntk_parameterize(model, mode="preserve")
    for a, b in zip(converted["odd"].parameters(), layer.parameters(), strict=True):
        assert torch.equal(a, b)


def test_converts_what_compiles_and_exports() -> None:
    model = plain().double()
    x = torch.randn(4, 3, dtype=torch.float64)
    converted = ntk_parameterize(model, mode="preserve")
    compiled_model = torch.compile(converted, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled_model(x), model(x), rtol=1e-12, atol=1e-12)
    exported = torch.export.export(converted, (x,)).module()
    torch.testing.assert_close(exported(x), model(x), rtol=1e-12, atol=1e-12)


def test_an_mlp_converts_to_itself() -> None:
    standard = MLP([3, 5, 2], parameterization="standard", dtype=torch.float64)
    converted = ntk_parameterize(standard, mode="preserve")
    assert type(converted) is MLP
    assert repr(converted) == repr(MLP([3, 5, 2]))
