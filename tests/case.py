"""What a row of the table in `cases.py` says about a model."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

DEVICE = torch.device("cpu")
"""Where the models and their inputs are; set by `pytest --device`."""


@dataclass(frozen=True)
class Case:
    """One model with its inputs.

    Attributes:
        name: Of the row.
        make: Builds the module; called with the generator seeded.
        sample: The shape of one input; with `tokens`, of one row of indices.
        tokens: The number of indices, for models that take them instead of numbers.
        inexact_on_gpu: Of which operation torch makes errors in float64 on a GPU.
        slow: Whether it takes more than about ten seconds.
    """

    name: str
    make: Callable[[], nn.Module]
    sample: tuple[int, ...]
    tokens: int = 0
    inexact_on_gpu: str = ""
    slow: bool = False

    def build(self, device: torch.device | None = None) -> nn.Module:
        """The model in float64, in train mode unless the row says otherwise."""
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*is deprecated", category=FutureWarning)
            torch.manual_seed(1)
            return self.make().double().to(device or DEVICE)

    def inputs(self, n: int, seed: int = 0, device: torch.device | None = None) -> Tensor:
        """`n` samples; other ones for every `seed`, and the same on every device."""
        generator = torch.Generator().manual_seed(100 + seed)
        if self.tokens:
            x = torch.randint(self.tokens, (n, *self.sample), generator=generator)
        else:
            x = torch.randn(n, *self.sample, generator=generator, dtype=torch.float64)
        return x.to(device or DEVICE)
