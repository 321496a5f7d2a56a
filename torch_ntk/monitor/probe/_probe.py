"""The fixed samples on which a training is observed."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..._checks import check_positive_int, check_tensor, describe, type_error, value_error
from ._samples import batch_of, first_of_each

ProbeLike: TypeAlias = (
    int | Tensor | tuple[Tensor, Tensor] | Dataset[Any] | tuple[Dataset[Any], Iterable[int]]
)
"""A number of samples to take from the first training batch; or the samples: inputs `x`, `(x, y)`,
a dataset such as `Subset(dataset, indices)`, or `(dataset, indices)`."""

InputFn: TypeAlias = Callable[[Any], Any]
"""From a batch of the training loader to `x` or `(x, y)`."""

_INPUT_KEYS = (
    *("x", "input", "inputs", "image", "images", "img", "data", "features"),
    *("pixel_values", "input_ids", "input_values"),
)
_TARGET_KEYS = ("y", "label", "labels", "target", "targets")
_REMEDY = "Pass the probe itself, probe=(x, y), or input_fn=lambda batch: (x, y)."


class _DefaultCount(int):
    """A number of samples that nobody asked for: a smaller batch is nothing to warn about."""


DEFAULT_PROBE = _DefaultCount(64)
"""The number of samples where the caller names none."""


@dataclass(frozen=True)
class Probe:
    """Samples `x` [N, ...] and, where there are any, their targets `y` [N, ...].

    Attributes:
        x: The inputs.
        y: The targets, or None.
        why_none: Why there are no targets, for those who need them.
    """

    x: Tensor
    y: Tensor | None = None
    why_none: str = "the probe has no targets. Pass probe=(x, y)."

    def __post_init__(self) -> None:
        """Check the two against each other."""
        check_tensor("probe", self.x)
        if self.x.ndim == 0 or self.x.shape[0] == 0:
            raise value_error("probe", "at least one sample [N, ...]", self.x, _REMEDY)
        if self.y is not None:
            check_tensor("probe targets", self.y)
            if self.y.ndim == 0 or self.y.shape[0] != self.x.shape[0]:
                raise value_error(
                    "probe", f"(x, y) with {self.x.shape[0]} targets", self.y, _REMEDY
                )

    def first(self, n: int) -> Probe:
        """The first `n` samples, as copies that later writes to the batch do not reach.

        Targets that are bools become numbers: the labels 0 and 1, or one column per bool.
        """
        y = None if self.y is None else self.y[:n].detach().clone()
        if y is not None and y.dtype == torch.bool:
            y = y.long() if y.ndim == 1 else y.to(torch.get_default_dtype())
        return replace(self, x=self.x[:n].detach().clone(), y=y)

    def distinct(self) -> Probe:
        """Without samples that equal an earlier one: they would make every kernel singular."""
        kept = first_of_each(self.x)
        if len(kept) == self.x.shape[0]:
            return self
        y = None if self.y is None else self.y[kept]
        return replace(self, x=self.x[kept], y=y)

    def to(self, device: torch.device) -> Probe:
        """The same samples on `device`."""
        y = None if self.y is None else self.y.to(device)
        return replace(self, x=self.x.to(device), y=y)


def read_probe(name: str, probe: object, input_fn: InputFn | None = None) -> int | Probe:
    """A number of samples, or the probe itself, in which no sample repeats.

    Args:
        name: The argument's name.
        probe: What the caller gave.
        input_fn: From a batch, also one made from a dataset, to `x` or `(x, y)`.

    Raises:
        TypeError, ValueError: As `check_probe`.
    """
    is_pair = isinstance(probe, (tuple, list)) and len(probe) == 2
    try:
        if isinstance(probe, Dataset):
            found = _from_batch(batch_of(probe), input_fn)
        elif is_pair and isinstance(probe[0], Dataset):  # type: ignore[index]
            found = _from_batch(batch_of(*probe), input_fn)  # type: ignore[misc]
        else:
            checked = check_probe(probe)
            if not isinstance(checked, Probe):
                return checked
            found = checked
    except (TypeError, ValueError) as error:
        raise type(error)(str(error).replace("`probe", f"`{name}")) from error
    kept = found.distinct()
    left_out = found.x.shape[0] - kept.x.shape[0]
    if left_out:
        warnings.warn(
            f"{left_out} of the {found.x.shape[0]} samples of `{name}` equal an earlier one and "
            "are left out: they would make the kernel singular.",
            UserWarning,
            stacklevel=2,
        )
    return kept.first(kept.x.shape[0])


def check_probe(probe: object) -> int | Probe:
    """A number of samples, or the probe itself.

    Raises:
        TypeError: Neither an integer, a tensor nor a pair of tensors.
        ValueError: No samples, or another number of targets.
    """
    if isinstance(probe, Probe):
        return probe
    if isinstance(probe, Tensor):
        return Probe(probe).first(len(probe) if probe.ndim else 1)
    if isinstance(probe, (tuple, list)) and len(probe) == 2:
        x = check_tensor("probe[0]", probe[0])
        y = check_tensor("probe[1]", probe[1])
        return Probe(x, y).first(x.shape[0])
    if isinstance(probe, int) and not isinstance(probe, bool):
        return check_positive_int("probe", probe)
    raise type_error(
        "probe",
        "a number of samples, a tensor x, a pair (x, y) of tensors or a dataset",
        describe(probe),
        "Pass probe=64 to take them from the first training batch, or the samples as tensors.",
    )


def probe_from_batch(batch: Any, n: int, input_fn: InputFn | None = None) -> Probe:
    """The first `n` samples of a training batch that equal no earlier one.

    Understood are a tensor, a sequence that begins with the inputs (and goes on with the
    targets), and a mapping with one of the usual names; `input_fn` is for everything else. A
    batch with fewer samples gives a smaller probe, with a warning if `n` is the caller's choice.

    Without `input_fn`, the second entry of a sequence is not taken as targets if they could as
    well be something else: if there are more entries with one row per sample, as masks and
    second inputs have, or if it is of the inputs' own kind, as a second view or a reconstruction
    is.

    Raises:
        TypeError: The batch is of another form.
        ValueError: The batch is empty.
    """
    given = _from_batch(batch, input_fn)
    found = given.distinct()
    size = int(found.x.shape[0])
    kind = "" if size == given.x.shape[0] else " different ones"
    if size < n and not isinstance(n, _DefaultCount):
        warnings.warn(
            f"`probe` asks for {n} samples but the first training batch has {size}{kind}: the "
            f"probe has {size}. Pass probe={size}, or the samples themselves with probe=(x, y).",
            UserWarning,
            stacklevel=2,
        )
    return found.first(min(n, size))


def _from_batch(batch: Any, input_fn: InputFn | None) -> Probe:
    return _guess(batch) if input_fn is None else _pair(input_fn(batch))


def _guess(batch: Any) -> Probe:
    """The samples of a batch, with targets only where nothing else can be meant."""
    found = _pair(batch)
    if found.y is None or isinstance(batch, (Mapping, Probe)):
        return found
    x, y = found.x, found.y
    others = [e for e in batch[2:] if isinstance(e, Tensor) and _matching(x, e) is not None]
    if others:
        reason = f"which of the {len(batch)} entries of a batch are the targets cannot be told"
    # A single number per sample is more often a regression in one dimension.
    elif y.is_floating_point() and y.shape == x.shape and x[0].numel() > 1:
        reason = "the second entry of a batch has the inputs' shape, as a second view of them has"
    else:
        return found
    why = f"{reason}. Pass input_fn=lambda batch: (x, y), or probe=(x, y)."
    return Probe(x, None, why)


def _pair(batch: Any) -> Probe:
    if isinstance(batch, Probe):
        return batch
    if isinstance(batch, Tensor):
        return Probe(batch)
    if isinstance(batch, Mapping):
        x = next((batch[k] for k in _INPUT_KEYS if isinstance(batch.get(k), Tensor)), None)
        y = next((batch[k] for k in _TARGET_KEYS if isinstance(batch.get(k), Tensor)), None)
        if x is not None:
            return Probe(x, _matching(x, y))
        raise type_error(
            "probe",
            "taken from a batch with one of the keys " + ", ".join(_INPUT_KEYS),
            f"a batch with the keys {sorted(map(str, batch))}",
            _REMEDY,
        )
    if isinstance(batch, Sequence) and len(batch) and isinstance(batch[0], Tensor):
        y = batch[1] if len(batch) > 1 and isinstance(batch[1], Tensor) else None
        return Probe(batch[0], _matching(batch[0], y))
    raise type_error(
        "probe",
        "taken from a batch that is a tensor, (x, y) or a mapping of tensors",
        describe(batch),
        _REMEDY,
    )


def _matching(x: Tensor, y: Tensor | None) -> Tensor | None:
    """Targets only if there is one per sample: a batch may hold other things beside."""
    per_sample = y is not None and y.ndim > 0 and x.ndim > 0 and y.shape[0] == x.shape[0]
    return y if per_sample else None
