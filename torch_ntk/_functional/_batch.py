"""A batch of samples of any form: a tensor, or containers with tensors in them.

The algorithms work on a list of tensors, whose first axis is that of the samples. The model is
called with an object of the caller's form, which contains the tensors of a block of samples.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence
from torch.utils._pytree import tree_map
from torch.utils.data import DataLoader, Dataset

from .._checks import check_finite, check_tensor, describe, type_error, value_error
from ._numbers_of_samples import SamplesDifferError, vmap_over_samples

T = TypeVar("T")


@dataclass(frozen=True)
class Batch:
    """N samples. A block of them is a `Batch`, too.

    Attributes:
        tensors: The tensors of the batch, each of shape `[N, ...]`.
        form: The containers and constants that surround the tensors in the caller's object.
    """

    tensors: tuple[Tensor, ...]
    form: Form

    @staticmethod
    def of(name: str, value: object) -> Batch:
        """Make a batch, without copies, of the value that a caller has passed as `name`.

        Raises an error if it contains no tensor or a container of an unknown kind, or if the
        tensors have no samples or different numbers of samples.
        """
        form, tensors = _form_and_tensors(name, value)
        found = Batch(tuple(tensors), form)
        named = list(found.named(name))
        if not named:
            raise _no_tensor(name, value)
        for path, t in named:
            check_tensor(path, t)
            if t.ndim == 0 or t.numel() == 0:
                raise value_error(
                    path,
                    "a batch [N, ...] of at least one sample",
                    t,
                    f"Put a batch dimension first, for example with {path}.unsqueeze(0)."
                    if len(named) == 1
                    else "Every tensor of a batch must have the samples on its first axis. Use "
                    "tensors that belong to all samples in forward_fn=lambda model, batch: ….",
                )
        if len({len(t) for t in tensors}) > 1:
            numbers = ", ".join(f"{len(t)} in {path}" for path, t in named)
            raise value_error(
                name,
                "a batch whose tensors have the same number of samples on their first axis",
                numbers,
                "Use tensors that belong to all samples in forward_fn=lambda model, batch: …, or "
                "expand them to one row per sample. If the batch is one input, such as the nodes "
                "and edges of a graph, pass coupled=True.",
            )
        return found

    @staticmethod
    def coupled(name: str, value: object) -> Batch:
        """Make a batch of a value that is one input as a whole; its tensors have any shapes."""
        form, tensors = _form_and_tensors(name, value)
        if not tensors:
            raise _no_tensor(name, value)
        return Batch(tuple(tensors), form)

    def __len__(self) -> int:
        """The number of samples."""
        return len(self.tensors[0])

    def __getitem__(self, index: slice | Tensor) -> Batch:
        """The batch of the samples that a slice, a mask or a tensor of indices selects."""
        return self.map(lambda t: t[index])

    def named(self, name: str) -> Iterator[tuple[str, Tensor]]:
        """Pairs of an expression such as `x['mask']`, by which a tensor is reached, and it."""
        return zip(self.form.paths(name), self.tensors, strict=True)

    @property
    def value(self) -> Any:
        """A new object of the caller's form that contains these tensors."""
        return self.form.put_together(iter(self.tensors))

    @property
    def floating(self) -> tuple[Tensor, ...]:
        """The tensors that have a floating-point dtype."""
        return tuple(t for t in self.tensors if t.is_floating_point())

    def with_tensors(self, tensors: Sequence[Tensor]) -> Batch:
        """A batch of the same form with other tensors, in the order of `tensors`."""
        return Batch(tuple(tensors), self.form)

    def map(self, f: Callable[[Tensor], Tensor]) -> Batch:
        """The batch whose tensors are `f(t)` for every tensor `t` of this one."""
        return self.with_tensors([f(t) for t in self.tensors])

    def to(self, dtype: torch.dtype) -> Batch:
        """The batch with floating-point tensors in `dtype`; other tensors keep their dtype."""
        return self.map(lambda t: t.to(dtype) if t.is_floating_point() else t)

    def clone(self) -> Batch:
        """A batch with copies of the tensors, which is needed as a forward may write into them."""
        return self.map(torch.clone)

    def join(self, other: Batch) -> Batch:
        """The samples of this batch followed by those of `other`, which must have the same form."""
        pairs = zip(self.tensors, other.tensors, strict=True)
        return self.with_tensors([torch.cat(pair) for pair in pairs])

    def split(self, size: int) -> Iterator[Batch]:
        """Batches of `size` consecutive samples. The last one may be smaller."""
        return (self[a : a + size] for a in range(0, len(self), size))

    def samples(self) -> Iterator[Batch]:
        """Every sample as a `Batch` whose tensors `[...]` have no axis of samples."""
        return (self.map(lambda t, n=n: t[n]) for n in range(len(self)))  # type: ignore[misc]

    def vmap(self, f: Callable[[Batch], T]) -> T:
        """Apply `f` to each sample (as in `samples`) with `torch.func.vmap` and stack the results.

        If `f` makes decisions by values of a sample, such as `if mask.all()`, vmap is applied to
        each group of samples that have the same values. The results are in the order of samples.
        """
        try:
            return vmap_over_samples(lambda sample: f(self.with_tensors(sample)), self.tensors)
        except SamplesDifferError as differ:
            kinds = differ.kinds
        groups = [(kinds == k).nonzero()[:, 0] for k in range(int(kinds.max()) + 1)]
        each = [self[group].vmap(f) for group in groups]
        order = torch.cat(groups).argsort()
        found: T = tree_map(lambda *parts: torch.cat(parts)[order], *each)
        return found

    def unlike(self, sample: Batch) -> Tensor:
        """A mask `[N]` of the samples that differ from the first sample of `sample`."""
        pairs = zip(self.tensors, sample.tensors, strict=True)
        rows = [(t != s[:1]).reshape(len(self), -1).any(dim=1) for t, s in pairs]
        return torch.stack(rows).any(dim=0)

    def is_like(self, other: Batch) -> bool:
        """Whether the samples of both have equal containers, constants, dtypes and shapes."""
        return self.form.is_like(other.form) and all(
            a.dtype == b.dtype and a.shape[1:] == b.shape[1:]
            for a, b in zip(self.tensors, other.tensors, strict=True)
        )

    def check_finite(self, name: str, remedy: str) -> None:
        """Raise a `ValueError` if a floating-point tensor has entries that are NaN or infinite."""
        for path, t in self.named(name):
            if t.is_floating_point():
                check_finite(path, t, remedy)

    def __str__(self) -> str:
        """A description of the samples for error messages, to be put after the word "on"."""
        if isinstance(self.form, _Tensor):
            kind = str(self.tensors[0].dtype).removeprefix("torch.")
            return f"{kind} samples of shape {tuple(self.tensors[0].shape[1:])}"
        return f"samples {self.form.in_words(iter(self.tensors))}"


