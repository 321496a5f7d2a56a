"""Find the calls in which a model uses its parameters, by the identity of the parameter.

Uses are found in the calls of operations (`F.linear`, `F.conv2d`, `x @ w`, …), so functional code,
tied weights and layers that are called several times are not special cases.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..._functional import (
    Batch,
    ModelFunction,
    PackedSample,
    call_right,
    is_recurrent,
    opened,
    tensors_in,
    written_out,
)
from ..._types import Parameters
from ..inspect import Follower
from ..rules import RULES, ConvUse, Rule, RuleError, Use


class UsesChangedError(Exception):
    """Two evaluations of the model use its parameters in different ways."""


@dataclass(frozen=True)
class ParameterUses:
    """The uses of each selected parameter, which is covered exactly once.

    Attributes:
        uses: The uses that rules have found, in the order of the calls.
        calls: For each use the index of its call; a call may use several parameters.
        shapes: For each call the shape of its result for one sample.
        rest: The names of all other parameters, whose Jacobians are computed.
    """

    uses: tuple[Use, ...]
    calls: tuple[int, ...]
    shapes: tuple[torch.Size, ...]
    rest: tuple[str, ...]

    def without(self, names: set[str]) -> ParameterUses:
        """Return the uses with the parameters `names` among the rest."""
        keep = [i for i, use in enumerate(self.uses) if use.name not in names]
        calls = sorted({self.calls[i] for i in keep})
        moved = {use.name for use in self.uses} & names
        return ParameterUses(
            tuple(self.uses[i] for i in keep),
            tuple(calls.index(self.calls[i]) for i in keep),
            tuple(self.shapes[c] for c in calls),
            (*self.rest, *sorted(moved)),
        )

    def in_dtype(self, dtype: torch.dtype) -> ParameterUses:
        """Return the uses for an evaluation in `dtype`, in which they may not be recorded."""
        return replace(self, uses=tuple(use.in_dtype(dtype) for use in self.uses))

    def groups(self) -> dict[str, list[int]]:
        """Return the indices of each weight's uses, by its name."""
        found: dict[str, list[int]] = {}
        for i, use in enumerate(self.uses):
            found.setdefault(use.name, []).append(i)
        return found

    def convolutions(self) -> set[str]:
        """Return the names of the weights for which channels innermost are faster."""
        return {u.name for u in self.uses if isinstance(u, ConvUse) and u.channels_last}


