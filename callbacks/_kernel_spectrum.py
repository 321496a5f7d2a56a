"""`KernelSpectrum`: the eigenvalues of the kernel during training."""

from __future__ import annotations

import torch

from torch_ntk._types import Output, ParameterSelection
from torch_ntk.monitor import DEFAULT_PROBE, SPECTRAL, InputFn, ProbeLike

from ._base import KernelCallback
from ._network import ForwardFn


class KernelSpectrum(KernelCallback):
    r"""Logs the spectrum of the kernel on a fixed probe.

    That is `ntk/lambda_min`, `ntk/lambda_max`, `ntk/condition` and `ntk/effective_rank`, with a
    figure of the eigenvalues and their history.

    Arguments as in `NTKMonitor`. Where several callbacks of this package watch one run, each logs
    its time under a name of its own, here `spectrum_seconds`.

    Raises:
        TypeError, ValueError: An argument is wrong.
    """

    own = "spectrum_"

    def __init__(
        self,
        probe: ProbeLike = DEFAULT_PROBE,
        *,
        every_n_steps: int | None = None,
        schedule: str = "linear",
        output: Output = "mean",
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
        method: str = "auto",
    ) -> None:
        super().__init__(
            probe,
            metrics=SPECTRAL,
            every_n_steps=every_n_steps,
            schedule=schedule,
            output=output,
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
            method=method,
        )
