"""Evaluating a program by what is fastest on its device."""

from __future__ import annotations

import torch
from torch import Tensor

from .._program import Program
from ._kernels import with_kernels
from ._matrix import matrix
from ._options import Options
from ._plan import plan
from .fused import Partition, partition, unfused
from .triton import unusable


def run(program: Program, options: Options, *, ntk: bool) -> tuple[Tensor, Tensor | None]:
    """K and Θ `[N1, N2]` of a program.

    Args:
        program: The network with its inputs.
        options: How it is computed.
        ntk: Whether Θ is wanted.
    """
    return matrix(program, divided(program, program.known[0].x1), options, ntk=ntk)


def divided(program: Program, like: Tensor) -> Partition:
    """A program as regions for fused loops and single steps.

    Args:
        program: The network.
        like: A tensor of the type and on the device of the computation.
    """
    if torch.is_grad_enabled():
        return unfused(program, "derivatives by the inputs are wanted")
    problem = unusable(like.device)
    if not problem:
        return with_kernels(program, like)
    if like.device.type == "cpu":
        return partition(program, plan(program), like.dtype == torch.float64)
    return unfused(program, problem)
