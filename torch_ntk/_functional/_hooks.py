"""Hooks of modules and parameters, and which of them run during an evaluation.

Most hooks of users only observe: they collect activations, statistics or gradients of a training,
which must not contain those of an evaluation. Other hooks are part of the function: those by which
torch computes normalized or pruned weights, and those that return another input or output.
"""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.modules import module as torch_module

_FORWARD = ("_forward_pre_hooks", "_forward_hooks")
_BACKWARD = ("_backward_pre_hooks", "_backward_hooks")
_GLOBAL = ("_global_forward_pre_hooks", "_global_forward_hooks")
_GLOBAL_BACKWARD = ("_global_backward_pre_hooks", "_global_backward_hooks")


class UserHooks:
    """The users' hooks of some modules and parameters, and the global hooks of all modules.

    Hooks of modules are attributes, which the caller of this class saves and restores. `restore`
    restores the others. Hooks of parameters change gradients, and are no part of the function.
    """

    def __init__(self, modules: Sequence[nn.Module], parameters: Iterable[Tensor]) -> None:
        self._own = [
            (m, kind, hooks)
            for m in modules
            for kind in (*_FORWARD, *_BACKWARD)
            if (hooks := vars(m).get(kind)) and _of_users(hooks)
        ]
        # These change the gradients that `torch.autograd.grad` returns.
        self._of_parameters = [(p, p._backward_hooks) for p in parameters if p._backward_hooks]
        kinds = (*_GLOBAL, *_GLOBAL_BACKWARD)
        self._global = {kind: dict(getattr(torch_module, kind)) for kind in kinds}

    @property
    def of_forward(self) -> list[Any]:
        """The hooks of users that run in a forward pass, including global ones."""
        own = [h for _, kind, hooks in self._own if kind in _FORWARD for h in hooks.values()]
        return [*own, *(h for kind in _GLOBAL for h in self._global[kind].values())]

    def remove(self) -> None:
        """Remove all hooks of users; torch's own hooks stay."""
        for m, kind, hooks in self._own:
            vars(m)[kind] = OrderedDict((k, h) for k, h in hooks.items() if _is_torch(h))
        for p, _ in self._of_parameters:
            p._backward_hooks = None
        for kind in self._global:
            getattr(torch_module, kind).clear()

    def put_forward_back(self, wrapped: Callable[[Any], Any] = lambda hook: hook) -> None:
        """Register the hooks of forward passes again, each of them as `wrapped(hook)`."""
        for m, kind, hooks in self._own:
            if kind in _FORWARD:
                vars(m)[kind] = OrderedDict((k, wrapped(h)) for k, h in hooks.items())
        for kind in _GLOBAL:
            for k, hook in self._global[kind].items():
                getattr(torch_module, kind)[k] = wrapped(hook)

    def restore(self) -> None:
        """Restore the hooks of parameters and the global hooks."""
        for p, own in self._of_parameters:
            p._backward_hooks = own
        for kind, hooks in self._global.items():
            current = getattr(torch_module, kind)
            current.clear()
            current.update(hooks)


class ReturnRecorder:
    """Wraps forward hooks, and records whether a hook of a user returned a value.

    Attributes:
        has_value: Whether a hook has returned a value, which replaces an input or an output.
    """

    def __init__(self) -> None:
        self.has_value = False

    def __call__(self, hook: Any) -> Any:
        """Return the hook with a wrapper that records; torch's own hooks are returned as is."""
        if _is_torch(hook):
            return hook

        @functools.wraps(hook)
        def recorded(*args: Any, **kwargs: Any) -> Any:
            value = hook(*args, **kwargs)
            if value is not None:
                self.has_value = True
            return value

        return recorded


def _of_users(hooks: Any) -> bool:
    """Whether at least one of the hooks is not torch's own."""
    return any(not _is_torch(h) for h in hooks.values())


def _is_torch(hook: Any) -> bool:
    """Whether the hook is one of torch's own, such as that of weight normalization or pruning."""
    while isinstance(hook, functools.partial):
        hook = hook.func
    of = getattr(hook, "__self__", None)
    kind = hook if of is None and hasattr(hook, "__qualname__") else type(of or hook)
    return str(getattr(kind, "__module__", "")).startswith("torch.nn.")
