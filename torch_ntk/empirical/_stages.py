"""The stages of a kernel, as named ranges in a profile of `torch.profiler`.

A range lies outside of every transform, so that all operations that a stage executes, whatever
vmap makes of them, are found inside it. Ranges are empty calls where nobody profiles.
"""

from __future__ import annotations

from typing import Literal

from torch.profiler import record_function

Stage = Literal["inspect", "backward", "jacobian", "products", "check"]
"""A forward pass of one sample to find out what the model does, the passes that give cotangents,
the Jacobians that are formed of them, all products between samples, and the comparison with a plain
backward pass."""


def stage(name: Stage) -> record_function:
    """The range `torch_ntk::name`; a context manager."""
    return record_function(f"torch_ntk::{name}")
