"""`KernelSpectrum`: the eigenvalues of the kernel during training."""

from __future__ import annotations

from typing_extensions import Unpack

from torch_ntk.monitor import ProbeLike
from torch_ntk.monitor.measure import SPECTRAL

from ._base import KernelCallback
from ._options import KernelOptions


class KernelSpectrum(KernelCallback):
    r"""Logs the spectrum of the kernel on a fixed probe.

    It logs `ntk/lambda_min`, `ntk/lambda_max`, `ntk/condition`, `ntk/effective_rank`,
    `ntk/numerical_rank` and `ntk/noise_floor`, and a figure of the eigenvalues and their history.

    The arguments are those of `NTKMonitor`. As several callbacks of this package may be used in one
    run, each logs its time under a name of its own, here `spectrum_seconds`.

    Raises:
        TypeError, ValueError: An argument is wrong.
    """

    own = "spectrum_"

    def __init__(self, probe: ProbeLike | None = None, **options: Unpack[KernelOptions]) -> None:
        super().__init__(probe, metrics=SPECTRAL, **options)
