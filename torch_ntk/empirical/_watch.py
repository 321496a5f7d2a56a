"""What is watched during a forward pass: every operation, as it is made."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from .._checks import value_error
from .._functional import plain_name
from ._known import Signature


class WrittenError(Exception):
    """The forward writes to a parameter that is shared with the caller."""


def storages(tensors: Iterable[Tensor]) -> frozenset[int]:
    """Addresses of their memory; there are none where nothing is held."""
    return frozenset(t.untyped_storage().data_ptr() for t in tensors) - {0}


@contextlib.contextmanager
def unwritten(shared: Mapping[str, Tensor]) -> Iterator[None]:
    """Raise if one of these parameters is written to within it.

    A forward may do in a later call what it did not do in those that `NoWrites` has seen, and what
    is computed from changing parameters is no kernel. Torch counts no writes through `.data`.

    Raises:
        ValueError: One was. It keeps its new value, as no copy of the old one was made.
    """
    versions = {n: t._version for n, t in shared.items()}
    try:
        yield
    except Exception:  # likely a consequence; an interruption stays what it is
        _check_versions(shared, versions)
        raise
    _check_versions(shared, versions)


def _check_versions(shared: Mapping[str, Tensor], versions: Mapping[str, int]) -> None:
    for name, version in versions.items():
        if shared[name]._version != version:
            raise value_error(
                "model",
                "a function whose parameters stay as they are while the kernel is computed",
                f"one that has written to {plain_name(name)!r}, and has changed it",
                "Look for an in-place operation in its forward that not every call makes, "
                "or for another thread that trains it; write to a buffer instead.",
            )


class NoWrites(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Refuses operations that would write to memory at some addresses, before they are made.

    Args:
        addresses: Of storages.
        but: Operations that may write there.
    """

    def __init__(self, addresses: frozenset[int], but: Sequence[Any] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.addresses, self.but = addresses, but

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        self.check(func, args, kwargs)
        return func(*args, **kwargs)

    def check(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Raise `WrittenError` if the call would write there."""
        if self.addresses and func._schema.is_mutable and func.overloadpacket not in self.but:
            for k, argument in enumerate(func._schema.arguments):
                if argument.alias_info is not None and argument.alias_info.is_write:
                    value = args[k] if k < len(args) else kwargs.get(argument.name)
                    for t in value if isinstance(value, (list, tuple)) else (value,):
                        if isinstance(t, Tensor) and self._is_shared(t):
                            raise WrittenError

    def _is_shared(self, t: Tensor) -> bool:
        return t.untyped_storage().data_ptr() in self.addresses


class Costs(NoWrites):  # type: ignore[no-untyped-call]
    """Adds up the operations inside and the sizes of everything that they return.

    `FlopCounterMode` has the same formulas, but also hooks into every module call, at which
    compiled submodules take offence.

    Args:
        signature: To which every operation is added.
        guard: Whose refusals hold inside; two modes would take twice the time.
    """

    def __init__(self, signature: Signature, guard: NoWrites) -> None:
        super().__init__(guard.addresses, guard.but)
        self.signature = signature
        self.bytes = 0
        self.flops = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        words = self.signature.add(func, args, kwargs)
        self.check(func, args, kwargs)
        out = func(*args, **kwargs)
        # What is a view or written in place, such as the transpose of a weight, takes no memory.
        if _is_new(func):
            for t in out if isinstance(out, (tuple, list)) else (out,):
                if isinstance(t, Tensor):
                    self.bytes += t.numel() * t.element_size()
        formula = flop_registry.get(func.overloadpacket)
        if formula is not None:
            # The formulas take longer than a small product.
            flops = _flops.get(words)
            if flops is None:
                if len(_flops) > _MOST:
                    _flops.clear()
                flops = _flops[words] = int(formula(*args, **kwargs, out_val=out))
            self.flops += flops
        return out


_MOST = 4096
_flops: dict[str, int] = {}
"""Of calls as `Signature` writes them, with all shapes."""


@functools.cache
def _is_new(func: Any) -> bool:
    return not any(r.alias_info for r in func._schema.returns)
