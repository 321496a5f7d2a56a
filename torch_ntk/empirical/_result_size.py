"""Check that the result of a call fits in memory."""

from __future__ import annotations

import math

import torch

from .._checks import value_error
from .._functional import ModelFunction
from .._types import Output
from ..memory import free_memory, size_in_words
from ._outputs import advice, shape


def check_fits(
    fn: ModelFunction,
    output: Output,
    n1: int,
    n2: int,
    o: int,
    parts: int = 1,
    allowed: int | None = None,
) -> int:
    """Return the bytes of the result; raise an error if they exceed the free or allowed memory."""
    dims = shape(output, n1, n2, o)
    size = parts * math.prod(dims) * (torch.finfo(fn.products).bits // 8)
    free = free_memory(fn.device)
    bound = f"the {size_in_words(free)} that are free"
    if allowed is not None and allowed < free:
        free, bound = allowed, f"max_memory, {size_in_words(allowed)}"
    if size > free and fn.coupled:
        raise value_error(
            "coupled",
            "of a batch whose kernel between all rows and outputs, from which every output is "
            f"taken, fits in {bound}",
            f"one of {o} rows times outputs, a kernel {list(dims[2:])} of {size_in_words(size)}",
            "Instead: NTKOperator(…, coupled=True) multiplies by it without forming it; "
            "output='pseudo', or 'probed' with few probes, leaves fewer outputs of a row, and so "
            "does a forward_fn that returns only some.",
        )
    if size > free:
        many = "a kernel" if parts == 1 else f"{parts} kernels"
        raise value_error(
            "output",
            f"one whose result fits in {bound}",
            f"{output!r}, {many} {list(dims)} of {size_in_words(size)}",
            f"Instead: {advice(output, o)}.",
        )
    return size


def held(fn: ModelFunction) -> int:
    """Return the bytes that are always in use: copies of parameters, and gradients to check."""
    return 4 * fn.parameter_bytes