class _Tracker(Follower):
    """Calls `self.seen` for every call that returns tensors and has a tracked parameter."""

    def __init__(self, rules: Mapping[Any, Rule] = RULES) -> None:
        super().__init__()
        self._names: dict[int, str] = {}
        self._rules = rules
        self._packed = PackedSample()

    def follow(self, leaves: Parameters) -> None:
        """Track these parameters by their identity."""
        self._names = {id(p): n for n, p in leaves.items()}

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if self._packed.takes(func, args):
            with self:  # so that the operations inside of a recurrent layer are tracked, too
                packed = self._packed.call(func, args, kwargs)
            if packed is not None:
                return packed
        if is_recurrent(func):
            with self:
                plain = written_out(func, args, kwargs)
            if plain is not None:
                return plain
        inside = opened(func)
        if inside is not None:
            with self:
                return inside(*args, **kwargs)
        out = self.call(func, args, kwargs)
        found = [self._names[id(t)] for t in tensors_in((args, kwargs)) if id(t) in self._names]
        # Shapes, dtypes and numbers read from a parameter carry no derivative.
        if not found or not any(True for _ in tensors_in(out)):
            return out
        rule = self._rules.get(func)
        uses: list[Use] = []
        if rule is not None and isinstance(out, Tensor) and not out.is_complex():
            try:
                given = rule(args, kwargs)
            except Exception as error:  # any error is a mistake of the rule
                name = getattr(func, "__name__", str(func))
                raise RuleError(
                    f"The rule for {name!r} fails on the arguments that the model gives it "
                    f"({type(error).__name__}: {error}). Please report it; method='jacobian' "
                    "does without rules."
                ) from error
            uses = [given] if isinstance(given, Use) else list(given or ())
        # A rule names every tensor that may be a weight; one that is used twice is not linear.
        uses = [u for u in uses if found.count(self._names.get(id(u.weight), "")) == 1]
        uses = [u for u in uses if u.weight.numel()]  # a weight without entries needs no rule
        for use in uses:
            use.found(self._names[id(use.weight)])
        return self.seen(uses, found, out)

    def call(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Make the call, and return its result."""
        return func(*args, **kwargs)

    def seen(self, uses: list[Use], found: list[str], out: Any) -> Any:
        """Return the result of a call whose uses and tracked parameters are given."""
        raise NotImplementedError


class UseRecorder(_Tracker):
    """Records the uses, and the parameters that are used in another way."""

    def __init__(self, rules: Mapping[Any, Rule] = RULES) -> None:
        super().__init__(rules)
        self._uses: list[Use] = []
        self._calls: list[int] = []
        self._shapes: list[torch.Size] = []
        self._others: set[str] = set()

    def follow(self, leaves: Parameters) -> None:
        """Forget earlier uses, since a forward pass may be tried twice, and track parameters."""
        super().follow(leaves)
        self._uses, self._calls, self._shapes, self._others = [], [], [], set()

    def seen(self, uses: list[Use], found: list[str], out: Any) -> Any:
        """Record the uses, and return the call's own result."""
        if uses:
            self._uses.extend(use.without_source() for use in uses)
            self._calls.extend([len(self._shapes)] * len(uses))
            self._shapes.append(out.shape)
        names = {use.name for use in uses}
        self._others.update(n for n in found if n not in names)
        return out

    def unused(self) -> list[str]:
        """Return the names of the parameters that no call has used."""
        used = {use.name for use in self._uses} | self._others
        return [n for n in self._names.values() if n not in used]

    def recorded(self) -> ParameterUses:
        """Return the uses of all parameters in the pass that was followed.

        A parameter is covered by rules only if there is a rule for *every* call in which it
        appears. Otherwise, or if it appears in no call, it belongs to the rest.
        """
        every = list(self._names.values())
        unused = tuple(n for n in every if n not in {use.name for use in self._uses})
        found = ParameterUses(tuple(self._uses), tuple(self._calls), tuple(self._shapes), unused)
        return found.without(self._others)


class _Perturber(_Tracker):
    """Adds a variable to the result of every planned call, and stores the inputs of its uses."""

    def __init__(self, planned: ParameterUses, added: Sequence[Tensor]) -> None:
        super().__init__()
        self._planned, self._added = planned, added
        self.sources: list[Tensor] = []
        self._call = -1

    def call(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Make the call with operations that are right under vmap, and return its result."""
        return call_right(func, args, kwargs)

    def seen(self, uses: list[Use], found: list[str], out: Any) -> Any:
        """Return the sum of the call's result and the variable of its cotangent."""
        first = len(self.sources)
        planned = self._planned.uses[first : first + len(uses)]
        self._call += 1
        if (
            sorted(use.name for use in uses) != sorted(found)
            or len(planned) != len(uses)
            or any(c != self._call for c in self._planned.calls[first : first + len(uses)])
            or self._planned.shapes[self._call] != out.shape
            or any(not use.is_like(p) for use, p in zip(uses, planned, strict=True))
        ):
            raise UsesChangedError
        self.sources.extend(use.source for use in uses)
        # All uses of one call have the same cotangent.
        return out + self._added[self._call]


def perturbed(
    fn: ModelFunction,
    planned: ParameterUses,
    added: Sequence[Tensor],
    rest: Parameters,
    x: Batch,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return the outputs `[O]` with `added[k]` added to the k-th call's result, and uses' inputs.

    ∂f/∂added[k] is the cotangent of the uses in the k-th call.
    """
    covered = {use.name: fn.params[use.name] for use in planned.uses}
    with _Perturber(planned, added) as mode:
        mode.follow(covered)
        out = fn.single({**fn.params, **covered, **rest}, x)
    if len(mode.sources) != len(planned.uses):
        raise UsesChangedError
    return out, tuple(mode.sources)
