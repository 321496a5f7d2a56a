"""Check and convert the times at which a prediction is asked for."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .._checks import check_tensor, describe, type_error, value_error

Time = float | int | Tensor | None
"""A time: a number, a 0-dim or 1-D tensor of times, or `None` (like infinity) for the limit."""

_EXPECTED = "a number, a 0-dim or 1-D tensor of times, or None (or infinity) for the limit"


def read_times(t: object, device: torch.device, *, steps: bool = False) -> tuple[Tensor, bool]:
    """The times as a 1-D float64 tensor, and whether a single time was asked for.

    With `steps` they are numbers of steps, which must be whole, and exact in float64.
    """
    if t is None:
        t = math.inf
    if isinstance(t, (int, float)) and not isinstance(t, bool):
        times = torch.tensor([float(t)], dtype=torch.float64)
        single = True
    elif isinstance(t, Tensor):
        times, single = _from_tensor(t)
    else:
        raise type_error("t", _EXPECTED, describe(t), "Put several times into torch.tensor([...]).")
    if bool((~(times >= 0)).any()):  # NaN is caught as well
        bad = float(times[~(times >= 0)][0])
        raise value_error("t", "not negative", f"{bad:g}", "Training starts at t = 0, with f0.")
    if steps:
        _check_whole(times)
    return times.to(device), single


def _from_tensor(t: Tensor) -> tuple[Tensor, bool]:
    check_tensor("t", t)
    if t.dtype == torch.bool or t.dtype.is_complex:
        raise type_error("t", _EXPECTED, t)
    if t.ndim > 1 or t.numel() == 0:
        raise value_error("t", _EXPECTED, t, "Flatten it with .flatten().")
    return t.detach().cpu().to(torch.float64).reshape(-1), t.ndim == 0


def _check_whole(times: Tensor) -> None:
    finite = times[torch.isfinite(times)]
    if bool((finite != finite.round()).any()):
        bad = float(finite[finite != finite.round()][0])
        raise value_error(
            "t",
            "a whole number of steps",
            f"{bad:g}",
            "Between steps there are no outputs; gradient_flow_mse is continuous in time.",
        )
    if bool((finite > 2.0**53).any()):
        raise value_error(
            "t",
            "at most 2**53 steps",
            f"{float(finite.max()):g}",
            "Use t=None for the limit.",
        )
