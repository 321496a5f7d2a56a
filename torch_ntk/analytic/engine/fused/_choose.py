"""Whether a network goes through fused loops, in which arrangement, and whether compiled."""

from __future__ import annotations

import torch
from torch import Tensor

from ...operations import Input
from .._task import Task
from ._displacements import DisplacementEvaluation
from ._layout import Layout, displacement_layout, same_position_layout
from ._same_positions import SamePositionEvaluation
from ._walk import FusedEvaluation

# Arithmetic operations from which on compiling pays: without it each takes almost a nanosecond,
# and the compiler takes some ten seconds.
_WORTH_COMPILING = 1e10


def fused_evaluation(
    task: Task, like: Tensor, shape: tuple[int, int], pairs: int, compile: bool | None
) -> FusedEvaluation | None:
    """What evaluates the longest beginning of a network in fused loops, or None.

    Not where derivatives are wanted: they would need what the buffers contained.

    Args:
        task: What is evaluated.
        like: A tensor of the type and on the device of the computation.
        shape: The size of the matrix.
        pairs: How many pairs of images are computed.
        compile: Whether to compile the loops; None decides by the work.
    """
    if torch.is_grad_enabled():
        return None
    layout = displacement_layout(task.program, task.plan)
    if layout is not None:
        if compile is None:
            compile = pairs * _work(task, layout, axes=4) > _WORTH_COMPILING
        return DisplacementEvaluation(task, layout, like, shape, compile)
    layout = same_position_layout(task.program, task.plan)
    if layout is None:
        return None
    if compile is None:
        compile = pairs * _work(task, layout, axes=2) > _WORTH_COMPILING
    # Not compiled, these loops gain nothing over plain operations.
    return SamePositionEvaluation(task, layout, like, shape) if compile else None


def _work(task: Task, layout: Layout, axes: int) -> float:
    """Arithmetic operations for one pair of images."""
    p, q = layout.size
    entries = float((p * q) ** (axes // 2))
    operations = (task.program.steps[i].operation for i in layout.steps)
    return entries * sum(o.cost for o in operations if not isinstance(o, Input))
