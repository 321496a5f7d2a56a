"""Deep copies of networks, and whether such a copy computes with tensors of its own.

`copy.deepcopy` copies what a module holds in attributes, but no function: a lambda over `self`, a
default argument or an object outside of the module goes on to reach the layers of the original.
The copy then computes with parameters that are not its own. Nothing about it can be seen before
the first evaluation, so that is when `Origin.check` looks for the tensors that are used.
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
    """What is known of the network that another one is a copy of.

    It holds the original weakly: where nothing else reaches it, the copy does not either.
    Pickled, it forgets the original, which is not there in another process.
    """

    def __init__(self, model: nn.Module, computed: Iterable[tuple[Tensor, str]]) -> None:
        """Remember `model`, and tensors of the copy with a parameter that each is made from."""
        self._model: Callable[[], nn.Module | None] = weakref.ref(model)
        self._tensors = [(weakref.ref(t), n) for n, t in _named_tensors(model)]
        self._computed = list(computed)

    def __deepcopy__(self, memo: dict[int, Any]) -> Origin:
        twin = copy.copy(self)
        twin._model, twin._tensors = self._model, self._tensors
        twin._computed = copy.deepcopy(self._computed, memo)
        return twin

    def __getstate__(self) -> dict[str, Any]:
        return {"_model": _nothing, "_tensors": [], "_computed": self._computed}

    def watch(self, duplicate: nn.Module, replaced: Container[str]) -> Watch:
        """What is to surround a forward of `duplicate`, and sees tensors that it must not use.

        Args:
            duplicate: The copy.
            replaced: Names of its parameters and buffers in whose place there will be others.
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
        """Raise unless `duplicate` computes with the tensors `at` and as the original does.

        - None of the original's tensors, and none of those that the duplicate holds while `at` is
          in their place, is used by its forward, with or without gradients.
        - As long as the original has the values `at`, the outputs are equal, and each parameter
          that the outputs of the original depend on is one that those of the duplicate do.

        Args:
            duplicate: The copy.
            at: Its parameters and buffers by name. Those that may be differentiated by are leaves
                that require grad.
            run: Evaluates a module with tensors in the place of its own, with gradients enabled
                and without a trace, and its forward within a context.
            argument: What the caller calls the original.
            coupled: Whether the samples may depend on each other.

        Returns:
            Names of the tensors that require grad and that the outputs do not depend on.

        Raises:
            ValueError: A tensor is used past the attributes of the module, the outputs differ, or
                normalization uses the statistics of the batch.
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
        # On copies as well: a forward may write to its parameters.
        own = {n: t.detach().clone() for n, t in _named_tensors(original)}
        own = {n: t.requires_grad_(n in at and at[n].requires_grad) for n, t in own.items()}
        expected = run(original, own, nullcontext())
        if not agree([out.detach()], [expected.detach()]):
            raise value_error(
                argument,
                "a module of which copy.deepcopy makes one that computes the same",
                f"a {type(original).__name__}, whose outputs and those of its copy differ",
                "Its forward may depend on an object outside of the module, or its class define "
                "how it is copied.",
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
    """Raise unless `duplicate`, evaluated at the batch `x`, computes with its own tensors.

    Args:
        duplicate: The copy.
        origin: What is known of its original.
        x: A batch.
        argument: What the caller calls the original.
        coupled: Whether samples may depend on each other.
        training: Whether modules keep their training flags.

    Raises:
        ValueError: As `Origin.check`.
    """
    own = {n: t.detach().clone() for n, t in _named_tensors(duplicate)}
    for n, p in duplicate.named_parameters():
        own[n].requires_grad_(p.requires_grad)

    def run(model: nn.Module, tensors: Parameters, around: AbstractContextManager[Any]) -> Tensor:
        # Copies of the buffers: in training they are written to.
        values = {n: t if t.requires_grad else t.clone() for n, t in tensors.items()}
        with quiet(model, x.device, training=training), torch.enable_grad(), around:
            out: Tensor = functional_call(model, values, (x.clone(),))
            return out

    origin.check(duplicate, own, run, argument, coupled)


def refuse_closures(model: nn.Module, argument: str = "model") -> None:
    """Raise if a module holds a function over layers or parameters of `model`.

    For copies that are not evaluated here: `copy.deepcopy` keeps functions as they are, so the
    copy would go on to compute with the layers of the original.

    Raises:
        ValueError: A lambda or function among the attributes has one in its closure or defaults.
    """
    own = {id(m) for m in model.modules()} | {id(t) for _, t in _named_tensors(model)}
    for name, module in model.named_modules():
        for attribute, value in vars(module).items():
            if isinstance(value, FunctionType) and any(id(v) in own for v in reached_by(value)):
                raise value_error(
                    argument,
                    "a module that can be copied with its layers",
                    f"one with a function {plain_name(f'{name}.{attribute}'.lstrip('.'))!r} that "
                    "reaches its layers by a closure or a default argument, and would reach "
                    "them from the copy",
                    "Make it a method.",
                )


def another_reference(name: str, argument: str = "model") -> Exception:
    """The error for a forward that reaches a tensor in another way than as an attribute."""
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
    """A deep copy of `model` without gradients, and what `check` needs at its first evaluation.

    `copy.deepcopy` refuses tensors that have a history, such as the weight that
    `torch.nn.utils.spectral_norm` computes or an activation kept for later; the copy gets their
    values. Objects among `shared` are not copied but kept.

    Raises:
        ValueError: The model holds something that cannot be copied.
    """
    held = (v for m in model.modules() for v in walk(vars(m), _DEPTH, set(), into_modules=False))
    with_history = [t for t in held if isinstance(t, Tensor) and not t.is_leaf]
    # What copy.deepcopy finds here it takes for the copy of the tensor with that identity.
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
            f"{type(model).__name__}, for which it fails with {error}",
            "Remove what cannot be copied (open files, locks, tensors with a history) "
            "from its attributes.",
        ) from error
    return duplicate, Origin(model, computed)


class Watch(TorchFunctionMode):
    """Which of some tensors, given by identity, are computed with.

    Their shape, device and dtype may be asked for; a function that makes a tensor or a number
    of one of them has used its values. Batch normalization in train mode
    couples the samples of a batch.
    """

    def __init__(self, names: Mapping[int, str]) -> None:
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
        """Raise if one of the tensors was used.

        Args:
            out: Outputs of the forward that it surrounded, whose graph shows what functions of
                `torch.jit` use: they are not seen here. None if its inputs have a graph as well.
            argument: What the caller calls the module.

        Raises:
            ValueError: It was, past the attributes of the module.
        """
        leaves = {} if out is None else leaves_reached(out)
        for name in [*self.found, *(self._names[i] for i in leaves if i in self._names)]:
            raise another_reference(name, argument)


def _has_values(model: nn.Module, values: Mapping[str, Tensor]) -> bool:
    return all(
        n in values
        and (t.shape, t.dtype, t.device) == (values[n].shape, values[n].dtype, values[n].device)
        and torch.equal(t.detach(), values[n].detach())
        for n, t in _named_tensors(model)
    )


def _named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def _nothing() -> None:
    return None
