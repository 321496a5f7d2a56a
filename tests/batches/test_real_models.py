"""Models as other libraries build them, with random weights, against plain backward passes."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import peft
import pytest
import timm
import torch
import transformers
from batch_forms import Call, built, full, loop, off
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence
from traces import snapshot

from torch_ntk import NTKOperator, empirical_ntk

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it compiles a class with TorchScript, which is deprecated
    import torch_geometric.nn as gnn


def normal(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def lora() -> nn.Module:
    config = transformers.BertConfig(
        vocab_size=11,
        max_position_embeddings=8,
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_labels=2,
    )
    model = transformers.BertForSequenceClassification(config)
    kind = peft.LoraConfig(r=2, task_type="SEQ_CLS", target_modules=["query", "value"])
    model = peft.get_peft_model(model, kind)
    for p in model.parameters():  # LoRA's second factor begins at zero
        p.data += 0.3 * torch.randn_like(p)
    return model


def vit() -> nn.Module:
    return timm.models.vision_transformer.VisionTransformer(
        img_size=8, patch_size=4, embed_dim=8, depth=2, num_heads=2, num_classes=2
    )


def efficientnet() -> nn.Module:
    """Two stages of it with squeeze and excitation, and with running statistics that count."""
    net = timm.create_model("efficientnet_b0", num_classes=2)
    del net.blocks[2:]
    head = timm.layers.BatchNormAct2d(net.blocks[1][-1].bn3.num_features)
    net.conv_head, net.bn2 = nn.Identity(), head
    net.classifier = nn.Linear(head.num_features, 2)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    return net


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
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 4, batch_first=True)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
        return self.head(self.lstm(packed)[1][0][-1])


class Autoencoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(5, 4), nn.Linear(2, 5)

    def loss(self, x: Tensor, noise: Tensor) -> Tensor:
        """The negative evidence bound of each sample, of noise that is drawn outside."""
        mean, log_var = self.encoder(x).chunk(2, dim=1)
        again = self.decoder(mean + noise * (0.5 * log_var).exp())
        divergence = 0.5 * (mean.square() + log_var.exp() - 1 - log_var).sum(1)
        return (again - x).square().sum(1) + divergence


def classified(net: nn.Module, batch: Any) -> Tensor:
    return net(**batch).logits


@dataclass(frozen=True)
class Case:
    """A network, N samples of its inputs, and how it is called."""

    make: Callable[[], nn.Module]
    batch: Any
    call: Call
    forward_fn: Call | None = None


TOKENS = {
    "input_ids": torch.tensor([[3, 7, 5, 1], [2, 9, 0, 0], [4, 4, 8, 0]]),
    "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]]),
}
CASES = {
    "LoRA": Case(lora, TOKENS, classified),
    "ViT": Case(vit, normal(3, 3, 8, 8), lambda net, x: net(x)),
    "EfficientNet": Case(efficientnet, normal(2, 3, 16, 16), lambda net, x: net(x)),
    "physics-informed": Case(Field, normal(4, 2), residual, residual),
    "energy and forces": Case(Energy, normal(2, 3, 3), lambda net, x: net(x)),
    "packed LSTM": Case(
        Packed, (normal(3, 4, 3), torch.tensor([4, 2, 3])), lambda net, batch: net(*batch)
    ),
    "autoencoder": Case(
        Autoencoder,
        {"x": normal(3, 5), "noise": normal(3, 2, seed=1)},
        lambda net, batch: net.loss(**batch),
        lambda net, batch: net.loss(**batch),
    ),
}


def one_by_one(batch: Any) -> list[Any]:
    if isinstance(batch, Tensor):
        return list(batch.split(1))
    if isinstance(batch, dict):
        rows = zip(*(t.split(1) for t in batch.values()), strict=True)
        return [dict(zip(batch, row, strict=True)) for row in rows]
    return list(zip(*(t.split(1) for t in batch), strict=True))


def tensors(batch: Any) -> list[Tensor]:
    if isinstance(batch, Tensor):
        return [batch]
    return list(batch.values()) if isinstance(batch, dict) else list(batch)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`")  # between peft and transformers
@pytest.mark.parametrize("name", CASES)
def test_kernel_and_operator(name: str) -> None:
    case = CASES[name]
    _, j = loop(built(case.make), one_by_one(case.batch), case.call)
    net = built(case.make)
    before = snapshot(net, *tensors(case.batch))
    found = empirical_ntk(net, case.batch, forward_fn=case.forward_fn)
    assert off(found, full(j, j)) < 1e-10
    operator = NTKOperator(net, case.batch, forward_fn=case.forward_fn)
    v = normal(operator.shape[0], seed=2)
    expected = j.flatten(0, 1) @ (j.flatten(0, 1).T @ v)
    assert off(operator @ v, expected) < 1e-10
    assert snapshot(net, *tensors(case.batch)) == before


class Convolved(nn.Module):
    def __init__(self, kind: type[nn.Module]) -> None:
        super().__init__()
        self.first, self.second = kind(3, 4), kind(4, 2)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.second(F.elu(self.first(x, edge_index)), edge_index)


EDGES = torch.tensor([[0, 1, 1, 2, 3, 4, 0], [1, 0, 2, 1, 4, 3, 4]])


@pytest.mark.parametrize("kind", [gnn.GCNConv, gnn.GATConv])
def test_kernels_between_the_nodes_of_a_graph(kind: type[nn.Module]) -> None:
    x = normal(5, 3)
    net = built(lambda: Convolved(kind)).eval()
    params = list(net.parameters())
    out = net(x, EDGES)
    rows = [torch.autograd.grad(f, params, retain_graph=True) for f in out.flatten()]
    j = torch.stack([torch.cat([g.flatten() for g in row]) for row in rows]).view(5, 2, -1)
    before = snapshot(net, x)
    found = empirical_ntk(net, (x, EDGES), coupled=True)
    assert off(found, full(j, j)) < 1e-10
    operator, v = NTKOperator(net, (x, EDGES), coupled=True), normal(10, seed=2)
    assert off(operator @ v, j.flatten(0, 1) @ (j.flatten(0, 1).T @ v)) < 1e-10
    assert snapshot(net, x) == before


def test_batch_normalization_with_the_statistics_of_the_batch() -> None:
    net = built(lambda: timm.create_model("resnet10t", num_classes=2)).train()
    del net.layer2, net.layer3, net.layer4
    net.layer2 = net.layer3 = net.layer4 = nn.Identity()
    net.fc = nn.Linear(64, 2).double()
    x, params = normal(3, 3, 16, 16), list(net.parameters())
    out = net(x)
    rows = [torch.autograd.grad(f, params, retain_graph=True) for f in out.flatten()]
    j = torch.stack([torch.cat([g.flatten() for g in row]) for row in rows]).view(3, 2, -1)
    before = snapshot(net, x)
    found = empirical_ntk(net, x, coupled=True, training=True)
    assert off(found, full(j, j)) < 1e-10
    operator, v = NTKOperator(net, x, coupled=True, training=True), normal(6, seed=2)
    assert off(operator @ v, j.flatten(0, 1) @ (j.flatten(0, 1).T @ v)) < 1e-10
    assert snapshot(net, x) == before
