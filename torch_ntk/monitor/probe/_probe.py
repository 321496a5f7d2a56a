"""The fixed samples on which a training is observed."""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..._checks import check_positive_int, check_tensor, describe, type_error, value_error
from ..._functional import Batch, tensors_in
from ..._types import BatchLike
from ._samples import batch_of, first_of_each

ProbeLike: TypeAlias = int | BatchLike | Dataset[Any] | tuple[Dataset[Any], Iterable[int]]
"""A number of samples to take from the first training batch; or the samples: a batch of training,
inputs `x`, `(x, y)`, a dataset such as `Subset(dataset, indices)`, or `(dataset, indices)`."""

InputFn: TypeAlias = Callable[[Any], Any]
"""From a batch of the training loader to the inputs `x`, in any form, or to `(x, y)`."""

REMEDY = "Pass the probe itself, probe=(x, y), or input_fn=lambda batch: (x, y)."

_WHY_NO_ROWS = (
    "the probe has no targets. Pass input_fn=lambda batch: (x, y), y with the target of every row "
    "of the outputs, or probe=(x, y)."
)

_CONSTANTS = (bool, int, float, str, type(None))


class _DefaultCount(int):
    """A number of samples that nobody asked for: a smaller batch is nothing to warn about."""


DEFAULT_PROBE = _DefaultCount(64)
"""The number of samples where the caller names none."""


@dataclass(frozen=True)
class Probe:
    """Samples in the form in which the network takes them, and their targets if there are any.

    Attributes:
        x: The inputs: a tensor `[N, ...]`, or any nesting of mappings, tuples, lists and
            dataclasses of such tensors.
        y: The targets `[N, ...]`, or None.
        why_none: Why there are no targets, for those who need them.
        as_one: Whether a mapping, tuple or list is given to the network as one argument.
        is_whole: Whether `x` has the form of the caller's; False for what was read from a saved
            state, which keeps plain containers only.
        coupled: Whether `x` is one input, such as a graph, and the rows of its outputs are the
            samples.
        rows: N of a coupled one, once the network has been evaluated; 0 before that.
        batch_size: Samples of the training batch that it was taken from; 0 if it was given.
    """

    x: Any
    y: Tensor | None = None
    why_none: str = "the probe has no targets. Pass probe=(x, y)."
    as_one: bool = False
    is_whole: bool = True
    coupled: bool = False
    rows: int = 0
    batch_size: int = 0

    def __post_init__(self) -> None:
        """Check the two against each other."""
        n = len(self)
        if self.y is not None:
            check_tensor("probe targets", self.y)
            if self.coupled and not self.rows:
                return  # how many there are, the network has to say
            if self.y.ndim == 0 or self.y.shape[0] != n:
                raise value_error("probe", f"(x, y) with {n} targets", self.y, REMEDY)

    @cached_property
    def batch(self) -> Batch:
        """The inputs, to be taken apart into samples unless they are coupled."""
        return Batch.coupled("probe", self.x) if self.coupled else Batch.of("probe", self.x)

    def __len__(self) -> int:
        """The number of samples."""
        return self.rows if self.coupled else len(self.batch)

    @property
    def device(self) -> torch.device:
        """Where the inputs are."""
        return self.batch.tensors[0].device

    def with_batch(self, batch: Batch) -> Probe:
        """Other inputs of the same form."""
        return replace(self, x=batch.value)

    def first(self, n: int) -> Probe:
        """The first `n` samples, as copies that later writes to the batch do not reach.

        All of a coupled input, which cannot be divided. Targets that are bools become numbers: the
        labels 0 and 1, or one column per bool.
        """
        y = None if self.y is None else (self.y if self.coupled else self.y[:n]).detach().clone()
        if y is not None and y.dtype == torch.bool:
            y = y.long() if y.ndim == 1 else y.to(torch.get_default_dtype())
        batch = (self.batch if self.coupled else self.batch[:n]).map(lambda t: t.detach().clone())
        return replace(self, x=batch.value, y=y)

    def distinct(self) -> Probe:
        """Without samples that equal an earlier one: they would make every kernel singular."""
        if self.coupled:
            return self
        kept = first_of_each(self.batch)
        if len(kept) == len(self):
            return self
        y = None if self.y is None else self.y[kept]
        return replace(self, x=self.batch.map(lambda t: t[kept]).value, y=y)

    def to(self, device: torch.device) -> Probe:
        """The same samples on `device`."""
        y = None if self.y is None else self.y.to(device)
        return replace(self, x=self.batch.map(lambda t: t.to(device)).value, y=y)

    # ------------------------------------------------------------------ state
    def state_dict(self) -> dict[str, Any]:
        """Tensors, dictionaries, lists, tuples and constants only."""
        return {
            "x": _plain(self.x),
            "y": self.y,
            "as_one": self.as_one,
            "is_whole": self.is_whole and _is_plain(self.x),
            "coupled": self.coupled,
            "rows": self.rows,
        }

    @staticmethod
    def from_state_dict(state: Mapping[str, Any]) -> Probe:
        """The inverse of `state_dict`, where mappings are dictionaries and so are dataclasses."""
        kept = {"as_one": False, "is_whole": True, "coupled": False, "rows": 0}
        return Probe(state["x"], state["y"], **{k: state.get(k, v) for k, v in kept.items()})

    def in_form_of(self, other: Probe) -> Probe:
        """These samples in the containers of other ones of the same kind."""
        pairs = zip(self.batch.tensors, other.batch.tensors, strict=False)
        alike = len(self.batch.tensors) == len(other.batch.tensors) and all(
            a.dtype == b.dtype and a.shape[1:] == b.shape[1:] for a, b in pairs
        )
        if not alike:
            raise value_error(
                "probe",
                f"of samples as in the run that is resumed, {self.batch}",
                str(other.batch),
                "Resume with the same data, or start a new run.",
            )
        device = self.device
        tensors = [t.to(device) for t in self.batch.tensors]
        return replace(self, x=other.batch.with_tensors(tensors).value, is_whole=True)


