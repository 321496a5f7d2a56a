"""`Probe`: the fixed samples on which a training is measured."""

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
"""The samples, or their number, to be taken from the first training batch. Samples are a training
batch, inputs `x`, `(x, y)`, a dataset such as `Subset(dataset, indices)`, or `(dataset, indices)`.
"""

InputFn: TypeAlias = Callable[[Any], Any]
"""A function of a training batch that returns the inputs `x`, in any form, or `(x, y)`."""

REMEDY = "Pass the probe itself, probe=(x, y), or input_fn=lambda batch: (x, y)."

_WHY_NO_ROWS = (
    "the probe has no targets. Pass input_fn=lambda batch: (x, y), y with the target of every row "
    "of the outputs, or probe=(x, y)."
)

_CONSTANTS = (bool, int, float, str, type(None))


class _DefaultCount(int):
    """A number of samples that the user has not chosen; a smaller batch gives no warning."""


DEFAULT_PROBE = _DefaultCount(64)
"""The number of samples if the user does not choose it."""


@dataclass(frozen=True)
class Probe:
    """Samples in the form that the network accepts, and their targets if there are any.

    Attributes:
        x: The inputs: a tensor `[N, ...]`, or any nesting of mappings, tuples, lists and
            dataclasses of such tensors.
        y: The targets `[N, ...]`, or None.
        why_none: The reason for error messages why there are no targets.
        as_one: Whether a mapping, tuple or list is passed to the network as one argument.
        is_whole: Whether `x` has the containers of the user's data. It is False after loading a
            saved state, which has plain containers only.
        coupled: Whether `x` is one input, such as a graph, and the samples are the rows of its
            outputs.
        rows: The number N of rows of a coupled probe, or 0 before the network has been evaluated.
        batch_size: The number of samples in the training batch from which the probe was taken, or 0
            if the user has passed the samples.
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
        """Check that there is one target for each sample."""
        n = len(self)
        if self.y is not None:
            check_tensor("probe targets", self.y)
            if self.coupled and not self.rows:
                return  # the number of rows is not known before the network has been evaluated
            if self.y.ndim == 0 or self.y.shape[0] != n:
                raise value_error("probe", f"(x, y) with {n} targets", self.y, REMEDY)

    @cached_property
    def batch(self) -> Batch:
        """The inputs as a `Batch`, which cannot be divided into samples if they are coupled."""
        return Batch.coupled("probe", self.x) if self.coupled else Batch.of("probe", self.x)

    def __len__(self) -> int:
        """The number of samples."""
        return self.rows if self.coupled else len(self.batch)

    @property
    def device(self) -> torch.device:
        """The device of the inputs."""
        return self.batch.tensors[0].device

    def first(self, n: int) -> Probe:
        """Copies of the first `n` samples, or of the whole input if it is coupled.

        Boolean targets `[N]` become labels 0 and 1, and boolean targets of more dimensions become
        floating-point numbers.
        """
        y = None if self.y is None else (self.y if self.coupled else self.y[:n]).detach().clone()
        if y is not None and y.dtype == torch.bool:
            y = y.long() if y.ndim == 1 else y.to(torch.get_default_dtype())
        batch = (self.batch if self.coupled else self.batch[:n]).map(lambda t: t.detach().clone())
        return replace(self, x=batch.value, y=y)

    def distinct(self) -> Probe:
        """The probe without samples that equal an earlier one and would make kernels singular."""
        if self.coupled:
            return self
        kept = first_of_each(self.batch)
        if len(kept) == len(self):
            return self
        y = None if self.y is None else self.y[kept]
        return replace(self, x=self.batch.map(lambda t: t[kept]).value, y=y)

    def to(self, device: torch.device) -> Probe:
        """The probe with its tensors on `device`."""
        y = None if self.y is None else self.y.to(device)
        return replace(self, x=self.batch.map(lambda t: t.to(device)).value, y=y)

    # ------------------------------------------------------------------ state
    def state_dict(self) -> dict[str, Any]:
        """The state, which consists of tensors, dictionaries, lists, tuples and constants."""
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
        """The probe of a state, in which mappings and dataclasses have become dictionaries."""
        kept = {"as_one": False, "is_whole": True, "coupled": False, "rows": 0}
        return Probe(state["x"], state["y"], **{k: state.get(k, v) for k, v in kept.items()})

    def in_form_of(self, other: Probe) -> Probe:
        """These samples in the containers of another probe.

        Raises:
            ValueError: The other probe has tensors of other numbers, dtypes or shapes.
        """
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
    """Samples of the argument `name` whose inputs and targets only the network can tell apart."""

    name: str
    batch: Any

    def read(self, read: Callable[[Any], Probe]) -> Probe:
        """The probe that a function of the batch returns, without repeated samples."""
        with _errors_about(self.name):
            return _without_repetition(self.name, read(self.batch))


def read_probe(name: str, probe: object) -> int | Probe | Unread:
    """Check the value of the argument `name`, and convert it.

    The result is a number of samples, a probe without repeated samples, or samples that the network
    is needed to read. Errors are `TypeError` and `ValueError` about that argument.
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
    """The probe whose samples are the rows of the outputs for one input, or `(input, targets)`."""
    with _errors_about(name):
        if isinstance(probe, Probe):
            return replace(probe, coupled=True)
        is_pair = isinstance(probe, (tuple, list)) and len(probe) == 2
        given: tuple[Any, Any] = (probe, None)
        if is_pair and (probe[1] is None or isinstance(probe[1], Tensor)):  # type: ignore[index]
            given = tuple(probe)  # type: ignore[assignment, arg-type]
        return Probe(*given, coupled=True, why_none=_WHY_NO_ROWS).first(0)


def check_probe(probe: object) -> int | Probe | Unread:
    """Check a number of samples or a batch, and convert it as `read_probe` does."""
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
    if next(tensors_in(probe), None) is None and not has_tensors(probe):
        raise type_error(
            "probe",
            "a number of samples, a tensor x, a pair (x, y) of tensors or a dataset",
            describe(probe),
            "Pass probe=64 to take them from the first training batch, or the samples as tensors.",
        )
    batch = Batch.of("probe", probe)
    return Unread("probe", batch.map(lambda t: t.detach().clone()).value)


def _without_repetition(name: str, found: Probe) -> Probe:
    """The probe without repeated samples, with a warning about the argument if there are any."""
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
    """A context in which error messages about `probe` name the argument `name` instead."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise type(error)(str(error).replace("`probe", f"`{name}")) from error


def has_tensors(value: object) -> bool:
    """Whether there is a tensor in `value`, which may be a container of any supported kind."""
    try:
        Batch.coupled("probe", value)
    except TypeError:
        return False
    return True


def _plain(value: Any) -> Any:
    """The value with dictionaries, lists and tuples as containers, for a saved state.

    Values that a saved state cannot contain become None.
    """
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
    """Whether `_plain` does not change the value."""
    if isinstance(value, Tensor) or type(value) in _CONSTANTS:
        return True
    if type(value) is dict:
        return all(map(_is_plain, value.values()))
    return type(value) in (tuple, list) and all(map(_is_plain, value))
