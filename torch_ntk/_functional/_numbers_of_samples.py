"""`torch.func.vmap` over samples for a forward that converts tensors to Python numbers.

Examples are `if mask.all():` and `int(length)`. Under vmap a tensor has a value for each sample, so
that torch cannot convert it. Here the conversion succeeds if all samples have the same value.
Otherwise an exception tells which samples have equal values, so that the caller can group them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch._C._functorch import (
    get_unwrapped,
    is_batchedtensor,
    is_functorch_wrapped_tensor,
    maybe_get_level,
)
from torch.func import vmap
from torch.overrides import TorchFunctionMode

T = TypeVar("T")

_READING = (Tensor.__bool__, Tensor.__int__, Tensor.__float__, Tensor.__index__, Tensor.item)


class SamplesDifferError(Exception):
    """A forward converts a tensor to a number, and the samples have different values there.

    Attributes:
        kinds: Integers `[N]`, which are equal for samples with equal values and count from 0.
    """

    def __init__(self, kinds: Tensor) -> None:
        super().__init__()
        self.kinds = kinds


def vmap_over_samples(f: Callable[[tuple[Tensor, ...]], T], tensors: tuple[Tensor, ...]) -> T:
    """Apply `f` to the tensors `[...]` of each sample with vmap, and stack the results.

    `SamplesDifferError` is raised if `f` converts a tensor to a number that differs between
    samples.
    """
    numbers = _Numbers()

    def of_sample(sample: tuple[Tensor, ...]) -> T:
        numbers.level = maybe_get_level(sample[0])
        return f(sample)

    with numbers:
        found: T = vmap(of_sample)(tensors)
    return found


class _Numbers(TorchFunctionMode):
    """A context in which a tensor can be converted to a number if all samples have the same value.

    Attributes:
        level: The level of functorch at which vmap over samples runs.
    """

    level = -1

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        values = self._of_samples(args[0]) if func in _READING else None
        if values is None:
            return func(*args, **(kwargs or {}))
        numbers, kinds = torch.unique(values, return_inverse=True)
        if len(numbers) > 1:
            raise SamplesDifferError(kinds)
        return func(numbers[0])

    def _of_samples(self, t: Tensor) -> Tensor | None:
        """The values `[N]` of a tensor with one number per sample, or None for other tensors."""
        values = None
        while is_functorch_wrapped_tensor(t):
            if is_batchedtensor(t):
                if values is not None or maybe_get_level(t) != self.level or t.numel() != 1:
                    return None
                values = t
            t = get_unwrapped(t)
        return None if values is None else t.detach().reshape(-1)
