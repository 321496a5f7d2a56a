"""A context in which a module is evaluated without side effects."""

from __future__ import annotations

import contextlib
import random
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ._agree import agree
from ._forward_mode import forward_mode
from ._hooks import ReturnRecorder, UserHooks
from ._replaced import autocast_off_inside, checkpoints_passed_over
from ._state import PythonState, hidden_modules
from ._unwrap import is_script, unwrap

# Training flags belong to the module, and autocast, settings of backends and the stance of
# torch.compile to the process. Of two evaluations at the same time, one would restore the values
# that the other one had set.
_one_at_a_time = threading.RLock()
_states: dict[int, PythonState] = {}
"""The state at the beginning of an evaluation, by the `id` of the module that is evaluated."""
_hooks: dict[int, UserHooks] = {}
"""The users' hooks, which do not run during an evaluation, by the `id` of the module."""


@contextlib.contextmanager
def quiet(
    model: nn.Module | None,
    device: torch.device,
    keep_forward_hooks: bool = False,
    training: bool = False,
) -> Iterator[None]:
    """A context in which `model` is a deterministic function that torch.func can differentiate.

    In the context every module is in eval mode. Autocast, float32 products of reduced precision,
    activation checkpointing, `torch.compile`, grad mode (which torch.func enables as needed),
    inference mode and the users' hooks are off. Scaled-dot-product attention is computed by plain
    operations, since the fused kernels have no forward-mode derivative. Only one thread at a time
    is in the context; others wait.

    Afterwards, also after an exception, all of these settings are as before. So are the random
    states of torch, NumPy and Python, the `.grad` of the parameters, and every attribute that a
    `forward` assigned to its module.

    Args:
        model: The module, or None for a function.
        device: The device on which it is evaluated.
        keep_forward_hooks: Whether forward hooks run, because they are part of the function.
        training: Whether every module keeps its training flag instead of being in eval mode.
    """
    state = python_state(model, keep_forward_hooks, training)
    with _one_at_a_time, state, settings(model, device):
        yield


@contextlib.contextmanager
def settings(model: nn.Module | None, device: torch.device) -> Iterator[None]:
    """The part of the context `quiet` that changes settings of the process and not of modules."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(_one_at_a_time)
        stack.enter_context(_random_state(device))
        stack.enter_context(_full_precision(device))
        stack.enter_context(forward_mode(model))
        stack.enter_context(_no_cached_weights())
        stack.enter_context(checkpoints_passed_over())
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        stack.enter_context(torch.autocast(device.type, enabled=False))
        stack.enter_context(autocast_off_inside())
        # Nothing is compiled unless dynamo has been imported, which would take a second.
        if "torch._dynamo" in sys.modules:
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        yield


@contextlib.contextmanager
def evaluating(
    model: object, x: object, keep_forward_hooks: bool = False, training: bool = False
) -> Iterator[None]:
    """The context `quiet` for a model and inputs of the caller that have not been checked yet.

    `x` is the first tensor of the inputs, or anything else if they contain none.
    """
    module = unwrap(model) if isinstance(model, nn.Module) else None
    reached = [] if module is not None else hidden_modules(model)
    device = x.device if isinstance(x, torch.Tensor) else torch.device("cpu")
    first = None if module is None else next(module.parameters(), None)
    device = device if first is None else first.device
    device = torch.device("cpu") if device.type == "meta" else device
    with quiet(module, device, keep_forward_hooks, training), values_of(reached):
        yield


@contextlib.contextmanager
def python_state(
    model: nn.Module | None, keep_forward_hooks: bool = False, training: bool = False
) -> Iterator[None]:
    """A context with every module in eval mode and without hooks. It restores their attributes.

    The training flags are set one by one. `model.eval(); ...; model.train()` would also change
    modules that the user had put in eval mode, and would call overridden `train` methods.
    TorchScript modules are skipped: their attributes are in C++, and they are refused anyway.
    """
    if model is None:
        yield
        return
    modules = [m for m in model.modules() if not is_script(m)]
    own, known = list(model.parameters()), {id(m) for m in modules}
    hidden = [m for m in hidden_modules(model) if id(m) not in known]
    before, hooks = PythonState(modules), UserHooks(modules, own)
    gradients = [p.grad for p in own]
    outer = _states.get(id(model)), _hooks.get(id(model))
    try:
        hooks.remove()
        if keep_forward_hooks:
            hooks.put_forward_back()
        for m in () if training else modules:
            m.training = False
        _states[id(model)] = PythonState(modules, with_values=False)
        _hooks[id(model)] = hooks
        with values_of(hidden):
            yield
    finally:
        _states.pop(id(model), None)
        _hooks.pop(id(model), None)
        if outer[0] is not None and outer[1] is not None:
            _states[id(model)], _hooks[id(model)] = outer[0], outer[1]
        before.restore()
        hooks.restore()
        for p, gradient in zip(own, gradients, strict=True):
            if p.grad is not gradient:
                p.grad = gradient


@contextlib.contextmanager
def values_of(modules: Sequence[nn.Module]) -> Iterator[None]:
    """A context that restores attributes, parameters and buffers of modules outside of the model.

    These modules are no submodules, so that `eval()` of the model would not change them either.
    Therefore their training flags are not changed.
    """
    if not modules:
        yield
        return
    before = PythonState(modules)
    tensors = {id(t): t for m in modules for t in (*m.parameters(), *m.buffers())}
    saved = [(t, t.detach().clone()) for t in tensors.values() if not t.is_inference()]
    try:
        yield
    finally:
        before.restore()
        for t, value in saved:
            if not torch.equal(t.detach(), value):
                t.data.copy_(value)


def after_evaluation(model: nn.Module | None) -> None:
    """Restore the attributes that `model` had when its evaluation began.

    This is called after every forward pass, since an attribute that one pass sets must not be used
    by the next. A weight that is computed from parameters in the first pass and kept would be a
    constant in the second.
    """
    state = None if model is None else _states.get(id(model))
    if state is not None:
        state.restore_attributes()


def forward_hooks_matter(model: nn.Module, evaluate: Callable[[], Tensor]) -> bool:
    """Whether forward hooks of the user are part of the function, although `quiet` removes them.

    They are if they return a value, change the outputs, or if the forward fails without them.
    `evaluate` returns the outputs for a sample. It is called once without the hooks and once with
    them; a failure with the hooks is ignored, as it will occur again and is reported then.
    """
    if not _hooks[id(model)].of_forward:
        return False

    def outputs() -> Tensor | None:
        try:
            return evaluate()
        except Exception:  # anything that a user's forward may raise
            return None

    with torch.no_grad():
        without = outputs()
        with _trying_forward_hooks(model) as recorder:
            within = outputs()
    if without is None or within is None:
        return without is None
    # NaN does not agree with anything. If both outputs have it, the hooks are not its cause.
    finite = [t.nan_to_num(0.0, 0.0, 0.0) for t in (without, within)]
    same = torch.equal(without.isfinite(), within.isfinite()) and agree(finite[:1], finite[1:])
    return recorder.has_value or not same


def has_forward_hooks(model: nn.Module) -> bool:
    """Whether there are forward hooks of the user, which do not run during the evaluation."""
    return bool(_hooks[id(model)].of_forward)


def run_forward_hooks(model: nn.Module) -> None:
    """Let the users' forward hooks run for the rest of the evaluation, if they change outputs."""
    _hooks[id(model)].put_forward_back()
    _states[id(model)] = PythonState(list(model.modules()), with_values=False)


