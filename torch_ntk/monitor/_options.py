"""Arguments that monitors share, for signatures that pass them on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypedDict

import torch

from .._types import Output, ParameterSelection
from ._adapted import ForwardFn
from ._probe import InputFn, ProbeLike
from ._training_loss import LossLike


class CommonOptions(TypedDict, total=False):
    """Arguments that every monitor takes; see `torch_ntk.callbacks.NTKMonitor`."""

    validation_probe: ProbeLike | None
    every_n_steps: int | None
    at_steps: Iterable[int] | None
    schedule: str
    max_overhead: float
    on_error: str
    prefix: str
    input_fn: InputFn | None
    forward_fn: ForwardFn | None
    params: ParameterSelection
    batch_size: int | None
    dtype: torch.dtype | None


class WatchOptions(CommonOptions, total=False):
    """Arguments of a monitor that takes the kernel, with its metrics."""

    metrics: Sequence[str]
    output: Output
    method: str
    loss: LossLike
