"""`LinearizationGap`: how far training has left its linearization."""

from __future__ import annotations

import torch

from torch_ntk._types import ParameterSelection
from torch_ntk.monitor import DEFAULT_PROBE, InputFn, ProbeLike

from ._base import KernelCallback
from ._network import ForwardFn


class LinearizationGap(KernelCallback):
    r"""Logs how far the network has left its linearization on a fixed probe.

    That is `ntk/linearization_gap` = ‖f_t - f_t^lin‖ / ‖f_t - f_0‖ and `ntk/param_drift`, with a
    scatter plot. No kernel is computed: a measurement takes two forward passes of the probe and
    two backward passes, the second through the first, whatever the number of outputs.

    Arguments as in `NTKMonitor`. Where several callbacks of this package watch one run, each logs
    its time under a name of its own, here `linearization_seconds`.

    Raises:
        TypeError, ValueError: An argument is wrong.
    """

    own = "linearization_"

    def __init__(
        self,
        probe: ProbeLike = DEFAULT_PROBE,
        *,
        every_n_steps: int | None = None,
        schedule: str = "linear",
        log_figures: bool = True,
        max_overhead: float = 0.05,
        on_error: str = "raise",
        prefix: str = "ntk",
        network: str | None = None,
        input_fn: InputFn | None = None,
        forward_fn: ForwardFn | None = None,
        params: ParameterSelection = None,
        batch_size: int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            probe,
            metrics=("linearization_gap", "param_drift"),
            every_n_steps=every_n_steps,
            schedule=schedule,
            output="mean",
            log_figures=log_figures,
            max_overhead=max_overhead,
            on_error=on_error,
            prefix=prefix,
            network=network,
            input_fn=input_fn,
            forward_fn=forward_fn,
            params=params,
            batch_size=batch_size,
            dtype=dtype,
            method="auto",
        )
