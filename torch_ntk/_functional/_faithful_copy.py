"""Deep copies of networks, and a check that such a copy uses its own parameters.

`copy.deepcopy` copies the attributes of a module, but not functions. A lambda over `self`, a
default argument or an object outside of the module still refers to the layers of the original, and
the copy then computes with the original's parameters. This shows only when the copy is evaluated,
so `Origin.check` records which tensors the first evaluation uses.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from types import FunctionType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from .._checks import value_error
from .._types import Parameters
from ._agree import agree
from ._graph import leaves_reached, tensors_in
from ._quiet import quiet
from ._state import reached_by, walk
from ._unwrap import plain_name

_DEPTH = 5  # levels of containers and objects in which a module holds tensors
ModuleT = TypeVar("ModuleT", bound=nn.Module)


class Origin:
    """The network that another network is a copy of, for the check of the copy.

    The original is referenced weakly. If it has been deleted, the copy cannot use it either. When
    pickled, this object drops the reference, since another process does not have the original.
    """

    def __init__(self, model: nn.Module, computed: Iterable[tuple[Tensor, str]]) -> None:
        """Remember the original.

        The forward must not use the tensors `computed` of the copy, which were computed from
        parameters before; each comes with the name of one of these parameters.
        """
        self._model: Callable[[], nn.Module | None] = weakref.ref(model)
        self._tensors = [(weakref.ref(t), n) for n, t in _named_tensors(model)]
        self._computed = list(computed)

    def __deepcopy__(self, memo: dict[int, Any]) -> Origin:
        duplicate = copy.copy(self)
        # `__getstate__` has dropped the references to the original.
        duplicate._model, duplicate._tensors = self._model, self._tensors
        duplicate._computed = copy.deepcopy(self._computed, memo)
        return duplicate

    def __getstate__(self) -> dict[str, Any]:
        return {"_model": _no_original, "_tensors": [], "_computed": self._computed}

    def watch(self, duplicate: nn.Module, replaced: Container[str]) -> Watch:
        """A context for a forward of `duplicate` that records uses of tensors it must not use.

        The parameters and buffers `replaced` are among these, as other tensors are in their place.
        """
        alive = [(t, n) for ref, n in self._tensors if (t := ref()) is not None]
        others = {id(t): n for t, n in (*alive, *self._computed)}
        others |= {id(t): n for n, t in _named_tensors(duplicate) if n in replaced}
        return Watch(others)

    def check(
        self,
        duplicate: nn.Module,
        at: Parameters,
        run: Callable[[nn.Module, Parameters, AbstractContextManager[Any]], Tensor],
        argument: str = "model",
        coupled: bool = False,
    ) -> list[str]:
        """Raise an error unless `duplicate` uses the tensors `at` and computes as the original.

        - Its forward must use neither tensors of the original nor those tensors of the duplicate
          that are replaced by `at`, whether gradients are recorded or not.
        - If the original still has the values `at`, the outputs of both must be equal, and the
          outputs of the duplicate must depend on every parameter that those of the original do.

        Args:
            duplicate: The copy.
            at: The values at which it is evaluated, by the names of parameters and buffers. Those
                that may be differentiated by are leaves that require grad.
            run: Evaluates a module with these tensors within a context, with gradients enabled,
                restores its state, and returns its outputs.
            argument: The name of the caller's argument that is the original.
            coupled: Whether the samples may depend on each other.

        Returns:
            The names of tensors in `at` that require grad and that the outputs do not depend on.
        """
        original = self._model()
        watch = self.watch(duplicate, at)
        out = run(duplicate, at, watch)
        watch.refuse_others(out, argument)
        leaves = leaves_reached(out)
        if watch.couples_samples and not coupled:
            raise value_error(
                argument,
                "a function of one sample at a time",
                "batch normalization with the statistics of the batch: in a layer in train mode "
                "that eval() does not reach, or by F.batch_norm(..., training=True)",
                "Make the layer a submodule (nn.ModuleList instead of a list).",
            )
        unused = [n for n, t in at.items() if t.requires_grad and id(t) not in leaves]
        if original is None or not _has_values(original, at):
            return unused
        # The original is evaluated on copies, too, since a forward may write to its parameters.
        own = {n: t.detach().clone() for n, t in _named_tensors(original)}
        own = {n: t.requires_grad_(n in at and at[n].requires_grad) for n, t in own.items()}
        expected = run(original, own, nullcontext())
        if not agree([out.detach()], [expected.detach()]):
            raise value_error(
                argument,
                "a module of which copy.deepcopy makes one that computes the same",
                f"a {type(original).__name__}, whose outputs and those of its copy differ",
                "Its forward may depend on an object outside of the module, or its class may "
                "define how it is copied.",
            )
        reached = leaves_reached(expected)
        for name, tensor in original.named_parameters():
            used = id(tensor) in reached or id(own[name]) in reached
            if used and id(at.get(name)) not in leaves:
                raise another_reference(name, argument)
        return unused


def check_copy(
    duplicate: nn.Module,
    origin: Origin,
    x: Tensor,
    argument: str = "model",
    coupled: bool = False,
    training: bool = False,
) -> None:
    """Raise an error unless `duplicate` uses its own tensors when evaluated on `x` `[N, ...]`.

    Its outputs must be those of the original. `origin` is the second value that `faithful_copy`
    returned for it.
    """
    own = {n: t.detach().clone() for n, t in _named_tensors(duplicate)}
    for n, p in duplicate.named_parameters():
        own[n].requires_grad_(p.requires_grad)

    def run(model: nn.Module, tensors: Parameters, around: AbstractContextManager[Any]) -> Tensor:
        # Buffers are copied, since they are written to in training mode.
        values = {n: t if t.requires_grad else t.clone() for n, t in tensors.items()}
        with quiet(model, x.device, training=training), torch.enable_grad(), around:
            out: Tensor = functional_call(model, values, (x.clone(),))
            return out

    origin.check(duplicate, own, run, argument, coupled)


def refuse_closures(model: nn.Module) -> None:
    """Raise an error if a module has an attribute that is a function over layers of `model`.

    This is the check for copies that are not evaluated by this library. `copy.deepcopy` does not
    copy functions, so that the copy would compute with the layers of the original, by a closure or
    a default argument.
    """
    own = {id(m) for m in model.modules()} | {id(t) for _, t in _named_tensors(model)}
    for name, module in model.named_modules():
        for attribute, value in vars(module).items():
            if isinstance(value, FunctionType) and any(id(v) in own for v in reached_by(value)):
                raise value_error(
                    "model",
                    "a module that can be copied with its layers",
                    f"one with a function {plain_name(f'{name}.{attribute}'.lstrip('.'))!r} that "
                    "reaches its layers by a closure or a default argument, and would reach "
                    "them from the copy",
                    "Make it a method.",
                )


def another_reference(name: str, argument: str = "model") -> Exception:
    """The error for a forward that uses a tensor by another reference than an attribute."""
    return value_error(
        argument,
        "a module that uses its parameters as attributes (self.weight)",
        f"a forward that uses {plain_name(name)!r} through another reference, such "
        "as a list, a closure or a tensor computed from it before",
        "Use the attribute, or nn.ParameterList instead of a list.",
    )


def faithful_copy(
    model: ModuleT, argument: str = "model", shared: Iterable[Any] = ()
) -> tuple[ModuleT, Origin]:
    """A deep copy of `model` without gradients, and an `Origin` with which to check it.

    `copy.deepcopy` raises for tensors that have a `grad_fn`, such as the weight that
    `torch.nn.utils.spectral_norm` computes, or a stored activation. Their values are copied here.
    The copy shares the objects `shared` with the original.
    """
    members = (v for m in model.modules() for v in walk(vars(m), _DEPTH, set(), into_modules=False))
    with_history = [t for t in members if isinstance(t, Tensor) and not t.is_leaf]
    # copy.deepcopy uses an entry of the memo as the copy of the object with that identity.
    memo: dict[int, Any] = {id(t): t.detach().clone() for t in with_history}
    names = {id(p): n for n, p in model.named_parameters()}
    computed = []
    for t in with_history:
        made_from = [names[i] for i in leaves_reached(t) if i in names]
        computed += [(memo[id(t)], made_from[0])] if made_from else []
    try:
        duplicate = copy.deepcopy(model, memo | {id(kept): kept for kept in shared})
    except (RuntimeError, TypeError) as error:
        raise value_error(
            argument,
            "a module that copy.deepcopy can copy",
            f"a {type(model).__name__}, for which it fails with {error}",
            "Remove what cannot be copied (open files, locks, tensors with a history) "
            "from its attributes.",
        ) from error
    return duplicate, Origin(model, computed)


class Watch(TorchFunctionMode):
    """A context that records which of the given tensors are used in a computation.

    A function that returns a tensor or a float has used the values of its arguments. Reading the
    shape, device or dtype of a tensor does not count as a use.

    Attributes:
        found: The names of the tensors that were used.
        couples_samples: Whether batch normalization with the statistics of the batch was called.
    """

    def __init__(self, names: Mapping[int, str]) -> None:
        """Make the context for tensors given by `id`, each with its name for the error message."""
        super().__init__()
        self._names = names
        self.couples_samples = False
        self.found: list[str] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is F.batch_norm and kwargs and kwargs.get("training"):
            self.couples_samples = True
        result = func(*args, **(kwargs or {}))
        if isinstance(result, float) or next(tensors_in(result), None) is not None:
            given = tensors_in((args, kwargs))
            self.found += [self._names[id(t)] for t in given if id(t) in self._names]
        return result

    def refuse_others(self, out: Tensor | None = None, argument: str = "model") -> None:
        """Raise an error if one of the tensors was used.

        The graph of the outputs `out` shows which tensors functions of `torch.jit` use, whose calls
        this context does not see. It is None if the inputs have a graph of their own, whose leaves
        may not belong to the module.
        """
        leaves = {} if out is None else leaves_reached(out)
        for name in [*self.found, *(self._names[i] for i in leaves if i in self._names)]:
            raise another_reference(name, argument)


def _has_values(model: nn.Module, values: Mapping[str, Tensor]) -> bool:
    """Whether all parameters and buffers of `model` are equal to the values of their names."""
    return all(
        n in values
        and (t.shape, t.dtype, t.device) == (values[n].shape, values[n].dtype, values[n].device)
        and torch.equal(t.detach(), values[n].detach())
        for n, t in _named_tensors(model)
    )


def _named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The parameters and buffers of `model` with their names."""
    yield from model.named_parameters()
    yield from model.named_buffers()


def _no_original() -> None:
    """Stand for a weak reference to a deleted original; a function, as those can be pickled."""
