"""`Reader`: which parts of a training batch are inputs of the network, and which are targets."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, is_dataclass, replace
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from ..._checks import ArgumentError, describe, type_error
from ..._functional import Batch, call_model, evaluating_on, tensor_of, unwrap
from ..._types import ForwardFn
from ._probe import REMEDY, InputFn, Probe, _DefaultCount, coupled_probe, has_tensors

_INPUT_KEYS = (
    *("x", "input", "inputs", "image", "images", "img", "data", "features"),
    *("pixel_values", "input_ids", "input_values"),
)
_FORMS = "taken from a batch that is a tensor, (x, y) or a mapping of tensors"
_TARGET_KEYS = ("y", "label", "labels", "target", "targets")
_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


@dataclass(frozen=True)
class _Arguments:
    """The arguments of a forward.

    Attributes:
        text: The signature as a text.
        positional: The names of the positional arguments in their order.
        required: The number of positional arguments without a default.
        names: The names of the arguments that can be passed by name.
        needed: Those of these names that have no default.
        any_name: Whether the forward has `**kwargs`.
        next_may_be_tensor: Whether the first positional argument after the required ones has the
            default None, so that it may be a tensor such as a mask or lengths.
    """

    text: str
    positional: tuple[str, ...] = ()
    required: int = 1
    names: frozenset[str] = frozenset()
    needed: tuple[str, ...] = ()
    any_name: bool = False
    next_may_be_tensor: bool = False

    @staticmethod
    def of(module: nn.Module) -> _Arguments | None:
        """The arguments of a module's forward, or None if Python does not know its signature.

        If the forward has only `*args` or `**kwargs`, and the module has one submodule with
        parameters, they are assumed to be the arguments of that submodule.
        """
        try:
            signature = inspect.signature(unwrap(module).forward)
        except (TypeError, ValueError):
            return None
        every = list(signature.parameters.values())
        positional = [p for p in every if p.kind in _POSITIONAL]
        named = [p for p in every if p.kind in _NAMED]
        if not named and not positional:
            parts = [m for m in module.children() if next(m.parameters(), None) is not None]
            return _Arguments.of(parts[0]) if len(parts) == 1 else None
        required = sum(p.default is p.empty for p in positional)
        after = positional[max(1, required) :]
        return _Arguments(
            str(signature),
            tuple(p.name for p in positional),
            required,
            frozenset(p.name for p in named),
            tuple(p.name for p in named if p.default is p.empty),
            any(p.kind is p.VAR_KEYWORD for p in every),
            bool(after) and after[0].default is None and after[0].name not in _TARGET_KEYS,
        )


@dataclass(frozen=True)
class Reader:
    """Finds the inputs and targets in a batch by the arguments of the network's forward.

    Without a network and `forward_fn`, a tensor is the inputs, the first entry of a sequence is the
    inputs, and the inputs in a mapping are the entry with a usual name. Otherwise:

    - The inputs in a sequence are as many entries as the forward requires: one entry of `(x, y)`
      for `forward(x)`, and two of `(x, lengths, y)` for `forward(x, lengths)`. The next entry is
      the targets, unless it may be an optional argument. For `forward(x, mask=None)` this is
      decided by calling the network with it.
    - The inputs in a mapping are the keys that the forward names, or all keys if it has `**kwargs`.
      Targets with usual names are left out if the network works without them.
    - If the forward names none of its keys, the mapping is passed as one argument. If that does not
      work, the inputs are the entry with a usual name.

    Attributes:
        network: The module to measure, or None.
        forward_fn: A function that replaces the call of the network, or None. It gets a mapping
            with all of its keys.
        input_fn: A function of a batch that returns the inputs in the form that the network
            accepts, or `(x, y)`; or None.
        coupled: Whether a batch is one input, and the samples are the rows of its outputs. The
            inputs are then the whole batch, without keys of a mapping that the forward does not
            name.
    """

    network: nn.Module | None = None
    forward_fn: ForwardFn | None = None
    input_fn: InputFn | None = None
    coupled: bool = False

    def read(self, batch: Any) -> Probe:
        """The samples of a batch, with their targets.

        Raises:
            TypeError: The inputs cannot be determined. The message says what to pass.
            ValueError: The batch is empty.
        """
        if self.coupled:
            return self._coupled(batch)
        if isinstance(batch, Probe):
            return batch
        if self.input_fn is None:
            return self._of(batch)
        found = self.input_fn(batch)
        if not (isinstance(found, (tuple, list)) and len(found) == 2):
            return self._of(found)
        x, y = found
        is_input = isinstance(x, Tensor) and self._arguments is not None
        if is_input and self._arguments.required == 2 and self.forward_fn is None:  # type: ignore[union-attr]
            return Probe(tuple(found))
        if y is None or isinstance(y, Tensor):
            return self.fit(Probe(x, y))
        return Probe(found)

    def first_of(self, batch: Any, n: int) -> Probe:
        """The first `n` different samples of a training batch.

        If the batch has fewer, the probe is smaller, with a warning if the user has chosen `n`. A
        coupled batch is used as a whole.
        """
        given = self.read(batch)
        if self.coupled:
            return given.first(n)
        found = given.distinct()
        size = len(found)
        kind = "" if size == len(given) else " different ones"
        if size < n and not isinstance(n, _DefaultCount):
            warnings.warn(
                f"`probe` asks for {n} samples but the first training batch has {size}{kind}: "
                f"the probe has {size}. Pass probe={size}, or the samples themselves with "
                "probe=(x, y).",
                UserWarning,
                stacklevel=2,
            )
        return replace(found.first(min(n, size)), batch_size=len(given))

    def _coupled(self, batch: Any) -> Probe:
        """`read` for a batch that is one input."""
        if self.input_fn is not None and not isinstance(batch, Probe):
            return coupled_probe("probe", self.input_fn(batch))
        found = batch if isinstance(batch, Probe) else Probe(batch, coupled=True)
        found, arguments = coupled_probe("probe", found), self._arguments
        if self.forward_fn is not None or arguments is None or arguments.any_name:
            return found
        if not isinstance(found.x, Mapping):
            return found
        named = {k: v for k, v in found.x.items() if k in arguments.names}
        return replace(found, x=named) if named else found

    def fit(self, given: Probe) -> Probe:
        """The samples that a user has passed as `x` or `(x, y)`, in the form for the network."""
        if self.coupled:
            return self._coupled(given)
        x, arguments = given.x, self._arguments
        if arguments is None or self.forward_fn is not None:
            return given
        if arguments.required == 2 and isinstance(x, Tensor) and given.y is not None:
            return Probe((x, given.y), why_none=given.why_none)
        if isinstance(x, Mapping) and not arguments.any_name:
            named = arguments.names & {str(key) for key in x}
            return given if named else replace(given, as_one=True)
        return given

    # ------------------------------------------------------------------ forms
    def _of(self, batch: Any) -> Probe:
        """`read` for a batch that is not a probe and to which `input_fn` has been applied."""
        if isinstance(batch, Tensor):
            self._check_number((batch,), batch)
            return Probe(batch)
        if isinstance(batch, Mapping):
            return self._of_mapping(batch)
        if isinstance(batch, Sequence) and not isinstance(batch, (str, bytes)) and len(batch):
            return self._of_sequence(batch)
        if is_dataclass(batch) and not isinstance(batch, type) and has_tensors(batch):
            found = Probe(batch)
            targets = (getattr(batch, name, None) for name in _TARGET_KEYS)
            return _with_targets(found, next((t for t in targets if isinstance(t, Tensor)), None))
        raise type_error("probe", _FORMS, describe(batch), REMEDY)

    def _of_sequence(self, batch: Sequence[Any]) -> Probe:
        """The samples of a tuple or list whose first entries are the inputs."""
        arguments = self._arguments
        count = 1 if arguments is None else max(1, arguments.required)
        is_named = isinstance(batch[0], Mapping) and arguments is not None
        if is_named and any(k in arguments.names for k in batch[0]):  # type: ignore[union-attr]
            count = 1  # the mapping contains all inputs
        inputs, rest = tuple(batch[:count]), list(batch[count:])
        if not isinstance(batch[0], Mapping):
            self._check_number(inputs, batch)
        found = self._of_first(batch) if count == 1 else Probe(inputs)
        n = len(found)
        beside = [e for e in rest if _matching(n, e) is not None]
        if found.y is not None or not beside:
            return found
        if arguments is not None and self._may_be_input(found, (*inputs, rest[0])):
            name = arguments.positional[count]
            raise self._refused(
                batch,
                f"entry {count} may be `{name}` of its forward{arguments.text}, or targets",
                f"input_fn=lambda batch: ({_listed(count)}, batch[{count}]) if it is targets, and "
                f"input_fn=lambda batch: ({_listed(count + 1)}, None) if it is `{name}`",
            )
        x, y = found.x, beside[0]
        if len(beside) > 1:
            reason = f"which of the {len(batch)} entries of a batch are the targets cannot be told"
            return replace(found, why_none=_why(reason))
        if rest[0] is not y:  # another entry lies between inputs and `y`
            return found
        # A single number per sample is assumed to be a target of a regression in one dimension.
        is_like = count == 1 and isinstance(x, Tensor) and y.is_floating_point()
        if is_like and y.shape == x.shape and x[0].numel() > 1:
            reason = "the second entry of a batch has the inputs' shape, as a second view has"
            if arguments is not None and self.forward_fn is None and self.input_fn is None:
                raise self._refused(
                    batch,
                    "the second entry has the shape of the first, as a second view of the inputs "
                    "has, or what is to be reconstructed",
                    "input_fn=lambda batch: batch[0] if it is a view, and "
                    "input_fn=lambda batch: (batch[0], batch[1]) if it is targets",
                )
            return replace(found, why_none=_why(reason))
        return replace(found, y=y)

    def _may_be_input(self, found: Probe, longer: tuple[Any, ...]) -> bool:
        """Whether the next entry of a sequence may be an optional argument such as a mask.

        It is not if the network works without the entry, as `found`, and fails with it, as
        `longer`, which it usually does if class labels are passed as a mask.
        """
        arguments = self._arguments
        if arguments is None or not arguments.next_may_be_tensor or self.forward_fn is not None:
            return False
        return self._runs(Probe(longer)) or not self._runs(found)

    def _of_first(self, batch: Sequence[Any]) -> Probe:
        """The samples of a sequence whose first entry contains all inputs."""
        x = batch[0]
        if isinstance(x, Tensor):
            return Probe(x)
        if isinstance(x, Mapping) and self.network is not None:
            return self._of_mapping(x)
        if self.forward_fn is not None and has_tensors(x):
            return Probe(x)
        if self.network is None or not has_tensors(batch):
            raise type_error("probe", _FORMS, describe(batch), REMEDY)
        raise self._refused(batch, f"its first entry is {describe(x)}", self._working(batch))

    def _of_mapping(self, batch: Mapping[Any, Any]) -> Probe:
        """The samples of a mapping, some of whose entries are the inputs."""
        arguments = self._arguments
        usual = next((batch[k] for k in _INPUT_KEYS if isinstance(batch.get(k), Tensor)), None)
        y = next((batch[k] for k in _TARGET_KEYS if isinstance(batch.get(k), Tensor)), None)
        if self.forward_fn is not None and has_tensors(batch):
            whole = _with_targets(Probe(batch, as_one=True), y)
            if usual is None or self._runs(whole) or not self._runs(Probe(usual)):
                return whole
        elif arguments is not None:
            named = [k for k in batch if k in arguments.names or arguments.any_name]
            missing = [n for n in arguments.needed if n not in batch]
            inputs = {k: batch[k] for k in named if k not in _TARGET_KEYS or k in arguments.needed}
            if has_tensors(inputs) and not missing:
                whole = Probe({k: batch[k] for k in named})
                # In an encoder-decoder model the inputs of the decoder are made from the targets.
                if len(whole.x) > len(inputs) and not self._runs(Probe(inputs)):
                    inputs = whole.x if self._runs(whole) else inputs
                return _with_targets(Probe(inputs), y)
            if any(k in arguments.names for k in inputs):
                raise self._refused(
                    batch,
                    f"its forward{arguments.text} requires {missing}, and there are the keys "
                    f"{sorted(map(str, batch))}",
                    "input_fn=lambda batch: {"
                    + ", ".join(f"{n!r}: batch[...]" for n in arguments.needed)
                    + "}",
                )
            if has_tensors(batch) and arguments.required <= 1:
                whole = _with_targets(Probe(batch, as_one=True), y)
                if self._runs(whole):
                    return whole
        if usual is not None:
            return _with_targets(Probe(usual), y)
        keys = sorted(map(str, batch))
        if self.network is not None and has_tensors(batch):
            raise self._refused(batch, f"there are the keys {keys}", self._working(batch))
        raise type_error(
            "probe",
            "taken from a batch with one of the keys " + ", ".join(_INPUT_KEYS),
            f"a batch with the keys {keys}",
            REMEDY,
        )

    # ------------------------------------------------------------------ the network
    @cached_property
    def _arguments(self) -> _Arguments | None:
        """The arguments of the network's forward, or None if they are not known."""
        return None if self.network is None else _Arguments.of(self.network)

    def _check_number(self, inputs: tuple[Any, ...], batch: Any) -> None:
        """Raise a `TypeError` if the forward requires more arguments than there are inputs."""
        arguments = self._arguments
        if arguments is None or self.forward_fn is not None or arguments.required <= len(inputs):
            return
        wanted = arguments.positional[: arguments.required]
        first = "batch" if isinstance(batch, Tensor) else "batch[0]"
        listed = ", ".join([first, *(f"<{name}>" for name in wanted[1:])])
        raise self._refused(
            batch,
            f"its forward{arguments.text} requires {len(wanted)} arguments",
            f"input_fn=lambda batch: (({listed}), None)",
        )

    def _runs(self, probe: Probe) -> bool:
        """Whether the network can be evaluated on the first three samples, without side effects."""
        network = self.network
        if network is None:
            return True
        first = next(network.parameters(), None)
        probe = probe.first(3)
        probe = probe if first is None else probe.to(first.device)
        call = self.forward_fn
        if call is None and probe.as_one:
            call = lambda network, batch: network(batch)  # noqa: E731
        try:
            with evaluating_on(network, probe.x, call):
                out = call_model(unwrap(network), probe.x, call)
                tensor_of(out, probe.batch, len(probe), self.forward_fn)
        except Exception:  # anything that a user's forward may raise
            return False
        return True

    def _working(self, batch: Any) -> str:
        """The text of an `input_fn` that selects a tensor for which the network works.

        If the network works with none of the tensors in the batch, it is the first one.
        """
        named = list(Batch.coupled("batch", batch).named("batch"))
        usable = [(path, t) for path, t in named if t.ndim > 0 and len(t) > 0]
        works = [path for path, t in usable if self._runs(Probe(t))]
        path = next(iter([*works, *(path for path, _ in named)]))
        has_targets = isinstance(batch, Sequence) and len(batch) == 2
        is_pair = has_targets and isinstance(batch[1], Tensor) and path != "batch[1]"
        return f"input_fn=lambda batch: {f'({path}, batch[1])' if is_pair else path}"

    def _refused(self, batch: Any, came: str, argument: str) -> ArgumentError:
        """The error for a batch whose inputs cannot be determined, with the argument to pass."""
        return type_error(
            "probe",
            "taken from a batch of which it is clear what the network takes",
            f"{describe(batch)}: {came}",
            f"Pass {argument}.",
        )


def _with_targets(found: Probe, y: Tensor | None) -> Probe:
    """The probe with targets, if there is one for each sample."""
    return replace(found, y=_matching(len(found), y))


def _matching(n: int, y: object) -> Tensor | None:
    """`y` if it is a tensor with one entry per sample, else None."""
    return y if isinstance(y, Tensor) and y.ndim > 0 and y.shape[0] == n else None


def _listed(count: int) -> str:
    """The expression for the first `count` entries of a batch."""
    if count == 1:
        return "batch[0]"
    return "(" + ", ".join(f"batch[{k}]" for k in range(count)) + ")"


def _why(reason: str) -> str:
    """The reason why a probe has no targets, with the remedy."""
    return f"{reason}. Pass input_fn=lambda batch: (x, y), or probe=(x, y)."
