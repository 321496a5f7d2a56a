"""Repeated calls of `empirical_ntk` for one module, as during a training.

The third call of one form records its operations, and all further calls execute only these. As in
every call, the result is compared with a plain pass of the user's own module. If it differs,
because the module has become another function, the call is computed as if it were the first.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from types import CellType, FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from .._checks import ArgumentError
from .._functional import Batch, ModelFunction, has_forward_hooks
from .._types import ForwardFn
from ..memory import budget, is_out_of_memory
from ._cuda_graph import CudaGraph
from ._job import KernelJob
from ._parts import Kernels
from ._precondition import Precondition
from ._recorder import NotRecordedError, Recorder, Recording
from .checksum import BlockForm, MismatchError
from .inspect import Inspection

# Recording takes up to as long as a call, of which every further one saves a tenth to a third. Who
# calls twice, as for two sets of samples of one shape, does not pay for it.
_BEFORE = 2
# The number of forms of calls that are stored for a module; the least recently used one is removed.
_FORMS = 8
# Attributes of a module that are compared in another way.
_TENSORS = ("_parameters", "_buffers", "_modules")
_PLAIN = frozenset((int, float, complex, bool, str, bytes, type(None), torch.dtype, torch.device))
_CONTAINERS = (list, tuple, set, frozenset)


class ChangedError(Exception):
    """The recorded operations differ from those that the call needs."""


class _InDoubleError(Exception):
    """A comparison in float64 is needed, for which there is no recording."""


@dataclass
class _Known:
    """The data that are stored for calls of one form.

    Attributes:
        batches: Batches of this form, without samples.
        calls: The number of calls so far.
        keys: The keys of the kernels.
        forward: The shapes and costs of the forward pass.
        recording: The operations, which return the kernels and the numbers of the checks.
        blocks: The checks.
        is_refused: Whether the operations cannot be recorded.
    """

    batches: tuple[Batch, ...]
    calls: int = 0
    keys: tuple[str, ...] = ()
    forward: Inspection | None = None
    recording: Recording | CudaGraph | None = None
    blocks: tuple[BlockForm, ...] = ()
    is_refused: bool = False


_of_modules: dict[int, tuple[weakref.ref[nn.Module], OrderedDict[Hashable, _Known]]] = {}
"""The stored data, by the `id` of a module and by the form of the call."""


class Repetition:
    """A call, and the data from earlier calls of the same form.

    `settings` are the other arguments that determine which operations are executed.
    """

    def __init__(
        self,
        fn: ModelFunction,
        x1: Batch,
        x2: Batch | None,
        scales: Precondition,
        forward_fn: ForwardFn | None,
        settings: tuple[Hashable, ...],
    ) -> None:
        self._known: _Known | None = None
        batches = (x1,) if x2 is None else (x1, x2)
        module = fn.module
        constants = [value for batch in batches for value in batch.form.constants()]
        if module is None or has_forward_hooks(module) or {*map(type, constants)} - _PLAIN:
            return
        forms = _forms(module)
        key = (settings, _of_callable(forward_fn), _form(fn, module, batches, scales))
        known = forms.get(key)
        if known is None or not all(
            a.form.is_like(b.form) for a, b in zip(known.batches, batches, strict=True)
        ):
            known = forms[key] = _Known(tuple(b.with_tensors(()) for b in batches))
            while len(forms) > _FORMS:
                forms.popitem(last=False)
        forms.move_to_end(key)
        known.calls += 1
        self._known = known

    @property
    def forward(self) -> Inspection | None:
        """The shapes and costs of the forward pass, if there is a recording; else None."""
        known = self._known
        return None if known is None or known.recording is None else known.forward

    def kernels(
        self, job: KernelJob, forward: Inspection, compute: Callable[[], Kernels]
    ) -> Kernels:
        """Return the kernels of the call; `compute` computes them without a recording.

        `ChangedError` is raised if the recorded operations give other kernels, or need more memory
        than there is now.
        """
        known = self._known
        if known is None or known.is_refused or known.calls <= _BEFORE:
            return compute()
        if known.recording is None:
            known.forward = forward
            return _recorded(known, job, compute)
        if known.recording.peak > budget(job.fn.device):
            raise ChangedError
        found = _repeated(known, known.recording, job)
        if found is None:
            known.recording, known.is_refused = None, True
            raise ChangedError
        return found


def _recorded(known: _Known, job: KernelJob, compute: Callable[[], Kernels]) -> Kernels:
    """Compute the kernels, and store a recording of the operations if there can be one."""
    known.is_refused = True
    if job.parts or job.forward.keeps_hooks:
        return compute()
    inputs = _inputs(job)
    recorder = Recorder(inputs)
    try:
        with recorder:
            kernels = compute()
    except NotRecordedError:
        return compute()
    checks = recorder.noted
    numbers = [t for check in checks for t in check.tensors(job.check)]
    recording = recorder.recording([*kernels.values(), *numbers])
    if recording is not None and checks:
        known.keys, known.blocks = tuple(kernels), tuple(check.form(job.check) for check in checks)
        is_on_gpu = job.fn.device.type == "cuda"
        known.recording = CudaGraph.of(recording, inputs) if is_on_gpu else recording
        known.is_refused = False
    return kernels


def _repeated(known: _Known, recording: Recording | CudaGraph, job: KernelJob) -> Kernels | None:
    """Return the kernels from the recorded operations; None if these are not right."""
    found, conditions = recording(_inputs(job))
    if conditions and tuple(torch.stack(conditions).tolist()) != recording.decided:
        return None
    kernels = dict(zip(known.keys, found, strict=False))
    numbers = found[len(kernels) :]
    for block in known.blocks:
        check = block.filled(job, numbers[: block.size])
        numbers = numbers[block.size :]
        try:
            if not job.check and not check.has_equal_outputs():
                return None
            if job.check:
                check.verify(_in_double)
        except (MismatchError, _InDoubleError):
            return None
        except (ArgumentError, RuntimeError) as error:
            if is_out_of_memory(error):
                raise
            return None  # the first pass of a new call reports it
    job.advance(len(job.x1))
    return kernels


def _in_double() -> Any:
    raise _InDoubleError


def _inputs(job: KernelJob) -> list[Tensor]:
    """Return all tensors whose values may differ in the next call."""
    fn, roots = job.fn, job.precondition.roots.values()
    tensors = [*fn.params.values(), *fn.fixed.values(), *job.x1.tensors]
    if job.x2 is not None:
        tensors += job.x2.tensors
    return tensors + [root for root in roots if isinstance(root, Tensor)]


def _forms(module: nn.Module) -> OrderedDict[Hashable, _Known]:
    """Return the data that are stored for a module, by the form of the call."""
    number = id(module)
    known = _of_modules.get(number)
    if known is not None and known[0]() is module:
        return known[1]
    forms: OrderedDict[Hashable, _Known] = OrderedDict()

    def forget(gone: weakref.ref[nn.Module]) -> None:
        if number in _of_modules and _of_modules[number][0] is gone:
            del _of_modules[number]

    _of_modules[number] = weakref.ref(module, forget), forms
    return forms


def _form(
    fn: ModelFunction, module: nn.Module, batches: Sequence[Batch], scales: Precondition
) -> Hashable:
    """Return everything, except values of tensors, that determines which operations are executed.

    A change that is not visible here, such as that of a number in a closure, changes outputs or
    gradients, which are compared.
    """
    samples = [t for batch in batches for t in batch.tensors]
    return (
        (fn.dtype, fn.products, fn.result_dtype, fn.device),
        *(
            tuple((name, t.shape, t.stride(), t.dtype) for name, t in tensors.items())
            for tensors in (fn.params, fn.fixed)
        ),
        tuple((t.shape, t.stride(), t.dtype) for t in samples),
        tuple(
            (n, (r.shape, r.stride(), r.dtype) if isinstance(r, Tensor) else r)
            for n, r in scales.roots.items()
        ),
        tuple((name, type(m), _attributes(m)) for name, m in module.named_modules()),
        (torch.get_num_threads(), torch.get_default_dtype(), torch.backends.mkldnn.enabled),
        torch.are_deterministic_algorithms_enabled(),
    )


def _attributes(module: nn.Module) -> Hashable:
    """Return the attributes of a module except its tensors and submodules."""
    own = vars(module)
    return tuple(own), tuple([_value(v) for k, v in own.items() if k not in _TENSORS])


def _of_callable(f: Callable[..., Any] | None) -> Hashable:
    """Return the code of a function and its captured values, or the id of another callable."""
    if isinstance(f, FunctionType):
        captured = tuple([_captured(cell) for cell in f.__closure__ or ()])
        return f.__code__, captured, _value(f.__defaults__), _value(f.__kwdefaults__)
    return None if f is None else id(f)


def _captured(cell: CellType) -> Hashable:
    """Return the value of a captured variable as `_value` does, or None if it has none."""
    try:
        return _value(cell.cell_contents)
    except ValueError:  # the variable is not assigned, or is deleted
        return None


def _value(value: Any) -> Hashable:
    """Return plain values themselves, and the ids of other objects."""
    if value.__class__ in _PLAIN:
        return value  # type: ignore[no-any-return]
    if isinstance(value, dict):
        return tuple([(k if k.__class__ in _PLAIN else id(k), id(v)) for k, v in value.items()])
    if isinstance(value, _CONTAINERS):
        return tuple([v if v.__class__ in _PLAIN else id(v) for v in value])
    return id(value)