class Form:
    """A caller's object without its tensors: its containers, and the values that are no tensors."""

    def put_together(self, tensors: Iterator[Tensor]) -> Any:
        """Make an object of this form, taking its tensors from the iterator."""
        raise NotImplementedError

    def paths(self, path: str) -> Iterator[str]:
        """Expressions such as `path['x'][0]` by which the caller reaches the tensors, in order."""
        raise NotImplementedError

    def constants(self) -> Iterator[object]:
        """The values that are no tensors."""
        return iter(())

    def is_like(self, other: Form) -> bool:
        """Whether both forms have the same containers, keys and constants."""
        raise NotImplementedError

    def in_words(self, tensors: Iterator[Tensor]) -> str:
        """A text with the containers, and with dtype and shape of one sample of every tensor."""
        raise NotImplementedError


@dataclass(frozen=True)
class _Tensor(Form):
    """The form of a single tensor."""

    def put_together(self, tensors: Iterator[Tensor]) -> Any:
        return next(tensors)

    def paths(self, path: str) -> Iterator[str]:
        yield path

    def is_like(self, other: Form) -> bool:
        return isinstance(other, _Tensor)

    def in_words(self, tensors: Iterator[Tensor]) -> str:
        t = next(tensors)
        return f"{str(t.dtype).removeprefix('torch.')} {tuple(t.shape[1:])}"


@dataclass(frozen=True)
class _Constant(Form):
    """The form of a value without tensors, which every block of samples gets as it is."""

    value: object

    def put_together(self, tensors: Iterator[Tensor]) -> Any:
        return self.value

    def paths(self, path: str) -> Iterator[str]:
        return iter(())

    def constants(self) -> Iterator[object]:
        yield self.value

    def is_like(self, other: Form) -> bool:
        return isinstance(other, _Constant) and _are_equal(self.value, other.value)

    def in_words(self, tensors: Iterator[Tensor]) -> str:
        return describe(self.value)


@dataclass(frozen=True)
class _Container(Form):
    """The form of a mapping, tuple, list or dataclass.

    Attributes:
        empty: A copy of the container in which every part is None.
        keys: The keys of a mapping, the indices of a sequence, or the names of fields.
        parts: The form of the part for each key.
    """

    empty: Any
    keys: tuple[Any, ...]
    parts: tuple[Form, ...]

    def put_together(self, tensors: Iterator[Tensor]) -> Any:
        parts = [part.put_together(tensors) for part in self.parts]
        return _filled(self.empty, self.keys, parts)

    def paths(self, path: str) -> Iterator[str]:
        is_dataclass = not isinstance(self.empty, (Mapping, tuple, list))
        for key, part in zip(self.keys, self.parts, strict=True):
            yield from part.paths(f"{path}.{key}" if is_dataclass else f"{path}[{key!r}]")

    def constants(self) -> Iterator[object]:
        for part in self.parts:
            yield from part.constants()

    def is_like(self, other: Form) -> bool:
        # The order of keys matters, as a forward may iterate over the values of a mapping.
        return (
            isinstance(other, _Container)
            and type(self.empty) is type(other.empty)
            and self.keys == other.keys
            and all(a.is_like(b) for a, b in zip(self.parts, other.parts, strict=True))
        )

    def in_words(self, tensors: Iterator[Tensor]) -> str:
        words = [part.in_words(tensors) for part in self.parts]
        if isinstance(self.empty, (tuple, list)):
            listed = ", ".join(words)
            return f"({listed})" if isinstance(self.empty, tuple) else f"[{listed}]"
        inner = ", ".join(f"{k!r}: {w}" for k, w in zip(self.keys, words, strict=True))
        is_plain = type(self.empty) is dict
        return f"{{{inner}}}" if is_plain else f"{type(self.empty).__name__}({inner})"


