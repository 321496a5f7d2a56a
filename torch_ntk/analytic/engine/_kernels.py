"""Programs on a GPU: kernels for what has one, after a comparison with tensor operations."""

from __future__ import annotations

import warnings
from dataclasses import replace

import torch
from torch import Tensor

from .._program import Program
from ..operations import Input
from ._matrix import matrix
from ._options import Options
from ._plan import plan
from ._task import Task
from .fused import Partition, partition, unfused
from .triton import KernelEvaluation, suitable

# Per network, device and type, what was wrong with its kernels; nothing if they are right.
_problems: dict[tuple[str, ...], str] = {}


def with_kernels(program: Program, like: Tensor) -> Partition:
    """A program as kernels and single steps.

    At the first use of a network its kernels are compared with tensor operations on two images. If
    they differ, or cannot be compiled, there is a warning, and tensor operations take their place.

    Args:
        program: The network.
        like: A tensor of the type and on the device of the computation.
    """
    parts = suitable(program, partition(program, plan(program), like.dtype == torch.float64))
    if not parts.regions:
        return parts
    task = Task(program, plan(program), True, program.known[0].x2 is None)
    key = (
        str(like.device),
        *(KernelEvaluation(task, region, like).fingerprint for region in parts.regions),
    )
    if key not in _problems:
        _problems[key] = _problem(program, parts, like)
        if _problems[key]:
            warnings.warn(
                f"The Triton kernel of this network {_problems[key]}. Tensor operations take its "
                "place: the results are right, and take longer.",
                RuntimeWarning,
                stacklevel=2,
            )
    if _problems[key]:
        return unfused(program, f"its Triton kernel {_problems[key]}")
    return parts


def _problem(program: Program, parts: Partition, like: Tensor) -> str:
    """Return what is wrong with the kernels of a program, or an empty string."""
    small = _two_images(program)
    options = Options(None, False)
    try:
        found = matrix(small, parts, options, ntk=True)
    except Exception as error:  # whatever a compiler raises
        first = (str(error).strip() or "no message").splitlines()[0]
        return f"failed ({type(error).__name__}: {first[:200]})"
    wanted = matrix(small, unfused(small, ""), options, ntk=True)
    # An angle near 0, whose cosine is rounded, is known up to the square root of the rounding.
    tolerance = torch.finfo(like.dtype).eps ** 0.5
    for name, one, two in zip(("K", "Θ"), found, wanted, strict=True):
        assert one is not None
        assert two is not None
        error_ = float((one - two).abs().max() / two.abs().max().clamp(min=1e-30))
        if not error_ <= tolerance:
            return f"differs from tensor operations by {error_:.1e} of the largest entry of {name}"
    return ""


def _two_images(program: Program) -> Program:
    """Return the program for two random images: given ones may be equal or not finite."""
    steps = []
    generator = torch.Generator().manual_seed(0)
    for step in program.steps:
        if isinstance(step.operation, Input):
            x = step.operation.x1
            drawn = torch.randn(2, *x.shape[1:], device="cpu", generator=generator).to(x)
            step = replace(step, operation=Input(drawn, None))
        steps.append(step)
    return Program(tuple(steps))
