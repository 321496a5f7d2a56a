"""Modes that measure every operation of a forward pass."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class ForwardRecord(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records the sizes and the precision of the results of operations.

    Attributes:
        bytes: The sum of the sizes of all results.
        largest: The size of the largest result.
        rounds: Whether float64 numbers are converted to a lower precision, as by a normalization
            that always computes in float32.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = self.largest = 0
        self.rounds = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        # Views, such as the transpose of a weight, and results in place take no further memory.
        if _is_new(func):
            for t in out if isinstance(out, (tuple, list)) else (out,):
                if isinstance(t, Tensor) and t.device.type != "meta":
                    size = t.numel() * t.element_size()
                    self.bytes += size
                    self.largest = max(self.largest, size)
        if func is torch.ops.aten._to_copy.default and args[0].dtype == torch.float64:
            self.rounds |= out.is_floating_point() and out.dtype != torch.float64
        return out


class Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the floating-point operations of matrix products and convolutions.

    `FlopCounterMode` has the same formulas, but also hooks into every module call, which raises an
    error in compiled submodules.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        from torch.utils.flop_counter import flop_registry  # loads triton, which takes long

        self.count = 0
        self._formulas = flop_registry

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        formula = self._formulas.get(func.overloadpacket)
        if formula is not None:
            self.count += int(formula(*args, **kwargs, out_val=out))
        return out


@functools.cache
def _is_new(func: Any) -> bool:
    return not any(r.alias_info for r in func._schema.returns)
