"""Arguments that the smaller callbacks share with `NTKMonitor`, where they are documented."""

from __future__ import annotations

from torch_ntk.monitor import CommonOptions, KernelOutput


class PlainOptions(CommonOptions, total=False):
    """For every callback."""

    network: str | None
    tensorboard_layout: bool
    theta_0: str


class StabilityOptions(PlainOptions, total=False):
    """For one whose kernel is always the full one."""

    method: str


class CallbackOptions(PlainOptions, total=False):
    """For one that draws figures."""

    log_figures: bool
    figure_every: int | None


class KernelOptions(CallbackOptions, total=False):
    """For one that takes the kernel."""

    output: KernelOutput
    kernel: str
    method: str
