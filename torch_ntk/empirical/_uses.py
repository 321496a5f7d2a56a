"""Find where a model uses its parameters, by the identity of the parameter.

A use is seen where the operation is called (`F.linear`, `F.conv2d`, `x @ w`, …), so functional
code, tied weights and layers that are called several times need no case of their own.
"""

from __future__ import annotations

import copy
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from .._functional import ModelFunction
from .._types import Parameters
from ._flatten import Flattened
from ._wide import is_wide
from .rules import RULES, ConvUse, Use
from .rules._bias import BiasUse


@dataclass
class Plan:
    """How each selected parameter is covered, exactly once.

    Attributes:
        uses: Calls that a rule understands, in the order in which they are made.
        names: Name of each use's weight.
        calls: Index of the call that each use is in; a call may use several parameters.
        shapes: Shape of what each call returns for one sample.
        rest: Names of all other parameters; they contribute through their own Jacobian.
        channels_last: Whether convolutions on a CPU run with the channels innermost in memory.
    """

    uses: list[Use] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    calls: list[int] = field(default_factory=list)
    shapes: list[torch.Size] = field(default_factory=list)
    rest: tuple[str, ...] = ()
    channels_last: bool = True

    def without(self, names: set[str], params: Parameters) -> Plan:
        """The plan in which the parameters `names` belong to the rest."""
        keep = [i for i, n in enumerate(self.names) if n not in names]
        kept = [self.names[i] for i in keep]
        calls = sorted({self.calls[i] for i in keep})
        return Plan(
            [self.uses[i] for i in keep],
            kept,
            [calls.index(self.calls[i]) for i in keep],
            [self.shapes[c] for c in calls],
            tuple(n for n in params if n not in kept),
            self.channels_last,
        )

    def of(self, params: Parameters) -> Plan:
        """The same plan for other tensors of the same names."""
        names = {id(use.weight): name for use, name in zip(self.uses, self.names, strict=True)}
        uses = [copy.copy(use) for use in self.uses]
        for use, name in zip(uses, self.names, strict=True):
            use.weight = params[name]
            if isinstance(use, BiasUse):
                joined = names.get(use.joins or 0)
                use.joins = None if joined is None else id(params[joined])
        return replace(self, uses=uses)

    def groups(self) -> dict[str, list[int]]:
        """By weight name the indices of its uses."""
        found: dict[str, list[int]] = {}
        for i, name in enumerate(self.names):
            found.setdefault(name, []).append(i)
        return found

    def convolved(self) -> set[str]:
        """Names of the weights that are to have channels innermost in memory.

        Not those of wide ones, which stay as they are; see `_wide`.
        """
        if not self.channels_last:
            return set()
        pairs = zip(self.uses, self.names, strict=True)
        found = {n: u for u, n in pairs if isinstance(u, ConvUse) and u.channels_last}
        return {n for n, use in found.items() if not is_wide(use.weight)}

    def laid(self, params: Parameters) -> Parameters:
        """The weights of convolutions in the layout that every pass wants."""
        return {name: channels_last(params[name]) for name in self.convolved()}

    def lay_out(self, params: Parameters) -> None:
        """Put these weights into `params`, one after the other."""
        for name in self.convolved():
            params[name] = channels_last(params[name])
        for use, name in zip(self.uses, self.names, strict=True):
            use.weight = params[name]  # the other one is not to be kept

    def lay_back(self, params: Parameters) -> None:
        """Put them into the usual layout again, for methods that follow no plan."""
        for name in self.convolved():
            params[name] = params[name].clone(memory_format=torch.contiguous_format)

    def description(self) -> tuple[Hashable, ...]:
        """What distinguishes this plan from others of the same module, without its tensors."""
        kinds = tuple((type(use), use.kind) for use in self.uses)
        return (kinds, tuple(self.names), tuple(self.calls), tuple(self.shapes), self.rest)