@contextlib.contextmanager
def _trying_forward_hooks(model: nn.Module) -> Iterator[ReturnRecorder]:
    """A context in which the forward hooks of `model` run and their return values are recorded.

    What they change in closures and objects is restored afterwards.
    """
    hooks, recorder, state = _hooks[id(model)], ReturnRecorder(), _states[id(model)]
    effects = PythonState([], also=hooks.of_forward)
    try:
        hooks.put_forward_back(recorder)
        _states[id(model)] = PythonState(list(model.modules()), with_values=False)
        yield recorder
    finally:
        _states[id(model)] = state
        hooks.remove()
        effects.restore()


@contextlib.contextmanager
def _no_cached_weights() -> Iterator[None]:
    """A context without the cache of `torch.nn.utils.parametrize.cached()`.

    If the caller is in `cached()`, its cache contains weights that were computed from the module's
    own parameters, and not from those that the evaluation uses.
    """
    enabled, cache = parametrize._cache_enabled, parametrize._cache
    parametrize._cache_enabled, parametrize._cache = 0, {}
    try:
        yield
    finally:
        parametrize._cache_enabled, parametrize._cache = enabled, cache


@contextlib.contextmanager
def _random_state(device: torch.device) -> Iterator[None]:
    """A context that restores the random states of torch, NumPy and Python."""
    devices = [] if device.type in ("cpu", "meta") else [device]
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    kind = "cuda" if device.type == "cpu" else device.type
    try:
        with torch.random.fork_rng(devices=devices, device_type=kind):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002


@contextlib.contextmanager
def _full_precision(device: torch.device) -> Iterator[None]:
    """A context in which products of float32 are computed in float32 and not, say, in TF32."""
    operations, levels = _precisions(device)
    if all(s.fp32_precision in ("none", "ieee") for s in operations):
        yield
        return
    saved = []
    try:
        # A setting that is "none" reads as that of the level above it. If the levels above are set
        # to "none" first, each setting reads as its own value, to which it is restored later.
        for setting in levels:
            saved.append((setting, str(setting.fp32_precision)))
            setting.fp32_precision = "none"
        for setting in operations:
            setting.fp32_precision = "ieee"
        yield
    finally:
        for setting, value in saved:
            setting.fp32_precision = value


def _precisions(device: torch.device) -> tuple[list[Any], list[Any]]:
    """The precision settings of operations on a device, and all levels of settings, outer first."""
    backends: Any = torch.backends
    if device.type == "cuda":
        operations = [backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn]
        return operations, [backends, backends.cudnn, *operations]
    if device.type == "cpu":
        operations = [backends.mkldnn.matmul, backends.mkldnn.conv, backends.mkldnn.rnn]
        # Torch's setting for the backend mkldnn as a whole would set that of all backends.
        return operations, [backends, *operations]
    return [], []
