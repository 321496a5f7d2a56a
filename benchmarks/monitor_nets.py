"""The trainings of `monitor.py`: a network, a batch, a loss and an optimizer each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence
from torch.optim import SGD, AdamW, Optimizer
from torchvision.models import VisionTransformer, resnet18


class Lstm(nn.Module):
    """Classes of sentences of different lengths."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(1000, 64)
        self.lstm = nn.LSTM(64, 128, batch_first=True)
        self.out = nn.Linear(128, 4)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Logits from the last state of every sentence."""
        packed = pack_padded_sequence(
            self.embedding(tokens), lengths.cpu(), batch_first=True, enforce_sorted=False
        )
        _, (last, _) = self.lstm(packed)
        logits: Tensor = self.out(last[-1])
        return logits


@dataclass(frozen=True)
class Training:
    """One training.

    Attributes:
        name: In the table.
        make: Makes the network.
        batch: Makes a batch from a generator of random numbers.
        adam: Whether AdamW is the optimizer, else SGD with momentum.
        goal: Training steps that drift and gap are to take at most; None has no goal.
        later: How many measurements are made after the first one.
    """

    name: str
    make: Callable[[], nn.Module]
    batch: Callable[[torch.Generator], Any]
    adam: bool = False
    goal: float | None = None
    later: int = 5

    def optimizer(self, network: nn.Module) -> Optimizer:
        """The one that trains a network."""
        parameters = network.parameters()
        return AdamW(parameters, 1e-4) if self.adam else SGD(parameters, 0.01, momentum=0.9)


def loss_of(network: nn.Module, batch: Any) -> Tensor:
    """Cross-entropy; a language model has its own."""
    if isinstance(batch, dict):
        own: Tensor = network(**batch).loss
        return own
    *inputs, y = batch
    return F.cross_entropy(network(*inputs), y)


def resnet() -> nn.Module:
    """ResNet-18 with a first layer for small images."""
    found = resnet18(num_classes=10)
    found.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
    found.maxpool = nn.Identity()
    return found


def images(*shape: int) -> Callable[[torch.Generator], tuple[Tensor, Tensor]]:
    """Random images, or vectors, of this shape in ten classes."""

    def make(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        x = torch.randn(64, *shape, generator=generator)
        return x, torch.randint(10, (64,), generator=generator)

    return make


def _vit() -> nn.Module:
    return VisionTransformer(
        image_size=32,
        patch_size=4,
        num_layers=6,
        num_heads=3,
        hidden_dim=192,
        mlp_dim=384,
        num_classes=10,
    )


def _gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(n_positions=64, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    model: nn.Module = GPT2LMHeadModel(config)
    return model


def _sequences(generator: torch.Generator) -> dict[str, Tensor]:
    tokens = torch.randint(50_257, (8, 64), generator=generator)
    return {"input_ids": tokens, "labels": tokens}


def _sentences(generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    tokens = torch.randint(1000, (64, 32), generator=generator)
    lengths = torch.randint(5, 33, (64,), generator=generator)
    return tokens, lengths, torch.randint(4, (64,), generator=generator)


def _cnn() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(32 * 7 * 7, 10)),
    )


def _mlp() -> nn.Module:
    return nn.Sequential(
        *(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))
    )


TRAININGS = {
    "resnet": Training("ResNet-18, images 3×32×32", resnet, images(3, 32, 32), goal=8, later=2),
    "vit": Training(
        "ViT, 6 layers of width 192, images 3×32×32", _vit, images(3, 32, 32), True, 8, later=2
    ),
    "gpt2": Training(
        "GPT-2, 12 layers of width 768, 64 tokens", _gpt2, _sequences, True, 8, later=1
    ),
    "lstm": Training("LSTM of width 128, up to 32 tokens", Lstm, _sentences, True, 20),
    "cnn": Training("CNN 16-32, images 28×28", _cnn, images(1, 28, 28), goal=10),
    "mlp": Training("MLP 64-256-256-10", _mlp, images(64)),
}
"""By name, the largest first."""