def first_tensor(value: object) -> Tensor | None:
    """The first tensor in a caller's batch that has not been checked yet, or None."""
    if isinstance(value, Tensor):
        return value
    parts = _parts_of(value)
    found = (first_tensor(part) for part in (() if parts is None else parts.values()))
    return next((t for t in found if t is not None), None)


def _form_and_tensors(path: str, value: object) -> tuple[Form, list[Tensor]]:
    """The form of a caller's object and the tensors in it, in the order of the form's `paths`.

    `path` is the expression by which the caller reaches the object, for error messages.
    """
    if isinstance(value, Tensor):
        return _Tensor(), [value]
    if isinstance(value, PackedSequence):
        raise type_error(
            path,
            "a batch whose tensors have the samples on their first axis",
            "a PackedSequence, whose tensors do not",
            "Pass the padded sequences and their lengths, and pack in the call: "
            "forward_fn=lambda model, batch: model(pack_padded_sequence(batch['x'], "
            "batch['lengths'], batch_first=True, enforce_sorted=False)).",
        )
    parts = _parts_of(value)
    if parts is None:
        return _Constant(value), []
    forms, tensors = [], []
    for key, part in parts.items():
        form, own = _form_and_tensors(f"{path}[{key!r}]", part)
        forms.append(form)
        tensors.extend(own)
    # A dict or list is made anew for each call even without tensors: a forward may write to it.
    if not tensors and type(value) not in (dict, list):
        return _Constant(value), []
    keys = tuple(parts)
    try:
        empty = _filled(value, keys, [None] * len(keys))
    except Exception as error:  # anything that a user's container may raise
        raise type_error(
            path,
            "a container that can be made again with other tensors",
            f"{describe(value)}, where this fails with {type(error).__name__}: {error}",
            "Pass a dict, a tuple, a list or a dataclass.",
        ) from error
    return _Container(empty, keys, tuple(forms)), tensors


def _parts_of(value: object) -> dict[Any, object] | None:
    """The parts of a container by their keys, or None if `value` is no container."""
    if isinstance(value, Mapping):
        return {key: value[key] for key in value}
    if type(value) is list or (
        isinstance(value, tuple) and (type(value) is tuple or hasattr(value, "_make"))
    ):
        return dict(enumerate(value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: getattr(value, f.name, None) for f in dataclasses.fields(value)}
    return None


def _filled(like: Any, keys: Sequence[Any], parts: Sequence[Any]) -> Any:
    """A container of the same type as `like` that has the given parts at the given keys."""
    if type(like) in (tuple, list):
        return type(like)(parts)
    if isinstance(like, tuple):
        return like._make(parts)  # type: ignore[attr-defined]
    if type(like) is dict:
        return dict(zip(keys, parts, strict=True))
    if isinstance(like, Mapping) and not isinstance(like, MutableMapping):
        return type(like)(dict(zip(keys, parts, strict=True)))  # type: ignore[call-arg]
    made = copy.copy(like)
    for key, part in zip(keys, parts, strict=True):
        if isinstance(like, Mapping):
            made[key] = part
        else:  # a field of a dataclass, which may be frozen
            object.__setattr__(made, key, part)
    return made


def _are_equal(a: object, b: object) -> bool:
    """Whether two constants of batches are equal; constants that cannot be compared are not."""
    if a is b:
        return True
    if type(a) is not type(b):
        return False
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return np.array_equal(a, b)
    try:
        return bool(a == b)
    except Exception:  # anything that a user's class may raise
        return False


def _no_tensor(name: str, value: object) -> Exception:
    """The error for a batch that contains no tensor, with a remedy for its type."""
    remedy = "Convert it with torch.as_tensor(...)."
    if _parts_of(value) is not None:
        return type_error(
            name,
            "a torch.Tensor, or a mapping, tuple, list or dataclass with tensors in it",
            f"{describe(value)} without a tensor",
            "Convert its arrays and numbers with torch.as_tensor(...).",
        )
    attributes = getattr(value, "__dict__", {}).values()
    if hasattr(value, "to_dict") or any(isinstance(v, Tensor) for v in attributes):
        remedy = (
            "Pass its tensors as a dict, {'x': data.x, ...}, and say by forward_fn what to do; "
            "each has the samples on its first axis, except with coupled=True."
        )
    if isinstance(value, (DataLoader, Dataset)):
        remedy = "Pass one of its batches: next(iter(DataLoader(dataset, batch_size=64)))."
    return type_error(name, "a torch.Tensor", describe(value), remedy)
