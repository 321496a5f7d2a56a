"""Hooks that users register on modules and parameters: what runs of them during an evaluation.

Most hooks watch: they collect activations, statistics or gradients for somebody outside, who must
not see the evaluation. Some are part of the function: those by which torch computes normalized or
pruned weights, and those that return another output.
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
    """The users' hooks of some modules and parameters, and of every module of the process.

    Those of modules are attributes, which the caller saves and puts back; `restore` puts the others
    back. Those of parameters change gradients, and are no part of the function.
    """

    def __init__(self, modules: Sequence[nn.Module], parameters: Iterable[Tensor]) -> None:
        self._own = [
            (m, kind, hooks)
            for m in modules
            for kind in (*_FORWARD, *_BACKWARD)
            if (hooks := vars(m).get(kind)) and _of_users(hooks)
        ]
        # A gradient that is asked for by `torch.autograd.grad` passes through them.
        self._of_parameters = [(p, p._backward_hooks) for p in parameters if p._backward_hooks]
        kinds = (*_GLOBAL, *_GLOBAL_BACKWARD)
        self._global = {kind: dict(getattr(torch_module, kind)) for kind in kinds}

    @property
    def of_forward(self) -> list[Any]:
        """Those that run in a forward pass."""
        own = [h for _, kind, hooks in self._own if kind in _FORWARD for h in hooks.values()]
        return [*own, *(h for kind in _GLOBAL for h in self._global[kind].values())]

    def remove(self) -> None:
        """Leave all of them out."""
        for m, kind, hooks in self._own:
            vars(m)[kind] = OrderedDict((k, h) for k, h in hooks.items() if _is_torch(h))
        for p, _ in self._of_parameters:
            p._backward_hooks = None
        for kind in self._global:
            getattr(torch_module, kind).clear()

    def put_forward_back(self, wrapped: Callable[[Any], Any] = lambda hook: hook) -> None:
        """Let those of a forward pass run again, each as what `wrapped` makes of it."""
        for m, kind, hooks in self._own:
            if kind in _FORWARD:
                vars(m)[kind] = OrderedDict((k, wrapped(h)) for k, h in hooks.items())
        for kind in _GLOBAL:
            for k, hook in self._global[kind].items():
                getattr(torch_module, kind)[k] = wrapped(hook)

    def restore(self) -> None:
        """Those of parameters and of the process as they were."""
        for p, own in self._of_parameters:
            p._backward_hooks = own
        for kind, hooks in self._global.items():
            current = getattr(torch_module, kind)
            current.clear()
            current.update(hooks)


class Noting:
    """Wraps forward hooks, and notes whether one of a user returned something.

    Attributes:
        anything: Whether an input or an output was changed in this way.
    """

    def __init__(self) -> None:
        self.anything = False

    def __call__(self, hook: Any) -> Any:
        """The hook, wrapped."""
        if _is_torch(hook):
            return hook

        @functools.wraps(hook)
        def noted(*args: Any, **kwargs: Any) -> Any:
            found = hook(*args, **kwargs)
            if found is not None:
                self.anything = True
            return found

        return noted


def _of_users(hooks: Any) -> bool:
    return any(not _is_torch(h) for h in hooks.values())


def _is_torch(hook: Any) -> bool:
    """Whether it is one of torch's own, such as that of weight normalization or of pruning."""
    while isinstance(hook, functools.partial):
        hook = hook.func
    of = getattr(hook, "__self__", None)
    kind = hook if of is None and hasattr(hook, "__qualname__") else type(of or hook)
    return str(getattr(kind, "__module__", "")).startswith("torch.nn.")
