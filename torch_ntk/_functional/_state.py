"""The Python state that forward passes may change, saved before and restored after them."""

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
_DEPTH = 4  # the levels of nested containers, functions and objects that are searched
# Objects of these packages (trainers, loggers, devices, …) are not searched, since a forward does
# not store its results in them.
_FOREIGN = ("torch", "numpy", "lightning", "pytorch_lightning", "builtins", "_thread")


class PythonState:
    """Everything that a `forward` may change in the attributes of modules.

    Some forwards set tensors as attributes: the weight that `torch.nn.utils.weight_norm` computes,
    the flat weights of an LSTM, or weights that are computed once in eval mode. Inside of
    torch.func these tensors are wrappers that are invalid after it returns. Other forwards count
    their calls. Therefore this class saves references to all attributes, the members of containers
    and of plain objects among them, the values of tensors that are neither parameters nor buffers,
    and the states of random generators. Parameters and buffers are not saved, since the evaluation
    uses other tensors in their place.

    Args:
        modules: The modules whose attributes are saved.
        with_values: Whether the values of tensors and the states of generators are saved, too.
        also: Functions and objects that are searched like attributes.
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
                if name not in _MODULE_ATTRIBUTES:
                    self._visit(value)
                elif value and type(value) in _CONTAINERS:  # most are empty dictionaries of hooks
                    self._members.append((value, value.copy()))

        for value in also:
            self._visit(value)

    def _visit(self, value: Any) -> None:
        """Save the state of `value` and of everything in it."""
        for member in walk(value, _DEPTH, self._seen, into_modules=False):
            if isinstance(member, Tensor):
                # Tensors of inference mode cannot be written to outside of it.
                if self._with_values and not member.is_inference():
                    self._tensors.append((member, member.detach().clone(), member._version))
            elif isinstance(member, torch.Generator):
                if self._with_values:
                    self._generators.append((member, member.get_state()))
            elif type(member) in _CONTAINERS:
                self._members.append((member, member.copy()))
            elif _is_plain_object(member):
                self._members.append((vars(member), dict(vars(member))))

    def restore_attributes(self) -> None:
        """Restore attributes and members of containers, but not the values of tensors.

        Containers are changed in place, since there may be other references to them. This is
        sufficient between two evaluations: if the first one changes the value of a tensor, the
        second one has another result, which is detected. It is fast if nothing has changed.
        """
        for current, saved in self._members:
            if (current or saved) and not _same(current, saved):
                _refill(current, saved)

    def restore(self) -> None:
        """Restore attributes, members of containers, values of tensors and states of generators."""
        self.restore_attributes()
        for tensor, value, version in self._tensors:
            changed = tensor._version != version or not torch.equal(tensor.detach(), value)
            if changed:
                tensor.data.copy_(value)
        for generator, state in self._generators:
            generator.set_state(state)


# The attributes of every module of torch. Their containers are saved, but not searched.
_MODULE_ATTRIBUTES = frozenset(vars(nn.Module()))


def walk(value: Any, depth: int, seen: set[int], into_modules: bool = True) -> Iterator[Any]:
    """Yield `value` and everything in it, each object once.

    Containers, functions and plain objects are searched to `depth` levels, of which `value` is the
    first; with `into_modules` modules are, too, with all submodules on one level. Objects whose
    `id` is in `seen` are skipped, and those of yielded objects are added to it.
    """
    if depth == 0 or value is None or isinstance(value, (str, int, float, type)):
        return
    if id(value) in seen or (isinstance(value, nn.Module) and not into_modules):
        return
    seen.add(id(value))
    yield value
    for member in _members(value):
        yield from walk(member, depth - 1, seen, into_modules)


def _members(value: Any) -> list[Any]:
    """The objects to which a module, container, function or plain object refers directly."""
    if isinstance(value, nn.Module):
        modules = [] if is_script(value) else list(value.modules())
        return [v for m in modules for n, v in vars(m).items() if n not in _MODULE_ATTRIBUTES]
    if isinstance(value, dict):
        return list(value.values())
    if isinstance(value, (list, tuple, set, deque)):
        return list(value)
    if isinstance(value, (FunctionType, MethodType, functools.partial)):
        return reached_by(value)
    return list(vars(value).values()) if _is_plain_object(value) else []


def reached_by(function: Any) -> list[Any]:
    """The objects that a function refers to: its closure, default arguments and bound arguments."""
    if isinstance(function, functools.partial):
        return [function.func, *function.args, *function.keywords.values()]
    if isinstance(function, MethodType):
        return [function.__self__, function.__func__]
    cells = []
    for cell in function.__closure__ or ():
        with contextlib.suppress(ValueError):  # the cell is empty
            cells.append(cell.cell_contents)
    return [*cells, *(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]


def hidden_modules(value: Any) -> list[nn.Module]:
    """The modules that a function or an attribute of a module refers to, with their submodules.

    TorchScript modules are left out. If `value` is a module, it is one of the results.
    """
    modules = (v for v in walk(value, _DEPTH + 1, set()) if isinstance(v, nn.Module))
    found = (m for module in modules if not is_script(module) for m in module.modules())
    return [m for m in dict.fromkeys(found) if not is_script(m)]


def _is_plain_object(value: Any) -> bool:
    """Whether `value` has attributes, and is of a class in which a forward may store results."""
    kind = type(value)
    package = kind.__module__.partition(".")[0]
    if package in _FOREIGN or isinstance(value, ModuleType) or not hasattr(value, "__dict__"):
        return False
    return not isinstance(value, (torch.optim.Optimizer, BaseException))


def _same(a: Any, b: Any) -> bool:
    """Whether two containers have the same objects in the same order (sets: equal members)."""
    if len(a) != len(b):
        return False
    if isinstance(a, dict):
        return all(map(operator.is_, a, b)) and all(map(operator.is_, a.values(), b.values()))
    if isinstance(a, set):
        return bool(a == b)
    return all(map(operator.is_, a, b))


def _refill(container: Any, members: Any) -> None:
    """Replace the members of a container in place."""
    container.clear()
    if isinstance(container, (dict, set)):
        container.update(members)
    else:
        container.extend(members)
