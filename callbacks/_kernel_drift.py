"""`KernelDrift`: how far the kernel has moved from the kernel at the start."""

from __future__ import annotations

from typing_extensions import Unpack

from torch_ntk.monitor import ProbeLike

from ._base import KernelCallback
from ._options import KernelOptions


class KernelDrift(KernelCallback):
    r"""Logs how far and how fast the kernel on a fixed probe moves, with a heat map of the kernel.

    It logs `ntk/drift` = ‖Θ_t - Θ_0‖_F / ‖Θ_0‖_F, `ntk/kernel_distance` = 1 - cos(Θ_t, Θ_0), and
    `ntk/velocity` = ‖Θ_t - Θ_s‖_F / (‖Θ_t‖_F (t - s)), where s is the step of the measurement
    before.

    The arguments are those of `NTKMonitor`. As several callbacks of this package may be used in one
    run, each logs its time under a name of its own, here `drift_seconds`.

    Raises:
        TypeError, ValueError: An argument is wrong.
    """

    own = "drift_"

    def __init__(self, probe: ProbeLike | None = None, **options: Unpack[KernelOptions]) -> None:
        super().__init__(probe, metrics=("drift", "kernel_distance", "velocity"), **options)
