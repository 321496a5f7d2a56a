"""The operations of a computation, recorded once and executed again with other values.

In a small network Python and the transforms of torch.func take longer than the arithmetic. In the
end they execute a list of operations on plain tensors, which is the same for every computation of
the same form, and gives the same numbers to the last digit.
"""

from __future__ import annotations

import contextlib
import operator
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

# Operations whose results are random, or are numbers or have shapes that depend on values.
_UNPREDICTABLE = {
    torch.Tag.data_dependent_output,
    torch.Tag.dynamic_output_shape,
    torch.Tag.nondeterministic_seeded,
}
_active: Recorder | None = None
_pauses = 0


@dataclass(frozen=True)
class _Instruction:
    """An operation whose arguments and result have indices ("places") in a list of values.

    Attributes:
        call: The operation, which takes all arguments by position.
        arguments: The places of the arguments.
        result: The place of the result.
        writes: Whether the operation changes one of its arguments.
    """

    call: Callable[..., Any]
    arguments: tuple[int, ...]
    result: int
    writes: bool = False


class NotRecordedError(BaseException):
    """The operations cannot be executed while they are recorded; nobody else may catch it."""


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A context that records the operations on tensors that are executed in it.

    Results of recorded operations and inputs are variables. Numbers and all other tensors are
    constants.

    Args:
        inputs: The tensors that have other values when the operations are executed again.

    Attributes:
        reason: Why the operations cannot be executed again, or "".
        noted: The values that were passed to `note`.
    """

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.reason = ""
        self.noted: list[Any] = []
        self._conditions: list[tuple[Tensor, bool]] = []
        self._values: list[Any] = []
        self._known: dict[int, tuple[weakref.ref[Tensor], int]] = {}
        self._instructions: list[_Instruction] = []
        self._ranges: list[int] = []  # the places of the ranges of a profile that are open
        # The place of the tensor that owns a tensor's memory, by the tensor's place; and the bytes
        # of that memory, by the owner's place.
        self._owners: dict[int, int] = {}
        self._bytes: dict[int, int] = {}
        self._memory = {t.untyped_storage().data_ptr() for t in inputs if t.numel()}
        self._inputs = tuple(self._variable(t) for t in inputs)

    def __enter__(self) -> Recorder:
        """Begin to record."""
        global _active
        super().__enter__()  # type: ignore[no-untyped-call]
        _active = self
        return self

    def __exit__(self, kind: Any, value: Any, trace: Any) -> None:
        """Stop recording."""
        global _active
        _active = None
        super().__exit__(kind, value, trace)  # type: ignore[no-untyped-call]
        if kind is not None:
            self.reason = self.reason or f"{kind.__name__} was raised"

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._efficientzerotensor.default:
            # Forward-mode derivatives have such tensors. Within a dispatch mode torch reads their
            # memory, which they do not have.
            raise NotRecordedError
        if _pauses or self.reason:
            return func(*args, **kwargs)
        if func.namespace == "profiler":
            return self._range(func, args)
        if not _UNPREDICTABLE.isdisjoint(func.tags) and not _is_gathering(func, args):
            self.reason = f"{func} depends on values or is random"
            return func(*args, **kwargs)
        call, places = func, [self._place(a) for a in args]
        if kwargs:
            call = _named(func, len(args), tuple(kwargs))
            places += [self._place(v) for v in kwargs.values()]
        try:
            out = func(*args, **kwargs)
        except Exception as error:
            self.reason = f"{func} raised {type(error).__name__}"
            raise
        given, writes = (*args, *kwargs.values()), func._schema.is_mutable
        if writes:
            self._check_written(func, args, kwargs)
        if isinstance(out, Tensor):
            result = self._result(out, given)
            self._add(call, places, result, writes)
        elif isinstance(out, (tuple, list)):
            result = self._constant(None)
            self._add(call, places, result, writes)
            for k, part in enumerate(out):
                if isinstance(part, Tensor):
                    taken = [result, self._constant(k)]
                    self._add(operator.getitem, taken, self._result(part, given))
        elif out is None:
            self._add(call, places, self._constant(None), writes)
        else:
            self.reason = f"{func} returns no tensor"
        return out

    def recording(self, outputs: Sequence[Tensor]) -> Recording | None:
        """Return the recorded operations as a function of the inputs that returns `outputs`.

        Operations whose results are not used are left out. The result is None if the operations
        cannot be executed again; `reason` states why.
        """
        results = [self._place(t) for t in outputs]
        decisions = [self._place(t) for t, _ in self._conditions]
        if not {*results} <= {*self._inputs, *(i.result for i in self._instructions)}:
            self.reason = self.reason or "a result is constant"
        if self.reason:
            return None
        used = {*results, *decisions}
        kept = []
        for instruction in reversed(self._instructions):
            if instruction.writes or instruction.result in used:
                kept.append(instruction)
                used.update(instruction.arguments)
        kept.reverse()
        last: dict[int, int] = {}
        for k, instruction in enumerate(kept):
            for place in (*instruction.arguments, instruction.result):
                last[place] = k
        last.update((place, len(kept)) for place in (*results, *decisions))
        variables = {*self._inputs, *(i.result for i in kept)}
        steps = [
            _Step(
                instruction.call,
                _getter(instruction.arguments),
                instruction.result,
                tuple(
                    place
                    for place in {*instruction.arguments, instruction.result}
                    if last[place] == k and place in variables
                ),
            )
            for k, instruction in enumerate(kept)
        ]
        return Recording(
            values=[v if k in used else None for k, v in enumerate(self._values)],
            inputs=self._inputs,
            steps=steps,
            results=tuple(results),
            decisions=tuple(decisions),
            decided=tuple(value for _, value in self._conditions),
            peak=self._peak(kept, last),
        )

    def _peak(self, kept: Sequence[_Instruction], last: dict[int, int]) -> int:
        """Return the largest number of bytes of results that exist at the same time."""
        ends: dict[int, int] = {}
        for place, k in last.items():
            owner = self._owners.get(place)
            if owner is not None:
                ends[owner] = max(k, ends.get(owner, k))
        changes = [0] * (len(kept) + 2)
        begun = set()
        for k, instruction in enumerate(kept):
            owner = self._owners.get(instruction.result)
            if owner in self._bytes and owner not in begun:
                begun.add(owner)
                changes[k] += self._bytes[owner]
                changes[ends[owner] + 1] -= self._bytes[owner]
        now = most = 0
        for change in changes:
            now += change
            most = max(most, now)
        return most

    def _range(self, func: Any, args: tuple[Any, ...]) -> Any:
        """Record the begin or the end of a range of a profile. Ranges are nested."""
        name, place = func.overloadpacket.__name__, self._constant(None)
        if "enter" in name:
            self._add(func, [self._constant(a) for a in args], place, writes=True)
            self._ranges.append(place)
        elif "exit" in name and self._ranges:
            self._add(func, [self._ranges.pop()], place, writes=True)
        return func(*args)

    def _add(
        self,
        call: Callable[..., Any],
        arguments: Sequence[int],
        result: int,
        writes: bool = False,
    ) -> None:
        self._instructions.append(_Instruction(call, tuple(arguments), result, writes))

    def _check_written(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Refuse an operation that writes to a tensor that existed before."""
        for k, argument in enumerate(func._schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                given = args[k] if k < len(args) else kwargs.get(argument.name)
                for t in given if isinstance(given, (tuple, list)) else [given]:
                    place = self._place_of(t) if isinstance(t, Tensor) else None
                    if place is not None and self._owners.get(place) not in self._bytes:
                        self.reason = f"{func} writes to an input or a constant"

    def _constant(self, value: Any) -> int:
        self._values.append(value)
        return len(self._values) - 1

    def _variable(self, t: Tensor) -> int:
        place = self._constant(None)
        self._known[id(t)] = weakref.ref(t), place
        return place

    def _place_of(self, t: Tensor) -> int | None:
        """Return the place of a tensor, or None if it has none."""
        known = self._known.get(id(t))  # another tensor may have had the same id
        return known[1] if known is not None and known[0]() is t else None

    def _place(self, value: Any) -> int:
        """Return the place of an argument, which is added if it is new."""
        if isinstance(value, Tensor):
            place = self._place_of(value)
            if place is not None:
                return place
            if not _is_dense(value):
                self.reason = "a tensor is sparse or of a class of its own"
            elif value.numel() and value.untyped_storage().data_ptr() in self._memory:
                self.reason = "a tensor has the memory of an input, without an operation on that"
            place = self._constant(value)
            self._known[id(value)] = weakref.ref(value), place
            return place
        if isinstance(value, (tuple, list)) and any(isinstance(v, Tensor) for v in value):
            place = self._constant(None)
            self._add(_listed, [self._place(v) for v in value], place)
            return place
        return self._constant(value)

    def _result(self, out: Tensor, given: Sequence[Any]) -> int:
        """Return the place of a result; it is that of an argument for an operation in place."""
        place = self._place_of(out)
        if place is not None:
            return place
        place = self._variable(out)
        owner = place
        if not _is_dense(out):
            self.reason = "a result is sparse or of a class of its own"
            return place
        if out.device.type != "meta":
            memory = out.untyped_storage().data_ptr()
            for t in given:
                known = self._place_of(t) if isinstance(t, Tensor) else None
                if known is not None and t.untyped_storage().data_ptr() == memory:
                    owner = self._owners.get(known, known)
        self._owners[place] = owner
        if owner == place:
            self._bytes[place] = out.untyped_storage().nbytes()
        return place


@dataclass(frozen=True)
class _Step:
    """An instruction in the form in which it is executed.

    Attributes:
        call: The operation.
        arguments: Returns the arguments from the list of values.
        result: The place of the result.
        freed: The places of values that are not used afterwards.
    """

    call: Callable[..., Any]
    arguments: Callable[[list[Any]], Sequence[Any]]
    result: int
    freed: tuple[int, ...]


@dataclass(frozen=True)
class Recording:
    """Recorded operations as a function of tensors with the shapes of the inputs.

    Attributes:
        values: The constants at their places, and None at the places of variables.
        inputs: The places of the inputs.
        steps: The operations.
        results: The places of the results of the function.
        decisions: The places of the conditions in `decided`.
        decided: The truth values that these conditions must have.
        peak: The largest number of bytes of results that exist at the same time.
    """

    values: list[Any]
    inputs: tuple[int, ...]
    steps: list[_Step]
    results: tuple[int, ...]
    decisions: tuple[int, ...]
    decided: tuple[bool, ...]
    peak: int

    def __call__(self, inputs: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Return the results and the conditions for other values of the inputs."""
        values = list(self.values)
        for place, t in zip(self.inputs, inputs, strict=True):
            values[place] = t
        for step in self.steps:
            values[step.result] = step.call(*step.arguments(values))
            for place in step.freed:
                values[place] = None
        return [values[p] for p in self.results], [values[p] for p in self.decisions]


def is_recording() -> bool:
    """Whether a recorder is active."""
    return _active is not None


@contextlib.contextmanager
def unrecorded() -> Iterator[None]:
    """A context whose operations are not recorded, so that their results are constants."""
    global _pauses
    _pauses += 1
    try:
        yield
    finally:
        _pauses -= 1


def refuse_recording() -> None:
    """Abort a recording: what follows has forward-mode derivatives, or nothing to compare."""
    if _active is not None:
        raise NotRecordedError


def note(value: object) -> None:
    """Append a value to `noted` of the active recorder, if there is one."""
    if _active is not None:
        _active.noted.append(value)


def decided(condition: Tensor) -> bool:
    """Return the truth value of a tensor that determines which operations follow.

    A recording is valid for inputs with which the condition has the same value.
    """
    with unrecorded():
        value = bool(condition)
    if _active is not None:
        _active._conditions.append((condition, value))
    return value


def _is_dense(t: Tensor) -> bool:
    return t.layout == torch.strided and type(t) in (Tensor, torch.nn.Parameter)


def _is_gathering(func: Any, args: Sequence[Any]) -> bool:
    """Whether the operation indexes by integers, which fix the shape, and not by a mask."""
    if func is not torch.ops.aten.index.Tensor:
        return False
    return all(t is None or t.dtype in (torch.int32, torch.int64) for t in args[1])


def _getter(places: tuple[int, ...]) -> Callable[[list[Any]], Sequence[Any]]:
    """Return a function that returns the values at some places of a list."""
    if len(places) > 1:
        return operator.itemgetter(*places)
    return lambda values: [values[p] for p in places]


def _listed(*values: Any) -> list[Any]:
    return list(values)


def _named(func: Callable[..., Any], n: int, names: tuple[str, ...]) -> Callable[..., Any]:
    """Return `func` as a function whose keyword arguments follow its `n` positional ones."""

    def call(*values: Any) -> Any:
        return func(*values[:n], **dict(zip(names, values[n:], strict=True)))

    return call
