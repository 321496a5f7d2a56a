"""The Python state of modules, saved before forward passes and put back after them."""

from __future__ import annotations

from collections import OrderedDict, defaultdict, deque
from typing import Any

import torch
from torch import Tensor, nn

_CONTAINERS = (list, dict, set, OrderedDict, defaultdict, deque)


class ModuleState:
    """Everything that a `forward` may leave behind in the attributes of one module.

    Some forwards leave tensors behind (the weight that `torch.nn.utils.weight_norm` computes,
    the flat weights of an LSTM, a list of activations), which inside torch.func are wrappers
    that are dead once it returns; others count their calls. Saved are the attributes by
    identity, the members of plain containers (one level deep), the values of tensors that are
    neither parameters nor buffers, and the states of random generators. Parameters and buffers
    need no copy here: `functional_call` puts other tensors in their place.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._attributes = dict(vars(module))
        values = list(self._attributes.values())
        self._containers = [(v, v.copy()) for v in values if type(v) in _CONTAINERS]
        # Inference tensors cannot be written to outside of inference mode.
        self._tensors = [
            (v, v.detach().clone())
            for v in values
            if isinstance(v, Tensor) and not v.is_inference()
        ]
        self._generators = [(v, v.get_state()) for v in values if isinstance(v, torch.Generator)]

    def restore(self) -> None:
        """Put everything back, in place where others may hold a reference."""
        current = vars(self._module)
        for name in [n for n in current if n not in self._attributes]:
            del current[name]
        current.update(self._attributes)
        for container, members in self._containers:
            if not _same_members(container, members):
                _refill(container, members)
        for tensor, value in self._tensors:
            if not torch.equal(tensor.detach(), value):
                tensor.data.copy_(value)
        for generator, state in self._generators:
            generator.set_state(state)


def _same_members(a: Any, b: Any) -> bool:
    if not a and not b:  # most: a module has a dozen dictionaries of hooks
        return True
    if isinstance(a, dict):
        return list(a) == list(b) and all(a[k] is b[k] for k in b)
    if isinstance(a, set):
        return bool(a == b)
    return len(a) == len(b) and all(v is w for v, w in zip(a, b, strict=True))


def _refill(container: Any, members: Any) -> None:
    container.clear()
    if isinstance(container, (dict, set)):
        container.update(members)
    else:
        container.extend(members)
