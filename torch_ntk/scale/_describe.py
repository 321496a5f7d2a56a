"""Describe a kernel as plain values that are the same in every process.

The bytes of a pickle would not do: they depend on the version of Python, on the order of sets, and
on which objects share memory. The description names the function or class and lists what it was
made with: arguments, settings, and the hash of each tensor. For functions and classes outside of
this package and of PyTorch it also has the hash of their code, so that an edited kernel is not
mistaken for the former one.
"""

from __future__ import annotations

import enum
import functools
import hashlib
import types
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .._checks import describe as in_words
from .._checks import type_error

_KNOWN = ("torch", "torch_ntk", "numpy", "scipy", "sklearn", "builtins", "math", "functools")
"""Packages whose versions stand for their code."""
# The last two are lists in which torch's recurrent layers keep references to their parameters.
_OF_MODULES = frozenset(vars(nn.Module())) | {"training", "_flat_weights", "_flat_weight_refs"}
# Arguments of this package's kernels that do not change the result.
_HOW = frozenset({"progress", "max_memory"})


def describe(kernel: object, name: str | None = None) -> dict[str, Any]:
    """Describe a kernel as plain values; a name that the caller gives it is the whole description.

    Raises:
        TypeError: A part of the kernel cannot be described.
    """
    if name is not None:
        return {"name": name}
    found: dict[str, Any] = _Describer(_reads_weights(kernel)).of(kernel, "kernel")
    return found


def _reads_weights(kernel: object) -> bool:
    """Whether a kernel depends on its module's weights; infinite-width kernels do not."""
    function = kernel.func if isinstance(kernel, functools.partial) else kernel
    return not (getattr(function, "__module__", "") or "").startswith("torch_ntk.analytic")


class _Describer:
    """Describes values and all that they contain, with or without the values of weights."""

    def __init__(self, weights: bool) -> None:
        self._weights = weights
        self._within: list[int] = []  # ids of the enclosing values, to end a cycle of references

    def of(self, value: Any, path: str) -> Any:
        """The description of a value; `path` is its name in error messages."""
        if value is None or isinstance(value, (bool, int, float, str)):
            # JSON has no NaN and no infinities; the hexadecimal form is exact.
            return float.hex(value) if isinstance(value, float) else value
        if isinstance(value, (complex, bytes, slice, range, enum.Enum)):
            return repr(value)
        if isinstance(value, (torch.dtype, torch.device, np.dtype, np.generic)):
            return str(value)
        if isinstance(value, Tensor):
            return _tensor(value)
        if isinstance(value, np.ndarray):
            return _tensor(torch.from_numpy(np.ascontiguousarray(value)))
        if id(value) in self._within:
            return {"see": self._within.index(id(value))}
        self._within.append(id(value))
        try:
            return self._compound(value, path)
        finally:
            self._within.pop()

    def _compound(self, value: Any, path: str) -> Any:
        if isinstance(value, (list, tuple)):
            return [self.of(v, f"{path}[{i}]") for i, v in enumerate(value)]
        if isinstance(value, (set, frozenset)):
            return sorted((self.of(v, path) for v in value), key=repr)
        if isinstance(value, Mapping):
            return {str(k): self.of(v, f"{path}[{k!r}]") for k, v in value.items()}
        if isinstance(value, functools.partial):
            keywords = {k: v for k, v in value.keywords.items() if k not in _HOW}
            return {
                "partial": self.of(value.func, f"{path}.func"),
                "arguments": [self.of(v, f"{path}.args[{i}]") for i, v in enumerate(value.args)],
                "keywords": {k: self.of(v, f"{path}.keywords[{k!r}]") for k, v in keywords.items()},
            }
        if isinstance(value, types.MethodType):
            owner = self.of(value.__self__, f"{path}.__self__")
            return {"method": value.__func__.__qualname__, "of": owner}
        if isinstance(value, type):
            return self._class(value)
        if isinstance(value, (types.BuiltinFunctionType, np.ufunc)) or _is_operation(value):
            return {"function": f"{getattr(value, '__module__', '')}:{value.__name__}"}
        if isinstance(value, types.FunctionType):
            return self._function(value, path)
        if isinstance(value, nn.Module):
            return self._module(value, path)
        return self._object(value, path)

    def _function(self, function: types.FunctionType, path: str) -> dict[str, Any]:
        found: dict[str, Any] = {"function": f"{function.__module__}:{function.__qualname__}"}
        if _is_known(function.__module__):
            return found
        found["code"] = _code(function.__code__)
        cells = function.__closure__ or ()
        names = zip(function.__code__.co_freevars, cells, strict=True)
        captured = {k: self.of(_content(c), f"{path}.{k}") for k, c in names}
        defaults = (function.__defaults__ or (), function.__kwdefaults__ or {})
        used = {
            k: self.of(v, f"{path}.{k}")
            for k in function.__code__.co_names
            if _is_followed(v := function.__globals__.get(k), function.__module__)
        }
        for key, value in (("captured", captured), ("globals", used)):
            if value:
                found[key] = value
        if any(defaults):
            found["defaults"] = self.of(defaults, f"{path}.defaults")
        return found

    def _class(self, kind: type) -> dict[str, Any]:
        found: dict[str, Any] = {"class": _name(kind)}
        code = {
            f"{_name(base)}.{name}": _code(inner.__code__)
            for base in kind.__mro__
            if not _is_known(base.__module__)
            for name, value in vars(base).items()
            if isinstance(inner := _plain(value), types.FunctionType)
        }
        if code:
            found["code"] = code
        return found

    def _module(self, module: nn.Module, path: str) -> dict[str, Any]:
        own = {k: v for k, v in vars(module).items() if k not in _OF_MODULES and k not in _HOW}
        found = self._class(type(module))
        if own:
            found["settings"] = {k: self.of(v, f"{path}.{k}") for k, v in own.items()}
        tensors = {**module._parameters, **module._buffers}
        if not self._weights and _is_drawn(module):
            sizes = {k: None if p is None else p.shape for k, p in module._parameters.items()}
            tensors = dict(module._buffers)
            found["sizes"] = {k: self.of(v, f"{path}.{k}") for k, v in sizes.items()}
        if tensors:
            found["tensors"] = {k: self.of(v, f"{path}.{k}") for k, v in tensors.items()}
        frozen = [k for k, p in module._parameters.items() if p is not None and not p.requires_grad]
        if frozen:  # the kernel is without their gradients
            found["frozen"] = frozen
        if module.training:
            found["training"] = True
        inner = {k: self.of(m, f"{path}.{k}") for k, m in module._modules.items()}
        if inner:
            found["modules"] = inner
        return found

    def _object(self, value: object, path: str) -> dict[str, Any]:
        fields = getattr(value, "__dict__", None)
        if fields is None:
            raise type_error(
                path,
                "made of functions, modules, tensors and plain values, so that two processes can "
                "tell whether they compute the same kernel",
                in_words(value),
                "Pass name='…' to say yourself what kernel it is.",
            )
        found = self._class(type(value))
        return found | {"fields": {k: self.of(v, f"{path}.{k}") for k, v in fields.items()}}


