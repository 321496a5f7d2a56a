"""What is measured during a forward pass: every operation, as it is made."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class ForwardRecord(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """What is seen of the operations inside.

    Attributes:
        bytes: The sizes of everything that they return, added up.
        largest: The size of the largest.
        rounds: Whether float64 numbers are converted to a coarser type, as a normalization does
            that is always computed in float32.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = self.largest = 0
        self.rounds = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        # What is a view or written in place, such as the transpose of a weight, takes no memory.
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
    """Adds up the floating-point operations of matrix products and convolutions inside.

    `FlopCounterMode` has the same formulas, but also hooks into every module call, which raises in
    compiled submodules.
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
