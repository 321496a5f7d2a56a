"""Calls of a model on a batch."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call

from .._checks import ArgumentError, type_error
from .._types import ForwardFn
from ._batch import first_tensor
from ._quiet import evaluating, values_of
from ._state import hidden_modules


def call_model(model: Any, value: Any, forward_fn: ForwardFn | None = None) -> Any:
    """Call `model` on a batch in the caller's form, and return what it returns.

    The call is `model(**value)` for a mapping, `model(*value)` for a tuple or list, `model(value)`
    for anything else, and `forward_fn(model, value)` if there is a `forward_fn`.
    """
    if forward_fn is not None:
        return forward_fn(model, value)
    if isinstance(value, Mapping):
        return model(**value)
    return model(*value) if isinstance(value, (tuple, list)) else model(value)


def call_with(
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    value: Any,
    forward_fn: ForwardFn | None = None,
    then: Callable[[Any], Any] = lambda out: out,
    around: AbstractContextManager[object] | None = None,
) -> Any:
    """Return `then` of the outputs of `module` with other tensors as its parameters and buffers.

    The replacements, by name, are in place while `then` runs, too. `around` is a context for the
    call of the model alone.
    """
    within = {f"module.{n}": t for n, t in tensors.items()}
    return functional_call(_Called(module, forward_fn, then, around), within, (value,))


@contextlib.contextmanager
def evaluating_on(
    model: object,
    value: object,
    forward_fn: object = None,
    keep_forward_hooks: bool = False,
    training: bool = False,
) -> Iterator[None]:
    """The context `evaluating` for a model and a batch that have not been checked yet.

    Modules that `forward_fn` uses besides the model, such as that of a loss, are restored, too.
    """
    own = {id(m) for m in model.modules()} if isinstance(model, nn.Module) else set()
    others = [m for m in hidden_modules(forward_fn) if id(m) not in own]
    first = first_tensor(value)
    with evaluating(model, first, keep_forward_hooks, training), values_of(others):
        yield


def in_words(value: Any) -> str:
    """The text of the call by which a batch of this form is passed to a model."""
    if isinstance(value, Mapping):
        return "model(**batch)"
    return "model(*batch)" if isinstance(value, (tuple, list)) else "model(batch)"


def refused_arguments(
    name: str, model: Any, value: Any, forward_fn: ForwardFn | None
) -> ArgumentError | None:
    """The error if the parts of a batch are not the arguments of `model.forward`, else None."""
    is_taken_apart = isinstance(value, (Mapping, tuple, list)) and forward_fn is None
    if not is_taken_apart or not isinstance(model, nn.Module):
        return None
    is_mapping = isinstance(value, Mapping)
    kind, example = ("keys", "model(batch['x'])") if is_mapping else ("parts", "model(batch[0])")
    signature = inspect.signature(model.forward)
    try:
        signature.bind(**value) if isinstance(value, Mapping) else signature.bind(*value)
    except TypeError as error:
        parts = f"the keys {list(value)}" if is_mapping else f"{len(value)} of them"
        return type_error(
            name,
            f"a batch whose {kind} are arguments of the model's forward{signature}",
            f"{parts} ({error})",
            "Leave out what the model does not take, or say how it is called: "
            f"forward_fn=lambda model, batch: {example}.",
        )
    return None


class _Called(nn.Module):
    """A module whose forward is `call_model` and `then`, for use with `functional_call`."""

    def __init__(
        self,
        module: nn.Module,
        forward_fn: ForwardFn | None,
        then: Callable[[Any], Any],
        around: AbstractContextManager[object] | None,
    ) -> None:
        super().__init__()
        self.module = module
        self.forward_fn = forward_fn
        self.then = then
        self.around = contextlib.nullcontext() if around is None else around

    def forward(self, value: Any) -> Any:
        """Call the module on a batch, and return what `then` returns for its outputs."""
        with self.around:
            out = call_model(self.module, value, self.forward_fn)
        return self.then(out)
