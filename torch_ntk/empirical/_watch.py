"""What is watched during a forward pass: every operation, as it is made."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from ._known import Signature


class Costs(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the operations inside and the sizes of everything that they return.

    `FlopCounterMode` has the same formulas, but also hooks into every module call, at which
    compiled submodules take offence.
    """

    def __init__(self, signature: Signature) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.signature = signature
        self.bytes = 0
        self.flops = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        self.signature.add(func, args, kwargs)
        out = func(*args, **kwargs)
        # What is a view or written in place, such as the transpose of a weight, takes no memory.
        if not any(r.alias_info for r in func._schema.returns):
            for t in out if isinstance(out, (tuple, list)) else (out,):
                if isinstance(t, Tensor):
                    self.bytes += t.numel() * t.element_size()
        formula = flop_registry.get(func.overloadpacket)
        if formula is not None:
            self.flops += int(formula(*args, **kwargs, out_val=out))
        return out


class WrittenError(Exception):
    """The forward writes to a parameter that is shared with the caller."""


def storages(tensors: Iterable[Tensor]) -> frozenset[int]:
    """Addresses of their memory; there are none where nothing is held."""
    return frozenset(t.untyped_storage().data_ptr() for t in tensors) - {0}


class NoWrites(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Refuses operations that would write to memory at some addresses, before they are made.

    Args:
        addresses: Of storages.
        but: Operations that may write there.
    """

    def __init__(self, addresses: frozenset[int], but: Sequence[Any] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._addresses, self._but = addresses, but

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func._schema.is_mutable and func.overloadpacket not in self._but:
            for k, argument in enumerate(func._schema.arguments):
                if argument.alias_info is not None and argument.alias_info.is_write:
                    value = args[k] if k < len(args) else kwargs.get(argument.name)
                    for t in value if isinstance(value, (list, tuple)) else (value,):
                        if isinstance(t, Tensor) and self._is_shared(t):
                            raise WrittenError
        return func(*args, **kwargs)

    def _is_shared(self, t: Tensor) -> bool:
        return t.untyped_storage().data_ptr() in self._addresses
