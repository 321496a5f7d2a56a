"""The stages of a kernel, as named ranges in a profile of `torch.profiler`.

A range is outside of every transform, so that it contains all operations that a stage executes,
also those that vmap replaces. Without a profiler ranges cost almost nothing.
"""

from __future__ import annotations

from typing import Literal

from torch.profiler import record_function

Stage = Literal["inspect", "backward", "jacobian", "products", "check"]
"""The forward pass that inspects one sample, the passes that compute cotangents, the formation of
Jacobians, all products between samples, and the comparison with a plain backward pass."""


def stage(name: Stage) -> record_function:
    """Return a context manager for the range `torch_ntk::name`."""
    return record_function(f"torch_ntk::{name}")
