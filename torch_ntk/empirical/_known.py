"""What has been proved of a model already, so that repeated calls need not prove it again.

Results are kept for each module object, as long as it lives, under a signature of the whole
computation: every operation of a forward pass with its arguments, the parameters by their names
and everything else by shape, dtype and value. Whatever changes one of them is checked anew.
"""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from .._functional import ModelFunction
from ._uses import Plan

_MOST = 64  # signatures of one module; control flow may make ever new ones


@dataclass(frozen=True)
class Proof:
    """What the comparison of a plan with automatic differentiation found.

    Attributes:
        wrong: The parameters for which they did not agree.
        channels_last: Whether the plan is right with channels innermost in memory.
        right: Sizes of the batches for which the batched backward pass was seen to be right.
    """

    wrong: frozenset[str]
    channels_last: bool
    right: set[int] = field(default_factory=set)


@dataclass
class Known:
    """Proofs about one module.

    Attributes:
        uncoupled: Signatures whose samples do not depend on each other.
        plans: By signature the plan, without its tensors.
        proofs: By signature and plan what was found.
    """

    uncoupled: set[Hashable] = field(default_factory=set)
    plans: dict[Hashable, Plan] = field(default_factory=dict)
    proofs: dict[Hashable, Proof] = field(default_factory=dict)

    def keep_few(self) -> None:
        """Forget everything when it has become too much."""
        if max(len(self.uncoupled), len(self.plans), len(self.proofs)) > _MOST:
            self.uncoupled.clear()
            self.plans.clear()
            self.proofs.clear()


_known: dict[int, tuple[weakref.ref[nn.Module], Known]] = {}


def known(fn: ModelFunction) -> Known:
    """What is known of the module of `fn`; nothing for functions, of which no object remains."""
    module = fn.module
    if module is None:
        return Known()
    key = id(module)
    found = _known.get(key)
    if found is None or found[0]() is not module:
        found = (weakref.ref(module, lambda _: _known.pop(key, None)), Known())
        _known[key] = found
    found[1].keep_few()
    return found[1]


class Signature:
    """Collects the operations of one forward pass of `fn`."""

    def __init__(self, fn: ModelFunction) -> None:
        self._names = {id(p): n for n, p in fn.params.items()}
        modules = [] if fn.module is None else [type(m) for m in fn.module.modules()]
        self._fixed = (
            tuple(modules),
            tuple((n, tuple(p.shape)) for n, p in fn.params.items()),
            fn.dtype,
            fn.device,
        )
        self._operations = hashlib.sha256()

    def add(self, func: Any, args: Sequence[Any], kwargs: Any) -> str:
        """One call of an operation, in words."""
        words = f"{func}({self._word(args)}{self._word(kwargs)});"
        self._operations.update(words.encode())
        return words

    def _word(self, value: Any) -> str:
        if isinstance(value, Tensor):
            name = self._names.get(id(value))
            shape = f"{tuple(value.shape)}{value.dtype}"
            return shape if name is None else f"{name!r}{shape}"
        if isinstance(value, (tuple, list)):
            return f"({','.join(map(self._word, value))})"
        if isinstance(value, dict):
            return f"{{{','.join(f'{k}:{self._word(v)}' for k, v in value.items())}}}"
        return repr(value)

    def key(self) -> Hashable:
        """Equal for two passes only if they made the same calls on the same parameters."""
        return (*self._fixed, self._operations.hexdigest())