@dataclass(frozen=True)
class Unread:
    """Samples of which only the network can say what is input, and what is target.

    Attributes:
        name: Of the argument by which they came.
        batch: All of them, as one batch.
    """

    name: str
    batch: Any

    def read(self, read: Callable[[Any], Probe]) -> Probe:
        """The probe, in which no sample repeats, by a function of a batch."""
        with _errors_about(self.name):
            return _without_repetition(self.name, read(self.batch))


def read_probe(name: str, probe: object) -> int | Probe | Unread:
    """A number of samples, the probe itself, or what a network has to be asked about.

    Args:
        name: The argument's name.
        probe: What the caller gave.

    Raises:
        TypeError, ValueError: As `check_probe`.
    """
    is_pair = isinstance(probe, (tuple, list)) and len(probe) == 2
    with _errors_about(name):
        if isinstance(probe, Dataset):
            return Unread(name, batch_of(probe))
        if is_pair and isinstance(probe[0], Dataset):  # type: ignore[index]
            return Unread(name, batch_of(*probe))  # type: ignore[misc]
        checked = check_probe(probe)
    if isinstance(checked, Probe):
        return _without_repetition(name, checked)
    return Unread(name, checked.batch) if isinstance(checked, Unread) else checked


def coupled_probe(name: str, probe: object) -> Probe:
    """Samples that are the rows of one input: the input, or `(input, targets)`.

    Args:
        name: The argument's name.
        probe: What the caller gave.

    Raises:
        TypeError: There is no tensor in it.
    """
    with _errors_about(name):
        if isinstance(probe, Probe):
            return replace(probe, coupled=True)
        is_pair = isinstance(probe, (tuple, list)) and len(probe) == 2
        given: tuple[Any, Any] = (probe, None)
        if is_pair and (probe[1] is None or isinstance(probe[1], Tensor)):  # type: ignore[index]
            given = tuple(probe)  # type: ignore[assignment, arg-type]
        return Probe(*given, coupled=True, why_none=_WHY_NO_ROWS).first(0)


def check_probe(probe: object) -> int | Probe | Unread:
    """A number of samples, the probe itself, or a batch of another form than `x` or `(x, y)`.

    Raises:
        TypeError: Neither an integer nor a batch with tensors.
        ValueError: No samples, or another number of targets.
    """
    if isinstance(probe, Probe):
        return probe
    if isinstance(probe, Tensor):
        return Probe(probe).first(len(probe) if probe.ndim else 1)
    if isinstance(probe, (tuple, list)) and len(probe) == 2:
        for k, part in enumerate(probe):
            if part is None and k == 1:
                continue
            if next(tensors_in(part), None) is None:
                check_tensor(f"probe[{k}]", part)
        if probe[1] is None or isinstance(probe[1], Tensor):
            found = Probe(*probe)
            return found.first(len(found))
    elif isinstance(probe, int) and not isinstance(probe, bool):
        return check_positive_int("probe", probe)
    if next(tensors_in(probe), None) is None and not _has_tensors(probe):
        raise type_error(
            "probe",
            "a number of samples, a tensor x, a pair (x, y) of tensors or a dataset",
            describe(probe),
            "Pass probe=64 to take them from the first training batch, or the samples as tensors.",
        )
    batch = Batch.of("probe", probe)
    return Unread("probe", batch.map(lambda t: t.detach().clone()).value)


def _without_repetition(name: str, found: Probe) -> Probe:
    kept = found.distinct()
    left_out = len(found) - len(kept)
    if left_out:
        warnings.warn(
            f"{left_out} of the {len(found)} samples of `{name}` equal an earlier one and "
            "are left out: they would make the kernel singular.",
            UserWarning,
            stacklevel=2,
        )
    return kept.first(len(kept))


@contextlib.contextmanager
def _errors_about(name: str) -> Iterator[None]:
    """Within it, errors about `probe` are about the argument of this name."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise type(error)(str(error).replace("`probe", f"`{name}")) from error


def _has_tensors(value: object) -> bool:
    """Whether there is a tensor in a dataclass, or in a mapping that is no dictionary."""
    try:
        Batch.coupled("probe", value)
    except TypeError:
        return False
    return True


def _plain(value: Any) -> Any:
    """The same in dictionaries, lists and tuples; what a saved state cannot hold is None."""
    if isinstance(value, Tensor) or type(value) in _CONSTANTS:
        return value
    if isinstance(value, Mapping):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, (tuple, list)):
        parts = [_plain(part) for part in value]
        return tuple(parts) if isinstance(value, tuple) else parts
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    return None


def _is_plain(value: Any) -> bool:
    """Whether `_plain` changes nothing."""
    if isinstance(value, Tensor) or type(value) in _CONSTANTS:
        return True
    if type(value) is dict:
        return all(map(_is_plain, value.values()))
    return type(value) in (tuple, list) and all(map(_is_plain, value))
