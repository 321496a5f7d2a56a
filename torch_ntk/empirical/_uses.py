"""Find where a model uses its parameters, by the identity of the parameter.

A use is seen where the operation is called (`F.linear`, `F.conv2d`, `x @ w`, …), so functional
code, tied weights and layers that are called several times need no case of their own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from .._functional import ModelFunction
from .._types import Parameters
from .rules import RULES, Use


@dataclass
class Plan:
    """How each selected parameter is covered, exactly once.

    Attributes:
        uses: Calls that a rule understands, in the order in which they are made.
        shapes: Shape of what each of them returns for one sample.
        names: Name of each use's weight.
        rest: Names of all other parameters; they contribute through their own Jacobian.
    """

    uses: list[Use] = field(default_factory=list)
    shapes: list[torch.Size] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    rest: tuple[str, ...] = ()

    def without(self, names: set[str], params: Parameters) -> Plan:
        """The plan in which the parameters `names` belong to the rest."""
        keep = [i for i, n in enumerate(self.names) if n not in names]
        kept = [self.names[i] for i in keep]
        return Plan(
            [self.uses[i] for i in keep],
            [self.shapes[i] for i in keep],
            kept,
            tuple(n for n in params if n not in kept),
        )


class _Tracked(TorchFunctionMode):
    """Calls `self.seen` for every call that returns tensors and has a tracked parameter in it."""

    def __init__(self, params: Parameters) -> None:
        super().__init__()
        self._names = {id(p): n for n, p in params.items()}

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        found = [self._names[id(t)] for t in _tensors((args, kwargs)) if id(t) in self._names]
        # Shapes, dtypes and numbers read from a parameter carry no derivative.
        if not found or not any(True for _ in _tensors(out)):
            return out
        rule = RULES.get(func)
        use = None if rule is None or not isinstance(out, Tensor) else rule(args, kwargs)
        return self.seen(use, found, out)

    def seen(self, use: Use | None, found: list[str], out: Any) -> Any:
        raise NotImplementedError


class _Recorder(_Tracked):
    """Lists the uses, and the parameters that are used in any other way."""

    def __init__(self, params: Parameters) -> None:
        super().__init__(params)
        self.plan = Plan()
        self.others: set[str] = set()

    def seen(self, use: Use | None, found: list[str], out: Any) -> Any:
        weight = None if use is None else self._names.get(id(use.weight))
        if use is not None and weight is not None and found.count(weight) == 1:
            self.plan.uses.append(use)
            self.plan.shapes.append(out.shape)
            self.plan.names.append(weight)
            found = [n for n in found if n != weight]
        self.others.update(found)
        return out


class _Perturber(_Tracked):
    """Adds a variable to the result of every planned use, and keeps the use's input."""

    def __init__(self, params: Parameters, plan: Plan, added: Sequence[Tensor]) -> None:
        super().__init__(params)
        self._plan = plan
        self._added = added
        self.sources: list[Tensor] = []

    def seen(self, use: Use | None, found: list[str], out: Any) -> Any:
        index = len(self.sources)
        if (
            use is None
            or index >= len(self._plan.uses)
            or found != [self._plan.names[index]]
            or self._names.get(id(use.weight)) != found[0]
            or self._plan.shapes[index] != out.shape
        ):
            raise PlanChangedError(
                "The model used its weights in another way than for the first sample."
            )
        self.sources.append(use.source)
        return out + self._added[index]


class PlanChangedError(RuntimeError):
    """The calls of two evaluations of the model differ."""


def record(fn: ModelFunction, x: Tensor) -> Plan:
    """Plan the uses of all parameters of `fn` from one evaluation on the sample `x`.

    A parameter is covered by rules only if *every* call that it appears in is understood; one
    other call puts it with the rest, and so does no call at all.
    """
    with _Recorder(fn.params) as recorder:
        fn.single(fn.params, x)
    plan: Plan = recorder.plan
    return plan.without(recorder.others, fn.params)


def perturbed(
    fn: ModelFunction, plan: Plan, added: Sequence[Tensor], rest: Parameters, x: Tensor
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Outputs `[O]` with `added[k]` put onto the result of the k-th use, and the uses' inputs.

    ∂f/∂added[k] is the cotangent of the k-th use.

    Raises:
        PlanChangedError: The model makes other calls than those planned.
    """
    covered = {n: fn.params[n] for n in plan.names}
    with _Perturber(covered, plan, added) as mode:
        out = fn.single({**covered, **rest}, x)
    if len(mode.sources) != len(plan.uses):
        raise PlanChangedError("The model left out calls that it made for the first sample.")
    return out, tuple(mode.sources)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
