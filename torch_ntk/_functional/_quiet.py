"""Evaluate a module so that nothing of the evaluation can be seen afterwards."""

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
from ._hooks import Noting, UserHooks
from ._replaced import autocast_off_inside, checkpoints_passed_over
from ._state import PythonState, hidden_modules
from ._unwrap import is_script, unwrap

# Training flags, autocast, backends' settings and the stance of torch.compile belong to the whole
# process or to the module: two evaluations at the same time would put them back to each other's.
_one_at_a_time = threading.RLock()
_states: dict[int, PythonState] = {}
"""By the `id` of a module that is being evaluated what its evaluation began with."""
_hooks: dict[int, UserHooks] = {}
"""By the `id` of a module that is being evaluated the users' hooks, which are left out."""


@contextlib.contextmanager
def quiet(
    model: nn.Module | None,
    device: torch.device,
    keep_forward_hooks: bool = False,
    training: bool = False,
) -> Iterator[None]:
    """Within it, `model` is a deterministic function that torch.func can differentiate.

    Inside: every module in eval mode, autocast and reduced-precision float32 products off,
    scaled-dot-product attention in its plain form (the fused kernels have no forward-mode
    derivative), activation checkpointing passed over, `torch.compile` off, the users' hooks left
    out, grad mode off (torch.func turns on what it needs), and normal tensors even if the caller
    is in `torch.inference_mode`. One thread at a time is inside; others wait.

    Afterwards, also after an exception, all of this is as before, and so are the random states
    of torch, NumPy and Python, `.grad` of the parameters, and every attribute that a `forward`
    assigned to its module.

    Args:
        model: The module; None for a function.
        device: Where it is evaluated.
        keep_forward_hooks: Whether forward hooks run, as they are part of the function.
        training: Whether every module keeps its flag in place of eval mode.
    """
    state = python_state(model, keep_forward_hooks, training)
    with _one_at_a_time, state, settings(model, device):
        yield


@contextlib.contextmanager
def settings(model: nn.Module | None, device: torch.device) -> Iterator[None]:
    """The part of `quiet` that belongs to the process, not to modules."""
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
        if "torch._dynamo" in sys.modules:  # else nothing is compiled; it takes a second
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        yield


@contextlib.contextmanager
def evaluating(
    model: object, x: object, keep_forward_hooks: bool = False, training: bool = False
) -> Iterator[None]:
    """`quiet` for a model of the caller, which nothing has checked yet, on inputs `x`."""
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
    """Put every module in eval mode without hooks, and its attributes back as they were.

    The flags are set one by one: `model.eval(); ...; model.train()` would thaw modules that the
    user had frozen in eval mode, and would call overridden `train` methods. TorchScript keeps
    its attributes in C++ and is refused anyway.
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
    """Put the attributes, parameters and buffers of modules back, which an evaluation may reach.

    They are no submodules, so that nobody's `eval()` reaches them: their flags stay as they are.
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
    """Put the attributes of `model` back to what they were when its evaluation began.

    To be called after every forward pass. What one leaves behind must not reach the next: a weight
    that is derived from parameters in the first pass and kept would be a constant in the second.
    """
    state = None if model is None else _states.get(id(model))
    if state is not None:
        state.restore_attributes()


def forward_hooks_matter(model: nn.Module, evaluate: Callable[[], Tensor]) -> bool:
    """Whether forward hooks of the user, which are left out, are part of the function.

    They are if they return something, change the outputs, or the forward fails without them.

    Args:
        model: A module that is being evaluated.
        evaluate: Gives its outputs for a sample. It is called once without the hooks and once with
            them, both times without gradients; what fails with them is reported later.
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
        with _trying_forward_hooks(model) as noting:
            within = outputs()
    if without is None or within is None:
        return without is None
    # NaN agrees with nothing; where both have it, it is not of the hooks.
    finite = [t.nan_to_num(0.0, 0.0, 0.0) for t in (without, within)]
    same = torch.equal(without.isfinite(), within.isfinite()) and agree(finite[:1], finite[1:])
    return noting.anything or not same


def run_forward_hooks(model: nn.Module) -> None:
    """Let the users' forward hooks run for the rest of the evaluation: they change the outputs."""
    _hooks[id(model)].put_forward_back()
    _states[id(model)] = PythonState(list(model.modules()), with_values=False)


@contextlib.contextmanager
def _trying_forward_hooks(model: nn.Module) -> Iterator[Noting]:
    """Within it they run; what they leave in closures and objects is put back afterwards."""
    hooks, noting, state = _hooks[id(model)], Noting(), _states[id(model)]
    effects = PythonState([], also=hooks.of_forward)
    try:
        hooks.put_forward_back(noting)
        _states[id(model)] = PythonState(list(model.modules()), with_values=False)
        yield noting
    finally:
        _states[id(model)] = state
        hooks.remove()
        effects.restore()


@contextlib.contextmanager
def _no_cached_weights() -> Iterator[None]:
    """Leave `torch.nn.utils.parametrize.cached()`, which the caller may be in.

    Its cache is keyed by module: it would hand out weights computed from the module's own
    parameters instead of those that the evaluation is to use.
    """
    enabled, cache = parametrize._cache_enabled, parametrize._cache
    parametrize._cache_enabled, parametrize._cache = 0, {}
    try:
        yield
    finally:
        parametrize._cache_enabled, parametrize._cache = enabled, cache


@contextlib.contextmanager
def _random_state(device: torch.device) -> Iterator[None]:
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
    """Compute float32 products in float32, whatever the caller allows for training."""
    operations, levels = _precisions(device)
    if all(s.fp32_precision in ("none", "ieee") for s in operations):
        yield
        return
    saved = []
    try:
        # What is unset reads as what the level above it says. With that out of the way, each
        # gives its own value, and can be put back to it.
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
    """Settings of the precision of float32 products on a device, and all levels of them."""
    backends: Any = torch.backends
    if device.type == "cuda":
        operations = [backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn]
        return operations, [backends, backends.cudnn, *operations]
    if device.type == "cpu":
        operations = [backends.mkldnn.matmul, backends.mkldnn.conv, backends.mkldnn.rnn]
        # What torch calls the setting of this backend sets that of all.
        return operations, [backends, *operations]
    return [], []
