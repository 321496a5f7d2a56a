"""Train one network for a few steps, and measure its sizes at the start and their changes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from .._checks import describe, type_error, value_error
from .._functional import Batch, call_model, tensor_of, unwrap
from .._types import ForwardFn
from ..empirical import empirical_ntk
from ..sampling._seed import seed_all
from ._recorder import Recorded, layers_of, recorded

Kind: TypeAlias = Literal["activation", "change", "movement", "kernel"]
Measured: TypeAlias = dict[tuple[Kind, str], float]
"""Sizes by their kind and the name of a module, a parameter or a kernel."""

Loss: TypeAlias = Callable[[Tensor, Tensor], Tensor]

ALL = "all parameters"
"""The name of θ as a whole."""


@dataclass(frozen=True)
class Task:
    """The training that is the same for networks of every width.

    Attributes:
        x: The batch.
        y: The targets; None draws random signs, the same at every width.
        loss: `loss(f, y) -> scalar`; None means cross-entropy for integer targets, and the mean
            square for others.
        make_optimizer: Returns the optimizer for a network and its width.
        steps: The number of training steps.
        modules: Patterns of the modules to measure, or None.
        kernel: Whether the kernel is measured.
        forward_fn: Calls the network in place of the usual call.
    """

    x: Batch
    y: Any
    loss: Loss | None
    make_optimizer: Callable[[nn.Module, int], Optimizer]
    steps: int
    modules: Sequence[str] | None
    kernel: bool
    forward_fn: ForwardFn | None


def measure(model: nn.Module, width: int, task: Task, seed: int) -> Measured:
    """Train `model` for the steps of the task, and measure it before and after.

    The generators are seeded equally before every forward pass, so that dropout drops the same
    units in each: two passes differ by the parameters only.
    """
    device = task.x.tensors[0].device
    layers = layers_of(model, task.modules)
    start = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    theta_0 = _kernel(model, task)

    def forward() -> tuple[Tensor, Recorded]:
        seed_all(seed, device)
        return recorded(layers, lambda: _outputs(model, task))

    optimizer = task.make_optimizer(model, width)
    if not isinstance(optimizer, Optimizer):
        raise type_error("optimizer", "a function that returns an optimizer", optimizer)
    f, first = forward()
    loss = _loss_of(task, f, seed)
    for step in range(task.steps):
        optimizer.zero_grad()
        if step:
            f, _ = forward()
        value = loss(f)
        value.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    f, last = forward()
    return {
        **{("activation", n): rms(h) for n, h in first.items()},
        **_changes(first, last),
        **_movement(start, model),
        **_kernel_sizes(theta_0, _kernel(model, task)),
    }


def rms(h: Tensor) -> float:
    """The root mean square of the entries."""
    return float(h.double().square().mean().sqrt())


def _outputs(model: nn.Module, task: Task) -> Tensor:
    out = call_model(model, task.x.clone().value, task.forward_fn)
    return tensor_of(out, task.x, None, task.forward_fn)


def _loss_of(task: Task, f: Tensor, seed: int) -> Callable[[Tensor], Tensor]:
    """The loss as a function of the outputs."""
    y = task.y
    if y is None:
        draws = torch.Generator().manual_seed(seed)
        y = torch.randint(2, f.shape, generator=draws, device="cpu").to(f) * 2 - 1
    loss = task.loss
    if loss is None:
        is_label = isinstance(y, Tensor) and not y.is_floating_point()
        if not isinstance(y, Tensor) or not (is_label or y.shape == f.shape):
            raise value_error(
                "y",
                f"labels, or targets of the shape {tuple(f.shape)} of the outputs",
                y,
                "Pass loss=, a function loss(f, y) -> scalar, for other targets.",
            )
        loss = F.cross_entropy if is_label else F.mse_loss

    def scalar(f: Tensor) -> Tensor:
        try:
            value = loss(f, y)
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            raise value_error(
                "loss" if task.loss is not None else "y",
                f"suitable for outputs of shape {tuple(f.shape)}",
                f"an error with y={describe(y)}: {error}",
                "Pass loss=, a function loss(f, y) -> scalar.",
            ) from error
        if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad:
            raise type_error("loss", "a function that returns a scalar of the outputs", value)
        return value.reshape(())

    return scalar


def _changes(first: Recorded, last: Recorded) -> Measured:
    before, after = ({n: h.shape for n, h in seen.items()} for seen in (first, last))
    if before != after:
        differ = sorted(set(before.items()) ^ set(after.items()))[:4]
        raise value_error(
            "make_model",
            "a function whose networks call the same modules in every forward pass",
            f"others after training: {', '.join(f'{n} {tuple(s)}' for n, s in differ)}",
            "Select modules that are always called with modules=.",
        )
    return {("change", n): rms(last[n].double() - h.double()) for n, h in first.items()}


def _movement(start: dict[str, Tensor], model: nn.Module) -> Measured:
    """‖W_t - W_0‖_F / ‖W_0‖_F for each weight (not for biases), and for θ as a whole."""
    own = dict(model.named_parameters())
    squares = {
        n: (
            float((own[n].detach().double() - p.double()).square().sum()),
            float(p.double().square().sum()),
        )
        for n, p in start.items()
    }
    squares[ALL] = tuple(map(sum, zip(*squares.values(), strict=True)))  # type: ignore[assignment]
    return {
        ("movement", n): (moved / size) ** 0.5 if size else float("nan")
        for n, (moved, size) in squares.items()
        if n == ALL or start[n].ndim > 1
    }


def _kernel(model: nn.Module, task: Task) -> Tensor | None:
    if not task.kernel:
        return None
    x, forward_fn = task.x.clone().value, task.forward_fn
    return empirical_ntk(unwrap(model), x, output="mean", forward_fn=forward_fn)


def _kernel_sizes(start: Tensor | None, end: Tensor | None) -> Measured:
    if start is None or end is None:
        return {}
    moved = float((end.double() - start.double()).norm() / start.double().norm())
    return {("kernel", "Θ_0"): rms(start), ("kernel", "Θ_t - Θ_0, relative"): moved}
