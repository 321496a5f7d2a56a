"""The structured method: per weight the cheapest contraction of its inputs and cotangents.

The cotangents of all uses come from one batched backward pass that computes no weight gradient;
a parameter that no rule covers has its own Jacobian taken in the same pass. The plan is checked
before anything is trusted; see `_proof`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .._functional import CANNOT_TRANSFORM, ModelFunction
from .._types import Output
from ..memory import budget, check_enough, within
from . import _jacobian
from ._backward import backward
from ._columns import Unformed
from ._known import known
from ._outputs import row_bytes
from ._pairs import Factors, by_blocks
from ._parts import Kernels, Keys
from ._pieces import pieces
from ._prepare import SMALL, Structure, prepare
from ._stages import stage
from ._trial import Trial
from ._uses import PlanChangedError
from ._weights import features, of_factors, of_jacobian

_JOINED = "(joined)"
"""In place of the names of joined parameters; a parameter's name has no such characters."""


def factors(
    fn: ModelFunction,
    structure: Structure,
    x: Tensor,
    o: int,
    output: Output,
    keys: Keys,
    alone: bool = False,
) -> Factors:
    """By key and parameter name what the contraction needs of the samples `x`.

    Where the samples are contracted `alone`, once, what is large is not made before that:
    Jacobians are left unformed, and features are gathered from the inputs of their calls.
    """
    with stage("backward"):
        found, gradients, sources = backward(fn, structure.plan, x, structure.right)
    b: list[Tensor | None] = list(found)
    del found
    n = x.shape[0]
    parts: Factors = {}
    joined: dict[str, list[Tensor]] = {}  # by key; many small products take longer than one

    def add(name: str, jacobian: Tensor) -> None:
        if name in gradients or jacobian.shape[2] <= SMALL:
            joined.setdefault(keys[name], []).append(jacobian)
        else:
            parts[keys[name], name] = of_jacobian(jacobian)

    for name, indices in structure.groups.items():
        if structure.is_joined(name):
            continue
        uses = [structure.plan.uses[i] for i in indices]
        of_calls = [b[structure.plan.calls[i]] for i in indices]
        cotangents = [u.cotangents(c) for u, c in zip(uses, of_calls, strict=True) if c is not None]
        for call in structure.done_after(name):
            b[call] = None  # as soon as may be: they are large
        del of_calls
        calls = [(use, sources[i]) for use, i in zip(uses, indices, strict=True)]
        if name not in structure.costs:
            with stage("jacobian"):
                each = [
                    u.jacobian(u.features(s), c)
                    for (u, s), c in zip(calls, cotangents, strict=True)
                ]
                add(name, torch.stack(each).sum(0))
            continue
        # Several uses of one weight of a kind are more positions of one use.
        use = uses[0]
        rows = cotangents[0] if len(cotangents) == 1 else torch.cat(cotangents, dim=3)
        del cotangents
        is_late = alone and structure.is_late(name)
        if is_late:
            calls = [(use, use.held(source)) for use, source in calls]
        if structure.by_gram(name):
            a = calls if is_late else features(calls)
            shift = float(name in structure.biases)
            between = structure.costs[name].contraction == "features"
            parts[keys[name], name] = of_factors(a, rows, use, output, shift, between)
        elif is_late:
            parts[keys[name], name] = of_jacobian(Unformed(rows[:, :, 0], calls))
        else:
            with stage("jacobian"):
                add(name, use.columns(features(calls), rows))
    for name, gradient in gradients.items():
        add(name, gradient.reshape(n, o, fn.params[name].numel()))
    for key, jacobians in joined.items():
        one = jacobians[0] if len(jacobians) == 1 else torch.cat(jacobians, dim=2)
        parts[key, _JOINED] = of_jacobian(one)
    return parts


def bytes_per_sample(fn: ModelFunction, structure: Structure, trial: Trial) -> int:
    """Memory of one sample's factors, and of the batched backward pass that makes them."""
    item = torch.finfo(fn.dtype).bits // 8
    kept = structure.numbers_per_sample(fn, alone=False) * item
    return 2 * kept + _backward_bytes(trial)


def _backward_bytes(trial: Trial) -> int:
    """Memory of one sample's batched backward pass."""
    return 2 * (trial.outputs + 1) * trial.activation_bytes


def kernel(
    fn: ModelFunction,
    x1: Tensor,
    x2: Tensor | None,
    output: Output,
    trial: Trial,
    batch_size: int | None,
    advance: Callable[[int], None],
    keys: Keys,
    structure: Structure | None = None,
    available: int | None = None,
) -> Kernels:
    """The kernels `Θ(x1, x2)`, or the exactly symmetric `Θ(x1, x1)` if `x2` is None.

    A model whose operations cannot be transformed at all has its kernel taken by the reference
    method. `structure` and `available`, the `budget`, are asked for if they are not given.
    """
    if structure is None:
        try:
            structure = prepare(fn, x1, x2, trial.outputs, output, keys, trial.signature)
        except CANNOT_TRANSFORM:
            return _jacobian.kernel(fn, x1, x2, output, trial, batch_size, advance, keys)
    with stage("plan"):
        structure.plan.lay_out(fn.params)
    try:
        return _by_plan(fn, x1, x2, output, trial, batch_size, advance, keys, structure, available)
    except PlanChangedError:  # control flow that depends on the sample
        known(fn).plans.pop(trial.signature, None)
        structure.plan.lay_back(fn.params)
        return _jacobian.kernel(fn, x1, x2, output, trial, batch_size, advance, keys)


def _by_plan(
    fn: ModelFunction,
    x1: Tensor,
    x2: Tensor | None,
    output: Output,
    trial: Trial,
    batch_size: int | None,
    advance: Callable[[int], None],
    keys: Keys,
    structure: Structure,
    available: int | None,
) -> Kernels:
    longest = max(x1.shape[0], 0 if x2 is None else x2.shape[0])
    item = torch.finfo(fn.dtype).bits // 8
    available = budget(fn.device) if available is None else available
    row = row_bytes(output, longest, trial.outputs, fn.products)
    kept = structure.numbers_per_sample(fn, alone=False) * item + row
    size = within(available, longest, 2 * kept)
    if x2 is None:  # all at once, if only what is left of Jacobians unformed is kept
        kept = structure.numbers_per_sample(fn, alone=True) * item + row
        kept += structure.passing_per_sample() * (torch.finfo(fn.products).bits // 8)
        size = longest if within(available, longest, 2 * kept) == longest else size
    at_once = bytes_per_sample(fn, structure, trial)
    check_enough(at_once)
    step = within(available, longest, 4 * at_once)
    step = min(step, pieces(fn.device).samples(_backward_bytes(trial)))
    return by_blocks(
        lambda x, alone: factors(fn, structure, x, trial.outputs, output, keys, alone),
        x1,
        x2,
        output,
        trial.outputs,
        fn.products,
        batch_size or size,
        batch_size or step,
        advance,
        keys,
    )
