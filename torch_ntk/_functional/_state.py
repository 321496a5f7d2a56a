"""The Python state that forward passes may change, saved before and put back after them."""

from __future__ import annotations

import contextlib
import functools
import operator
from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterable, Iterator
from types import FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from ._unwrap import is_script

_CONTAINERS = (list, dict, set, OrderedDict, defaultdict, deque)
_DEPTH = 4  # levels of containers, functions and objects from an attribute on
# Objects of these packages are no caches of a forward: trainers, loggers, devices, generators, …
_FOREIGN = ("torch", "numpy", "lightning", "pytorch_lightning", "builtins", "_thread")


class PythonState:
    """Everything that a `forward` may leave behind in the attributes of modules.

    Some forwards leave tensors behind (the weight that `torch.nn.utils.weight_norm` computes, the
    flat weights of an LSTM, weights that are derived once in eval mode and kept), which inside
    torch.func are wrappers that are dead once it returns; others count their calls. Saved are the
    attributes by identity, the members of containers and of plain objects in them, the values of
    tensors that are neither parameters nor buffers, and the states of random generators.
    Parameters and buffers need no copy here: other tensors stand in their place meanwhile.

    Args:
        modules: Whose attributes are saved.
        with_values: Whether the values of tensors and generators are saved too.
        also: Functions and objects, what these hold is saved likewise.
    """

    def __init__(
        self, modules: Iterable[nn.Module], with_values: bool = True, also: Iterable[Any] = ()
    ) -> None:
        self._with_values = with_values
        self._members: list[tuple[Any, Any]] = []  # a container, and a shallow copy of it
        self._tensors: list[tuple[Tensor, Tensor, int]] = []
        self._generators: list[tuple[torch.Generator, Tensor]] = []
        self._seen: set[int] = set()
        for module in modules:
            attributes = vars(module)
            own = {id(t) for kind in ("_parameters", "_buffers") for t in attributes[kind].values()}
            self._seen.update(own)
            self._members.append((attributes, dict(attributes)))
            for name, value in attributes.items():
                if name not in _TORCHS:
                    self._visit(value)
                elif value and type(value) in _CONTAINERS:  # most are dictionaries of no hooks
                    self._members.append((value, value.copy()))

        for value in also:
            self._visit(value)

    def _visit(self, value: Any) -> None:
        for held in walk(value, _DEPTH, self._seen, into_modules=False):
            if isinstance(held, Tensor):
                # Those of inference mode cannot be written to outside of it.
                if self._with_values and not held.is_inference():
                    self._tensors.append((held, held.detach().clone(), held._version))
            elif isinstance(held, torch.Generator):
                if self._with_values:
                    self._generators.append((held, held.get_state()))
            elif type(held) in _CONTAINERS:
                self._members.append((held, held.copy()))
            elif _is_plain_object(held):
                self._members.append((vars(held), dict(vars(held))))

    def restore_attributes(self) -> None:
        """Put attributes and members back, in place where others may hold a reference.

        Between two evaluations this is enough, and quick where nothing has changed: a value of a
        tensor that the first one has changed makes the second one differ, which is noticed.
        """
        for current, saved in self._members:
            if (current or saved) and not _same(current, saved):
                _refill(current, saved)

    def restore(self) -> None:
        """Put everything back."""
        self.restore_attributes()
        for tensor, value, version in self._tensors:
            changed = tensor._version != version or not torch.equal(tensor.detach(), value)
            if changed:
                tensor.data.copy_(value)
        for generator, state in self._generators:
            generator.set_state(state)


# Of every module of torch: what they hold is saved as it is.
_TORCHS = frozenset(vars(nn.Module()))


def walk(value: Any, depth: int, seen: set[int], into_modules: bool = True) -> Iterator[Any]:
    """`value` and what it holds, each object once.

    Args:
        value: Anything. Containers, functions and plain objects are looked into.
        depth: How many levels, of which `value` is the first.
        seen: Identities of what has been met; these are passed over.
        into_modules: Whether modules are given and looked into as well, all submodules at once.
    """
    if depth == 0 or value is None or isinstance(value, (str, int, float, type)):
        return
    if id(value) in seen or (isinstance(value, nn.Module) and not into_modules):
        return
    seen.add(id(value))
    yield value
    for member in _held_by(value):
        yield from walk(member, depth - 1, seen, into_modules)


def _held_by(value: Any) -> list[Any]:
    if isinstance(value, nn.Module):
        modules = [] if is_script(value) else list(value.modules())
        return [v for m in modules for n, v in vars(m).items() if n not in _TORCHS]
    if isinstance(value, dict):
        return list(value.values())
    if isinstance(value, (list, tuple, set, deque)):
        return list(value)
    if isinstance(value, (FunctionType, MethodType, functools.partial)):
        return reached_by(value)
    return list(vars(value).values()) if _is_plain_object(value) else []


def reached_by(function: Any) -> list[Any]:
    """What a function holds besides its code: closure, defaults, and arguments that are bound."""
    if isinstance(function, functools.partial):
        return [function.func, *function.args, *function.keywords.values()]
    if isinstance(function, MethodType):
        return [function.__self__, function.__func__]
    cells = []
    for cell in function.__closure__ or ():
        with contextlib.suppress(ValueError):  # not filled yet
            cells.append(cell.cell_contents)
    return [*cells, *(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]


def hidden_modules(value: Any) -> list[nn.Module]:
    """Modules that a function or a module reaches in another way than as submodules."""
    modules = (held for held in walk(value, _DEPTH + 1, set()) if isinstance(held, nn.Module))
    found = (m for module in modules if not is_script(module) for m in module.modules())
    return [m for m in dict.fromkeys(found) if not is_script(m)]


def _is_plain_object(value: Any) -> bool:
    kind = type(value)
    package = kind.__module__.partition(".")[0]
    if package in _FOREIGN or isinstance(value, ModuleType) or not hasattr(value, "__dict__"):
        return False
    return not isinstance(value, (torch.optim.Optimizer, BaseException))


def _same(a: Any, b: Any) -> bool:
    if len(a) != len(b):
        return False
    if isinstance(a, dict):
        return all(map(operator.is_, a, b)) and all(map(operator.is_, a.values(), b.values()))
    if isinstance(a, set):
        return bool(a == b)
    return all(map(operator.is_, a, b))


def _refill(container: Any, members: Any) -> None:
    container.clear()
    if isinstance(container, (dict, set)):
        container.update(members)
    else:
        container.extend(members)
