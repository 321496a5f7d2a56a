"""Arguments that the smaller callbacks share with `NTKMonitor`, where they are documented."""

from __future__ import annotations

from torch_ntk.monitor import KernelOutput
from torch_ntk.monitor.loop import CommonOptions


class PlainOptions(CommonOptions, total=False):
    """The arguments of every callback."""

    network: str | None
    tensorboard_layout: bool
    theta_0: str


class StabilityOptions(PlainOptions, total=False):
    """The arguments of a callback whose kernel is always the full one."""

    method: str


class CallbackOptions(PlainOptions, total=False):
    """The arguments of a callback that draws figures."""

    log_figures: bool
    figure_every: int | None


class KernelOptions(CallbackOptions, total=False):
    """The arguments of a callback that computes a kernel."""

    output: KernelOutput
    kernel: str
    method: str
