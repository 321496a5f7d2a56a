"""The arguments that all monitors have, with their types, defaults and checks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypedDict, cast

import torch

from ..._checks import (
    check_bool,
    check_choice,
    check_positive_int,
    describe,
    type_error,
    value_error,
)
from ..._types import Method, ParameterSelection
from ...memory import in_bytes
from ..measure._adapted_network import ForwardFn, adapted_selection
from ..measure._evaluation import Evaluation, KernelKind, KernelOutput
from ..measure._metrics import METRICS
from ..probe._probe import InputFn, ProbeLike
from ..stability._training_loss import LossLike
from ._schedule import Schedule


class CommonOptions(TypedDict, total=False):
    """The arguments of every monitor, which `torch_ntk.callbacks.NTKMonitor` explains."""

    validation_probe: ProbeLike | None
    every_n_steps: int | None
    at_steps: Iterable[int] | None
    anchor_at: int | None
    schedule: str
    max_overhead: float
    on_error: str
    prefix: str
    input_fn: InputFn | None
    forward_fn: ForwardFn | None
    params: ParameterSelection
    batch_size: int | None
    max_memory: int | str | None
    dtype: torch.dtype | None
    recalibrate: bool
    coupled: bool


class SessionOptions(CommonOptions, total=False):
    """The arguments of a monitor with any metrics, including those of the kernel."""

    metrics: Sequence[str]
    output: KernelOutput
    kernel: str
    method: str
    loss: LossLike


@dataclass(frozen=True)
class Settings:
    """The arguments of a monitor other than its samples. `NTKMonitor` explains them.

    `Schedule` checks those of the schedule, `Evaluation` those of kernels, `Record` the metrics and
    the loss, and this class the others.

    Raises:
        TypeError, ValueError: `on_error`, `anchor_at`, `prefix`, `input_fn` or `forward_fn` is
            wrong.
    """

    every_n_steps: int | None = None
    at_steps: Iterable[int] | None = None
    anchor_at: int | None = None
    schedule: str = "linear"
    max_overhead: float = 0.05
    on_error: str = "raise"
    prefix: str = "ntk"
    input_fn: InputFn | None = None
    forward_fn: ForwardFn | None = None
    params: ParameterSelection = None
    batch_size: int | None = None
    max_memory: int | str | None = None
    dtype: torch.dtype | None = None
    metrics: Sequence[str] = METRICS
    output: KernelOutput = None
    kernel: str = "gradient"
    method: str = "auto"
    loss: LossLike = "auto"
    recalibrate: bool = True
    coupled: bool = False

    def __post_init__(self) -> None:
        """Check the arguments that no other class checks."""
        check_choice("on_error", self.on_error, ("raise", "warn"))
        if self.anchor_at is not None:
            remedy = "None compares with the network of the first step."
            check_positive_int("anchor_at", self.anchor_at, remedy)
        check_bool("recalibrate", self.recalibrate)
        if check_bool("coupled", self.coupled) and self.batch_size is not None:
            raise value_error(
                "batch_size",
                "None with coupled=True",
                describe(self.batch_size),
                "The batch is one input and is not divided.",
            )
        if not isinstance(self.prefix, str) or not self.prefix:
            came = describe(self.prefix)
            raise value_error("prefix", "a non-empty string", came, "The default is 'ntk'.")
        _check_function("input_fn", self.input_fn, "a batch", "lambda batch: (x, y).")
        of, remedy = "a network and a batch", "lambda net, x: net(x)['logits'], for example."
        _check_function("forward_fn", self.forward_fn, of, remedy)

    def new_schedule(self) -> Schedule:
        """A schedule with these settings, which has not started."""
        return Schedule(self.every_n_steps, self.schedule, self.max_overhead, self.at_steps)

    def evaluation(self) -> Evaluation:
        """The settings by which kernels and outputs are computed."""
        is_adapted = self.forward_fn is not None
        params = adapted_selection(self.params) if is_adapted else self.params
        method, kind = cast(Method, self.method), cast(KernelKind, self.kernel)
        return Evaluation(
            self.output,
            params,
            self.batch_size,
            self.dtype,
            method,
            kind,
            max_memory=None if self.max_memory is None else in_bytes(self.max_memory),
        )


def _check_function(name: str, given: object, of: str, remedy: str) -> None:
    """Raise a `TypeError` if the argument `name` is neither None nor a function of `of`."""
    if given is not None and not callable(given):
        raise type_error(name, f"a function of {of}", describe(given), f"Pass {name}={remedy}")
