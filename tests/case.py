"""What a row of the table in `cases.py` says about a model."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

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
        form: From these inputs to the batch that the module takes; None leaves them as they are.
        options: With which every function is called: `forward_fn`, `coupled`, `training`.
        inexact_on_gpu: Of which operation torch makes errors in float64 on a GPU.
        slow: Whether it takes more than about ten seconds.
    """

    name: str
    make: Callable[[], nn.Module]
    sample: tuple[int, ...]
    tokens: int = 0
    form: Callable[[Tensor], Any] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    inexact_on_gpu: str = ""
    slow: bool = False

    def build(self, device: torch.device | None = None) -> nn.Module:
        """The model in float64, in train mode unless the row says otherwise."""
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*is deprecated", category=FutureWarning)
            torch.manual_seed(1)
            return self.make().double().to(device or DEVICE)

    @property
    def is_one_input(self) -> bool:
        """Whether a batch is one input, whose rows are the samples."""
        return "coupled" in self.options

    def inputs(
        self,
        n: int,
        seed: int = 0,
        device: torch.device | None = None,
        dtype: torch.dtype = torch.float64,
    ) -> Any:
        """`n` samples; other ones for every `seed`, and the same on every device."""
        return self.batch(self.numbers(n, seed, device, dtype))

    def numbers(
        self,
        n: int,
        seed: int = 0,
        device: torch.device | None = None,
        dtype: torch.dtype = torch.float64,
    ) -> Tensor:
        """What batches are made of: `[n, *sample]`."""
        generator = torch.Generator().manual_seed(100 + seed)
        if self.tokens:
            x = torch.randint(self.tokens, (n, *self.sample), generator=generator)
        else:
            x = torch.randn(n, *self.sample, generator=generator, dtype=torch.float64).to(dtype)
        return x.to(device or DEVICE)

    def batch(self, numbers: Tensor) -> Any:
        """The batch of these numbers."""
        return numbers if self.form is None else self.form(numbers)

    def outputs(self, model: nn.Module, x: Any) -> Tensor:
        """What is differentiated, from the module itself."""
        forward_fn = self.options.get("forward_fn")
        out = self.returned(model, x) if forward_fn is None else forward_fn(model, x)
        found: Tensor = out if isinstance(out, Tensor) else out.logits
        return found

    def returned(self, model: nn.Module, x: Any) -> Any:
        """By the module, called as a person would; with a `forward_fn` it takes the batch whole."""
        if "forward_fn" in self.options or isinstance(x, Tensor):
            return model(x)
        return model(**x) if isinstance(x, Mapping) else model(*x)

    def jacobian(self, n: int, seed: int = 0) -> Tensor:
        """Of `inputs(n, seed)`, `[n, O, P]`, by one backward pass for each row and output.

        Of the module's own parameters, in eval mode unless the row says otherwise, one sample at a
        time unless the batch is one input.
        """
        cpu = torch.device("cpu")
        model = self.build(cpu).train(bool(self.options.get("training")))
        params = [p for p in model.parameters() if p.requires_grad]
        numbers = self.numbers(n, seed, cpu)
        rows = []
        for part in [numbers] if self.is_one_input else numbers.split(1):
            out = self.outputs(model, self.batch(part.clone()))
            for value in out.reshape(-1):
                grads = torch.autograd.grad(value, params, retain_graph=True, allow_unused=True)
                dense = [
                    torch.zeros_like(p) if g is None else g.to_dense()
                    for p, g in zip(params, grads, strict=True)
                ]
                rows.append(torch.cat([g.reshape(-1) for g in dense]))
        return torch.stack(rows).reshape(n, -1, len(rows[0]))
