"""`LinearizationGap`: how far training has left its linearization."""

from __future__ import annotations

from typing_extensions import Unpack

from torch_ntk.monitor import ProbeLike

from ._base import KernelCallback
from ._options import CallbackOptions


class LinearizationGap(KernelCallback):
    r"""Logs how far the network has left its linearization on a fixed probe.

    It logs `ntk/linearization_gap` = ‖f_t - f_t^lin‖ / ‖f_t - f_0‖, `ntk/param_drift` and, with
    batch normalization, `ntk/statistics_share`, and a scatter plot. No kernel is computed. A
    measurement takes a few forward passes of the probe and two backward passes, of which the second
    differentiates the first, for any number of outputs.

    The arguments are those of `NTKMonitor`. As several callbacks of this package may be used in one
    run, each logs its time under a name of its own, here `linearization_seconds`.

    Raises:
        TypeError, ValueError: An argument is wrong.
    """

    own = "linearization_"

    def __init__(self, probe: ProbeLike | None = None, **options: Unpack[CallbackOptions]) -> None:
        super().__init__(
            probe, metrics=("linearization_gap", "param_drift", "statistics_share"), **options
        )
