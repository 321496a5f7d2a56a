"""One cheap forward pass that finds out what the model does before anything costly starts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from .._checks import message
from .._functional import ModelFunction, is_out_of_memory


@dataclass(frozen=True)
class Trial:
    """What one sample costs.

    Attributes:
        outputs: Number of outputs O per sample.
        flops: Floating-point operations of one forward pass, matrix products and convolutions.
        activation_bytes: Bytes of all intermediate results of one forward pass.
    """

    outputs: int
    flops: int
    activation_bytes: int


class _ResultBytes(TorchDispatchMode):
    """Adds up the sizes of everything that the operations inside return."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for t in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(t, Tensor):
                self.total += t.numel() * t.element_size()
        return out


def try_out(fn: ModelFunction, name: str, x: Tensor) -> Trial:
    """Evaluate `fn` on one and on two samples of the batch `x`, called `name` in errors.

    Raises:
        TypeError: The model does not take these inputs, or does not return one tensor.
        ValueError: Its outputs are not finite, are random, or depend on the other samples of
            the batch.
    """
    before = torch.get_rng_state()
    device_before = _device_random_state(fn.device)
    with FlopCounterMode(display=False) as counter, _ResultBytes() as results:
        one = _forward(fn, name, x[:1])
    if one.shape[1] == 0:
        raise ValueError(message("model", "a function with outputs", one, ""))
    device_after = _device_random_state(fn.device)
    if not torch.equal(before, torch.get_rng_state()) or (
        device_before is not None
        and device_after is not None
        and not torch.equal(device_before, device_after)
    ):
        raise ValueError(
            message(
                "model",
                "deterministic in eval mode",
                "a forward that draws random numbers",
                "Use nn.Dropout instead of F.dropout(x, training=True), or draw the noise "
                "outside of the model.",
            )
        )
    if not bool(torch.isfinite(one).all()):
        raise ValueError(
            message(
                "model",
                f"a function with finite outputs on `{name}`",
                "NaN or infinite outputs for its first sample",
                "Look for an overflow, or for a log or a division of zero in the forward.",
            )
        )
    if x.shape[0] > 1:
        _check_uncoupled(fn, one, _forward(fn, name, x[:2]))
    return Trial(one.shape[1], int(counter.get_total_flops()), results.total)


def _forward(fn: ModelFunction, name: str, x: Tensor) -> Tensor:
    try:
        return fn.batch(fn.params, x)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        if not x.is_floating_point() and "dtype" in str(error) or "Float" in str(error):
            raise TypeError(
                message(
                    name,
                    "floating-point for this model",
                    f"{str(x.dtype).removeprefix('torch.')} samples, on which its forward fails "
                    f"({_first_line(error)})",
                    f"Convert it with {name}.to({fn.result_dtype}).",
                )
            ) from error
        if isinstance(error, (TypeError, ValueError)) and str(error).startswith("`"):
            raise
        raise ValueError(
            message(
                name,
                "a batch of inputs that the model takes",
                f"samples of shape {tuple(x.shape[1:])}, on which its forward fails with "
                f"{type(error).__name__}: {_first_line(error)}",
                "Give it inputs [N, ...] as in training.",
            )
        ) from error


def _check_uncoupled(fn: ModelFunction, one: Tensor, two: Tensor) -> None:
    """Row 0 must not change when another sample stands beside it."""
    scale = float(two.abs().max())
    tolerance = torch.finfo(fn.dtype).eps ** 0.5 * max(scale, torch.finfo(fn.dtype).tiny)
    if two.shape[1] != one.shape[1] or float((two[0] - one[0]).abs().max()) > tolerance:
        raise ValueError(
            message(
                "model",
                "a function of one sample at a time",
                "outputs of a sample that change with the other samples of its batch",
                "Replace statistics over the batch (batch normalization without running "
                "statistics, x - x.mean(0), …) by statistics over one sample.",
            )
        )


def _device_random_state(device: torch.device) -> Tensor | None:
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else "no message"
