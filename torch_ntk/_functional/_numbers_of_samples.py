"""`torch.func.vmap` over samples whose values the forward reads as numbers of Python.

`if mask.all():`, `int(length)`: vmap cannot give one number for many samples. Where all of them
have the same, it is given here; else they can be taken apart by what they have.
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
    """Samples have different numbers where a forward reads one.

    Attributes:
        kinds: `[N]`, an index for each sample, the same where the number is.
    """

    def __init__(self, kinds: Tensor) -> None:
        super().__init__()
        self.kinds = kinds


def vmap_over_samples(f: Callable[[tuple[Tensor, ...]], T], tensors: tuple[Tensor, ...]) -> T:
    """`f` of the tensors of every sample, which are without their first axis there, stacked.

    Raises:
        SamplesDifferError: `f` reads a number that is not the same for all samples.
    """
    numbers = _Numbers()

    def of_sample(sample: tuple[Tensor, ...]) -> T:
        numbers.level = maybe_get_level(sample[0])
        return f(sample)

    with numbers:
        found: T = vmap(of_sample)(tensors)
    return found


class _Numbers(TorchFunctionMode):
    """Within it, a number that all samples have in common can be read.

    Attributes:
        level: Of the vmap over samples.
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
        """The numbers `[N]`; None if there is one, or one for each of something else."""
        values = None
        while is_functorch_wrapped_tensor(t):
            if is_batchedtensor(t):
                if values is not None or maybe_get_level(t) != self.level or t.numel() != 1:
                    return None
                values = t
            t = get_unwrapped(t)
        return None if values is None else t.detach().reshape(-1)
