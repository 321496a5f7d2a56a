"""A batch of samples of any form: a tensor, or containers with tensors in them.

The engine goes over tensors, whose first axis is that of the samples; a model gets the caller's
kind of object back, with the tensors of a block of samples in it.
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
    """N samples; a block of them is a batch too.

    Attributes:
        tensors: Each `[N, ...]`.
        form: What the caller has put them in.
    """

    tensors: tuple[Tensor, ...]
    form: Form

    @staticmethod
    def of(name: str, value: object) -> Batch:
        """The batch that a caller gives as the argument `name`; its tensors are not copied.

        Raises:
            TypeError: There is no tensor in it, or it is a container that is not looked into.
            ValueError: A tensor has no first axis, or no samples, or another number of them.
        """
        form, tensors = _taken_apart(name, value)
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
                    else "Every tensor of a batch has the samples on its first axis. What belongs "
                    "to all samples is no part of it: use it in forward_fn=lambda model, batch: ….",
                )
        if len({len(t) for t in tensors}) > 1:
            numbers = ", ".join(f"{len(t)} in {path}" for path, t in named)
            raise value_error(
                name,
                "a batch whose tensors have the same number of samples on their first axis",
                numbers,
                "What belongs to all samples is no part of a batch: use it in "
                "forward_fn=lambda model, batch: …, or expand it to one row per sample. Of a batch "
                "that is one input, such as the nodes and edges of a graph: coupled=True.",
            )
        return found

    @staticmethod
    def coupled(name: str, value: object) -> Batch:
        """The tensors of a batch that is one input as a whole, of any shapes.

        Raises:
            TypeError: There is no tensor in it, or it is a container that is not looked into.
        """
        form, tensors = _taken_apart(name, value)
        if not tensors:
            raise _no_tensor(name, value)
        return Batch(tuple(tensors), form)

    def __len__(self) -> int:
        """The number of samples."""
        return len(self.tensors[0])

    def __getitem__(self, index: slice | Tensor) -> Batch:
        """Some of the samples: consecutive ones, or those of a mask or of indices."""
        return self.map(lambda t: t[index])

    def named(self, name: str) -> Iterator[tuple[str, Tensor]]:
        """The tensors, and the expressions by which the caller of an argument reaches them."""
        return zip(self.form.paths(name), self.tensors, strict=True)

    @property
    def value(self) -> Any:
        """The caller's kind of object with these tensors in it, newly made."""
        return self.form.put_together(iter(self.tensors))

    @property
    def floating(self) -> tuple[Tensor, ...]:
        """The tensors of floating-point numbers."""
        return tuple(t for t in self.tensors if t.is_floating_point())

    def with_tensors(self, tensors: Sequence[Tensor]) -> Batch:
        """Other tensors in the same form."""
        return Batch(tuple(tensors), self.form)

    def map(self, f: Callable[[Tensor], Tensor]) -> Batch:
        """`f` of every tensor."""
        return self.with_tensors([f(t) for t in self.tensors])

    def to(self, dtype: torch.dtype) -> Batch:
        """Floating-point tensors in another precision; integers, masks and indices as they are."""
        return self.map(lambda t: t.to(dtype) if t.is_floating_point() else t)

    def clone(self) -> Batch:
        """Copies of the tensors: a forward may write into them."""
        return self.map(torch.clone)

    def join(self, other: Batch) -> Batch:
        """The samples of both, of one kind, in their order."""
        pairs = zip(self.tensors, other.tensors, strict=True)
        return self.with_tensors([torch.cat(pair) for pair in pairs])

    def split(self, size: int) -> Iterator[Batch]:
        """Blocks of `size` consecutive samples; the last may be smaller."""
        return (self[a : a + size] for a in range(0, len(self), size))

    def samples(self) -> Iterator[Batch]:
        """Each sample, its tensors without their first axis."""
        return (self.map(lambda t, n=n: t[n]) for n in range(len(self)))  # type: ignore[misc]

    def vmap(self, f: Callable[[Batch], T]) -> T:
        """`f` of each sample (see `samples`) under `torch.func.vmap`.

        Where `f` decides by the values of a sample, those for which it decides alike go together.
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
        """Which samples `[N]` differ from the first one of `sample`."""
        pairs = zip(self.tensors, sample.tensors, strict=True)
        rows = [(t != s[:1]).reshape(len(self), -1).any(dim=1) for t, s in pairs]
        return torch.stack(rows).any(dim=0)

    def is_like(self, other: Batch) -> bool:
        """Whether its samples are of the same kind: containers, constants, dtypes and shapes."""
        return self.form.is_like(other.form) and all(
            a.dtype == b.dtype and a.shape[1:] == b.shape[1:]
            for a, b in zip(self.tensors, other.tensors, strict=True)
        )

    def check_finite(self, name: str, remedy: str) -> None:
        """Raise `ValueError` if there is NaN or infinity in it."""
        for path, t in self.named(name):
            if t.is_floating_point():
                check_finite(path, t, remedy)

    def __str__(self) -> str:
        """Its samples in words that follow "on", for an error message."""
        if isinstance(self.form, _Tensor):
            kind = str(self.tensors[0].dtype).removeprefix("torch.")
            return f"{kind} samples of shape {tuple(self.tensors[0].shape[1:])}"
        return f"samples {self.form.in_words(iter(self.tensors))}"


class Form:
    """Where tensors and other things are in what a caller gives."""

    def put_together(self, tensors: Iterator[Tensor]) -> Any:
        """The caller's kind of object."""
        raise NotImplementedError

    def paths(self, path: str) -> Iterator[str]:
        """For each tensor the expression by which the caller reaches it from `path`."""
        raise NotImplementedError

    def is_like(self, other: Form) -> bool:
        """Whether only the tensors may differ."""
        raise NotImplementedError

    def in_words(self, tensors: Iterator[Tensor]) -> str:
        """Its containers, and the dtypes and shapes of a sample."""
        raise NotImplementedError


