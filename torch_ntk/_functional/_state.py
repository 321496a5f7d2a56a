"""The Python state that forward passes may change, saved before and put back after them."""

from __future__ import annotations

import functools
import operator
from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterable
from types import FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

_CONTAINERS = (list, dict, set, OrderedDict, defaultdict, deque)
_DEPTH = 3  # of containers and objects inside of an attribute
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
                    self._visit(value, _DEPTH)
                elif value and type(value) in _CONTAINERS:  # most are dictionaries of no hooks
                    self._members.append((value, value.copy()))

        for value in also:
            self._visit(value, _DEPTH)

    def _visit(self, value: Any, depth: int) -> None:
        if isinstance(value, (str, int, float, nn.Module, type)) or value is None:
            return
        if id(value) in self._seen:
            return
        if isinstance(value, Tensor):
            self._seen.add(id(value))
            if (
                self._with_values and not value.is_inference()
            ):  # these cannot be written to outside of inference mode
                self._tensors.append((value, value.detach().clone(), value._version))
        elif isinstance(value, torch.Generator):
            self._seen.add(id(value))
            if not self._with_values:
                return
            self._generators.append((value, value.get_state()))
        elif type(value) in _CONTAINERS:
            self._seen.add(id(value))
            self._members.append((value, value.copy()))
            if depth > 1:
                for member in list(value.values() if isinstance(value, dict) else value):
                    self._visit(member, depth - 1)
        elif isinstance(value, tuple):
            for member in value if depth > 1 else ():
                self._visit(member, depth - 1)
        elif isinstance(value, (FunctionType, MethodType, functools.partial)):
            self._seen.add(id(value))
            for member in _reached_by(value):
                self._visit(member, depth - 1)
        elif depth > 1 and _is_plain_object(value):
            self._seen.add(id(value))
            self._members.append((vars(value), dict(vars(value))))
            for member in list(vars(value).values()):
                self._visit(member, depth - 1)

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


def _reached_by(function: Any) -> list[Any]:
    """What a function holds besides its code: closure, defaults, and arguments that are bound."""
    if isinstance(function, functools.partial):
        return [function.func, *function.args, *function.keywords.values()]
    if isinstance(function, MethodType):
        return [function.__self__, function.__func__]
    cells = []
    for cell in function.__closure__ or ():
        try:
            cells.append(cell.cell_contents)
        except ValueError:  # not filled yet
            continue
    return [*cells, *(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]


def hidden_modules(value: Any, depth: int = 4) -> list[nn.Module]:
    """Modules that a function or a module reaches in another way than as submodules."""
    found: dict[int, nn.Module] = {}
    seen: set[int] = set()

    def visit(value: Any, depth: int) -> None:
        if id(value) in seen or depth < 0 or isinstance(value, (str, int, float, Tensor, type)):
            return
        seen.add(id(value))
        if isinstance(value, torch.jit.ScriptModule):
            return
        if isinstance(value, nn.Module):
            found.update(
                (id(m), m) for m in value.modules() if not isinstance(m, torch.jit.ScriptModule)
            )
            for m in value.modules():
                for name, member in vars(m).items():
                    if name not in _TORCHS:
                        visit(member, depth - 1)
        elif isinstance(value, dict):
            for member in list(value.values()):
                visit(member, depth - 1)
        elif isinstance(value, (list, tuple, set)):
            for member in list(value):
                visit(member, depth - 1)
        elif isinstance(value, (FunctionType, MethodType, functools.partial)):
            for member in _reached_by(value):
                visit(member, depth - 1)
        elif _is_plain_object(value):
            for member in list(vars(value).values()):
                visit(member, depth - 1)

    visit(value, depth)
    return list(found.values())


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