def _is_drawn(module: nn.Module) -> bool:
    """Whether a module's parameters are random numbers at initialization."""
    if isinstance(module, (nn.Linear, nn.modules.conv._ConvNd, nn.MultiheadAttention)):
        return True
    return type(module).__module__.startswith("torch_ntk.nn")


def _tensor(value: Tensor) -> dict[str, Any]:
    plain = value.detach().cpu().contiguous()
    data = plain.reshape(-1).view(torch.uint8).numpy()
    digest = hashlib.sha256(data.tobytes()).hexdigest()
    return {"tensor": str(value.dtype), "shape": list(value.shape), "sha256": digest}


def _code(code: types.CodeType) -> str:
    """The hash of a function's instructions, and of the constants and names in them."""
    digest = hashlib.sha256(code.co_code)
    digest.update(repr((code.co_names, code.co_varnames)).encode())
    for constant in code.co_consts:
        inner = isinstance(constant, types.CodeType)
        text = _code(constant) if inner else repr(_ordered(constant))
        digest.update(text.encode())
    return digest.hexdigest()


def _ordered(constant: object) -> object:
    return sorted(constant, key=repr) if isinstance(constant, frozenset) else constant


def _is_followed(value: object, module: str) -> bool:
    """Whether a function's global variable is described: plain values, functions beside it."""
    if isinstance(value, types.FunctionType):
        return value.__module__ == module
    return isinstance(value, (bool, int, float, complex, str, tuple, Tensor, np.ndarray, nn.Module))


def _is_known(module: str | None) -> bool:
    return (module or "").partition(".")[0] in _KNOWN


def _is_operation(value: object) -> bool:
    """Whether a value is a function implemented in C or C++, such as those of PyTorch."""
    return type(value).__name__ in ("method_descriptor", "builtin_function_or_method")


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not yet assigned
        return None


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _plain(value: object) -> object:
    """The function inside of a class method, a static method or a property."""
    if isinstance(value, (staticmethod, classmethod)):
        return value.__func__
    return value.fget if isinstance(value, property) else value
