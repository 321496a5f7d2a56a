"""Decide which regions have a kernel, and on which devices."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec

import torch

from ..._program import Program
from ...operations import Input
from ..fused import Partition, Region, Shape


def unusable(device: torch.device) -> str:
    """Return why there are no kernels on a device, or an empty string."""
    if device.type != "cuda":
        return f"fused loops are for the CPU and for CUDA, not for {device.type}"
    return "" if find_spec("triton") else "Triton is not installed"


def suitable(program: Program, parts: Partition) -> Partition:
    """Return a partition with single steps in place of regions of vectors, which have no kernel."""
    units: list[Region | int] = []
    reasons = dict(parts.reasons)
    for unit in parts.units:
        if isinstance(unit, int) or unit.shape is not Shape.VECTORS:
            units.append(unit)
            continue
        steps = [i for i in unit.steps if not isinstance(program.steps[i].operation, Input)]
        units += steps
        reasons.update(dict.fromkeys(steps, "tensor operations take pairs of vectors on a GPU"))
    return replace(parts, units=tuple(units), reasons=reasons, kernels=True)