@dataclass(frozen=True)
class _Tensor(Form):
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
    value: object

    def put_together(self, tensors: Iterator[Tensor]) -> Any:
        return self.value

    def paths(self, path: str) -> Iterator[str]:
        return iter(())

    def is_like(self, other: Form) -> bool:
        return isinstance(other, _Constant) and _are_equal(self.value, other.value)

    def in_words(self, tensors: Iterator[Tensor]) -> str:
        return describe(self.value)


@dataclass(frozen=True)
class _Container(Form):
    """A mapping, tuple, list or dataclass.

    Attributes:
        empty: A copy of it in which every part is None.
        keys: Of its parts: keys, indices or names of fields.
        parts: Their forms.
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

    def is_like(self, other: Form) -> bool:
        # Keys in another order are another form: a forward may go over the values of a mapping.
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
    """The first tensor that there is in a caller's batch, which nothing has checked yet."""
    if isinstance(value, Tensor):
        return value
    parts = _parts_of(value)
    found = (first_tensor(part) for part in (() if parts is None else parts.values()))
    return next((t for t in found if t is not None), None)


def _taken_apart(path: str, value: object) -> tuple[Form, list[Tensor]]:
    if isinstance(value, Tensor):
        return _Tensor(), [value]
    if isinstance(value, PackedSequence):
        raise type_error(
            path,
            "a batch whose tensors have the samples on their first axis",
            "a PackedSequence, whose tensors have none",
            "Pass the padded sequences and their lengths, and pack in the call: "
            "forward_fn=lambda model, batch: model(pack_padded_sequence(batch['x'], "
            "batch['lengths'], batch_first=True, enforce_sorted=False)).",
        )
    parts = _parts_of(value)
    if parts is None:
        return _Constant(value), []
    forms, tensors = [], []
    for key, part in parts.items():
        form, own = _taken_apart(f"{path}[{key!r}]", part)
        forms.append(form)
        tensors.extend(own)
    if not tensors and type(value) not in (dict, list):  # which a forward may write to
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
    """The parts of a container by their keys; None of anything else."""
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
    """A container of the kind of `like` with these parts."""
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
        else:  # of a dataclass, which may be frozen
            object.__setattr__(made, key, part)
    return made


def _are_equal(a: object, b: object) -> bool:
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
    """The error for what has no tensor in it."""
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