class _Tracked(TorchFunctionMode):
    """Calls `self.seen` for every call that returns tensors and has a tracked parameter in it."""

    def __init__(self, params: Parameters) -> None:
        super().__init__()
        self._names = {id(p): n for n, p in params.items()}

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        out = self.call(func, args, kwargs)
        found = [self._names[id(t)] for t in _tensors((args, kwargs)) if id(t) in self._names]
        # Shapes, dtypes and numbers read from a parameter carry no derivative.
        if not found or not any(True for _ in _tensors(out)):
            return out
        rule = RULES.get(func)
        given = None if rule is None or not isinstance(out, Tensor) else rule(args, kwargs)
        uses = [given] if isinstance(given, Use) else list(given or ())
        # A rule names every tensor that may be a weight; one that is used twice is not linear.
        uses = [u for u in uses if found.count(self.name_of(u) or "") == 1]
        return self.seen(uses, found, out)

    def call(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """What a call returns."""
        return func(*args, **kwargs)

    def name_of(self, use: Use) -> str | None:
        """The name of the use's weight if it is tracked."""
        return self._names.get(id(use.weight))

    def seen(self, uses: list[Use], found: list[str], out: Any) -> Any:
        raise NotImplementedError


class _Recorder(_Tracked):
    """Lists the uses, and the parameters that are used in any other way."""

    def __init__(self, params: Parameters) -> None:
        super().__init__(params)
        self.plan = Plan()
        self.others: set[str] = set()

    def seen(self, uses: list[Use], found: list[str], out: Any) -> Any:
        names = [self._names[id(u.weight)] for u in uses]
        if uses:
            self.plan.uses.extend(uses)
            self.plan.names.extend(names)
            self.plan.calls.extend([len(self.plan.shapes)] * len(uses))
            self.plan.shapes.append(out.shape)
        self.others.update(n for n in found if n not in names)
        return out


class _Perturber(_Tracked):
    """Adds a variable to the result of every planned call, and keeps the inputs of its uses."""

    def __init__(self, params: Parameters, plan: Plan, added: Sequence[Tensor]) -> None:
        super().__init__(params)
        self._plan = plan
        self._added = added
        self.sources: list[Tensor] = []
        self._call = -1
        self._flattened = Flattened() if plan.channels_last else None

    def call(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """What a call returns, with cotangents in the layout of the images."""
        flattened = self._flattened
        return func(*args, **kwargs) if flattened is None else flattened.call(func, args, kwargs)

    def seen(self, uses: list[Use], found: list[str], out: Any) -> Any:
        first = len(self.sources)
        last = first + len(uses)
        names = [self._names[id(u.weight)] for u in uses]
        self._call += 1
        if (
            sorted(names) != sorted(found)
            or self._plan.names[first:last] != names
            or any(c != self._call for c in self._plan.calls[first:last])
            or self._plan.shapes[self._call] != out.shape
            or any(not _alike(u, p) for u, p in zip(uses, self._plan.uses[first:last], strict=True))
        ):
            raise PlanChangedError(
                "The model used its weights in another way than for the first sample."
            )
        self.sources.extend(use.source for use in uses)
        # All uses of one call have the same cotangent.
        return out + self._added[self._call]


def _alike(use: Use, planned: Use) -> bool:
    """Whether a use is made as it was planned, in the same geometry."""
    given, other = vars(use), vars(planned)
    own = type(use) is type(planned) and use.source.shape == planned.source.shape
    return own and all(
        v == other[k] for k, v in given.items() if k != "joins" and not isinstance(v, Tensor)
    )


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
    for use in plan.uses:
        use.source = use.source.to("meta")  # only its shape is asked for again
    return plan.without(recorder.others, fn.params)


def perturbed(
    fn: ModelFunction, plan: Plan, added: Sequence[Tensor], rest: Parameters, x: Tensor
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Outputs `[O]` with `added[k]` put onto the result of the k-th call, and the uses' inputs.

    ∂f/∂added[k] is the cotangent of the uses in the k-th call.

    Raises:
        PlanChangedError: The model makes other calls than those planned.
    """
    covered = {n: fn.params[n] for n in plan.names}
    for name in plan.convolved():
        covered[name] = channels_last(covered[name])
    with _Perturber(covered, plan, added) as mode:
        out = fn.single({**covered, **rest}, x)
    if len(mode.sources) != len(plan.uses):
        raise PlanChangedError("The model left out calls that it made for the first sample.")
    return out, tuple(mode.sources)


def channels_last(weight: Tensor) -> Tensor:
    """The weight of a convolution with the channels innermost in memory.

    oneDNN follows the layout of the weight; with channels innermost it is up to five times as fast
    where they are few, and patches are gathered by whole rows. The strides tell, even of a weight
    with a single tap.
    """
    _, c, h, w = weight.shape
    if weight.stride() == (c * h * w, 1, w * c, c):
        return weight
    return torch.empty_like(weight, memory_format=torch.channels_last).copy_(weight)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
