"""Inspect the forward pass of one sample before any costly computation."""

from ._forward_check import Follower as Follower
from ._forward_check import Inspection as Inspection
from ._forward_check import forward_operations as forward_operations
from ._forward_check import inspect_forward as inspect_forward
from ._forward_check import keep_hooks_that_matter as keep_hooks_that_matter
from ._forward_check import not_deterministic as not_deterministic

__all__ = [
    "Follower",
    "Inspection",
    "forward_operations",
    "inspect_forward",
    "keep_hooks_that_matter",
    "not_deterministic",
]
