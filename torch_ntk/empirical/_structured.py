"""The structured method: per weight the cheapest contraction of its inputs and cotangents.

The cotangents of all uses come from one batched backward pass that computes no weight gradient;
a parameter that no rule covers has its own Jacobian taken in the same pass. Before anything is
trusted, the gradient that the plan implies for one sample and a random output direction is
compared with that of automatic differentiation, parameter by parameter: whatever does not agree
is moved to its own Jacobian.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import vjp, vmap

from .._functional import (
    CANNOT_TRANSFORM,
    ModelFunction,
    agree,
    check_batching,
    is_out_of_memory,
)
from .._types import Output, Parameters
from . import _jacobian
from ._blocks import ONE_SAMPLE, plan
from ._limit import check_enough
from ._outputs import row_bytes
from ._pairs import Factors, by_blocks
from ._parts import Kernels, Keys
from ._trial import Trial
from ._uses import Plan, PlanChangedError, perturbed, record
from ._weights import Cost, Part, cost


@dataclass(frozen=True)
class Structure:
    """A checked plan: what `factors` and `contract` need to know.

    Attributes:
        plan: The uses, and the rest.
        groups: By weight name the indices of its uses.
        costs: By weight name the counts of operations; absent where the uses of one weight are of
            different kinds, which only its Jacobian joins.
    """

    plan: Plan
    groups: dict[str, list[int]]
    costs: dict[str, Cost]

    def by_gram(self, name: str) -> bool:
        """Whether this weight is contracted by Gram matrices."""
        return name in self.costs and self.costs[name].by_gram

    def numbers_per_sample(self, fn: ModelFunction, o: int) -> int:
        """How many numbers the factors of one sample are."""
        total = o * sum(fn.params[n].numel() for n in self.plan.rest)
        for name, indices in self.groups.items():
            if self.by_gram(name):
                total += self.costs[name].gram_size
            else:
                total += o * self.plan.uses[indices[0]].weight.numel()
        return total


# Larger batches of a backward pass leave the caches of a CPU, and each of their tensors is mapped
# and cleared anew by the operating system.
_STEP_BYTES = 192 * 1024**2

# Jacobians of at most so many columns are joined before they are contracted.
_SMALL = 4096

_JOINED = "(joined)"
"""In place of the names of joined parameters; a parameter's name has no such characters."""

_Backward = tuple[tuple[Tensor, ...], Parameters, tuple[Tensor, ...]]
"""Cotangents of the uses, gradients of the rest, and inputs of the uses."""


def _backward(fn: ModelFunction, plan_: Plan, x: Tensor) -> _Backward:
    """For all samples of `x` and all outputs: `[N, O, ...]`, `[N, O, ...]` and `[N, ...]`.

    All at once under vmap, checked against one plain backward pass; sample by sample where an
    operation has no batching rule, or a wrong one.
    """
    try:
        b, gradients, sources = vmap(lambda sample: _of_sample(fn, plan_, sample, None))(x)
        u = _direction(fn, b, gradients)
        if u is not None:
            alone_b, alone_gradients, _ = _of_sample(fn, plan_, x[-1], u)
            batched = [*b, *(gradients[n] for n in plan_.rest)]
            alone = [*alone_b, *(alone_gradients[n] for n in plan_.rest)]
            check_batching(
                {str(k): torch.tensordot(u, t[-1], dims=1) for k, t in enumerate(batched)},
                {str(k): t for k, t in enumerate(alone)},
            )
        return b, gradients, sources
    except CANNOT_TRANSFORM as error:
        if is_out_of_memory(error) or isinstance(error, PlanChangedError):
            raise
    each = [_of_sample(fn, plan_, sample, None, loop=True) for sample in x]
    return (
        tuple(torch.stack(t) for t in zip(*(e[0] for e in each), strict=True)),
        {n: torch.stack([e[1][n] for e in each]) for n in plan_.rest},
        tuple(torch.stack(t) for t in zip(*(e[2] for e in each), strict=True)),
    )


def _of_sample(
    fn: ModelFunction, plan_: Plan, sample: Tensor, u: Tensor | None, loop: bool = False
) -> _Backward:
    """One sample's backward pass in the direction `u`, or in every output's if that is None."""
    zeros = tuple(torch.zeros(s, dtype=fn.dtype, device=fn.device) for s in plan_.shapes)
    rest = {n: fn.params[n] for n in plan_.rest}
    transformed: tuple[Any, ...] = vjp(
        lambda z, r: perturbed(fn, plan_, z, r, sample), zeros, rest, has_aux=True
    )
    out, pull, sources = transformed
    if u is not None:
        return (*pull(u), sources)
    basis = torch.eye(out.shape[0], dtype=fn.dtype, device=fn.device)
    if not loop:
        return (*vmap(pull)(basis), sources)
    rows = [pull(e) for e in basis]
    return (
        tuple(torch.stack(t) for t in zip(*(r[0] for r in rows), strict=True)),
        {n: torch.stack([r[1][n] for r in rows]) for n in plan_.rest},
        sources,
    )


def _direction(fn: ModelFunction, b: Sequence[Tensor], rest: Parameters) -> Tensor | None:
    """Fixed weights for the outputs, all different, so that calls are reproducible."""
    first = next(iter((*b, *rest.values())), None)
    if first is None:
        return None
    return torch.linspace(1.0, 0.5, first.shape[1], dtype=fn.dtype, device=fn.device)


def prepare(
    fn: ModelFunction, x1: Tensor, x2: Tensor | None, outputs: int, output: Output
) -> Structure:
    """Plan the uses of every parameter and prove on the first sample that the plan is complete.

    Raises:
        RuntimeError, ValueError: The model's operations cannot be transformed.
        MemoryError: One sample does not fit.
    """
    try:
        found = record(fn, x1[0])
        wrong = _disagreeing(fn, found, x1[0], outputs)
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            raise MemoryError(ONE_SAMPLE) from error
        raise
    n1, n2 = x1.shape[0], x1.shape[0] if x2 is None else x2.shape[0]
    samples, pairs = (n1, n1 * n1 / 2) if x2 is None else (n1 + n2, float(n1 * n2))
    if wrong:
        found = found.without(wrong, fn.params)
    groups: dict[str, list[int]] = {}
    for i, name in enumerate(found.names):
        groups.setdefault(name, []).append(i)
    costs = {}
    for name, indices in groups.items():
        uses = [found.uses[i] for i in indices]
        if len({u.kind for u in uses}) == 1:
            first = uses[0]
            sizes = [found.uses[i].positions(found.shapes[i]) for i in indices]
            costs[name] = cost(first, sum(sizes), outputs, output, samples, pairs)
    return Structure(found, groups, costs)


def _disagreeing(fn: ModelFunction, found: Plan, x: Tensor, o: int) -> set[str]:
    """Weights whose gradient in a fixed direction is not what the plan implies."""
    u = torch.linspace(1.0, 0.5, o, dtype=fn.dtype, device=fn.device)
    u = u * torch.linspace(0.0, 12.0, o, dtype=fn.dtype, device=fn.device).cos()
    transformed = vjp(lambda p: fn.single(p, x), fn.params)
    truth: Parameters = transformed[1](u)[0]
    b, _, sources = _of_sample(fn, found, x, u)
    implied: dict[str, Tensor] = {}
    for i, (use, name) in enumerate(zip(found.uses, found.names, strict=True)):
        features = use.features(sources[i].unsqueeze(0))
        cotangents = use.cotangents(b[i].unsqueeze(0).unsqueeze(0))
        gradient = use.jacobian(features, cotangents).reshape(-1)
        implied[name] = implied[name] + gradient if name in implied else gradient
    return {
        name
        for name, gradient in implied.items()
        if not agree([gradient], [truth[name].reshape(-1)])
    }


def factors(fn: ModelFunction, structure: Structure, x: Tensor, o: int, keys: Keys) -> Factors:
    """By key and parameter name what the contraction needs of the samples `x`."""
    b, gradients, sources = _backward(fn, structure.plan, x)
    n = x.shape[0]
    parts: Factors = {}
    joined: dict[str, list[Tensor]] = {}  # by key; many small products take longer than one

    def add(name: str, jacobian: Tensor) -> None:
        if name in gradients or jacobian.shape[2] <= _SMALL:
            joined.setdefault(keys[name], []).append(jacobian)
        else:
            parts[keys[name], name] = Part(j=jacobian)

    uses = structure.plan.uses
    for name, indices in structure.groups.items():
        a_all = [uses[i].features(sources[i]) for i in indices]
        b_all = [uses[i].cotangents(b[i]) for i in indices]
        if name in structure.costs:
            # Several uses of one weight are more positions of one use.
            joined_a = a_all[0] if len(a_all) == 1 else torch.cat(a_all, dim=2)
            joined_b = b_all[0] if len(b_all) == 1 else torch.cat(b_all, dim=3)
            use = uses[indices[0]]
            if structure.by_gram(name):
                parts[keys[name], name] = Part(a=joined_a, b=joined_b, use=use)
            else:
                add(name, use.jacobian(joined_a, joined_b))
        else:
            each = [uses[i].jacobian(p, q) for i, p, q in zip(indices, a_all, b_all, strict=True)]
            add(name, torch.stack(each).sum(0))
    for name, gradient in gradients.items():
        add(name, gradient.reshape(n, o, fn.params[name].numel()))
    for key, jacobians in joined.items():
        one = jacobians[0] if len(jacobians) == 1 else torch.cat(jacobians, dim=2)
        parts[key, _JOINED] = Part(j=one)
    return parts


def bytes_per_sample(fn: ModelFunction, structure: Structure, trial: Trial) -> int:
    """Memory of one sample's factors, and of the batched backward pass that makes them."""
    item = torch.finfo(fn.dtype).bits // 8
    kept = structure.numbers_per_sample(fn, trial.outputs) * item
    return 2 * kept + 2 * (trial.outputs + 1) * trial.activation_bytes


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
) -> Kernels:
    """The kernels `Θ(x1, x2)`, or the exactly symmetric `Θ(x1, x1)` if `x2` is None.

    A model whose operations cannot be transformed at all has its kernel taken by the reference
    method.
    """
    if structure is None:
        try:
            structure = prepare(fn, x1, x2, trial.outputs, output)
        except CANNOT_TRANSFORM:
            return _jacobian.kernel(fn, x1, x2, output, trial, batch_size, advance, keys)
    try:
        return _by_plan(fn, x1, x2, output, trial, batch_size, advance, keys, structure)
    except PlanChangedError:  # control flow that depends on the sample
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
) -> Kernels:
    longest = max(x1.shape[0], 0 if x2 is None else x2.shape[0])
    item = torch.finfo(fn.dtype).bits // 8
    kept = structure.numbers_per_sample(fn, trial.outputs) * item
    kept += row_bytes(output, longest, trial.outputs, fn.dtype)
    at_once = bytes_per_sample(fn, structure, trial)
    check_enough(at_once)
    step = plan(longest, 4 * at_once, fn.device)
    if fn.device.type == "cpu":
        step = max(1, min(step, _STEP_BYTES // at_once))
    return by_blocks(
        lambda x: factors(fn, structure, x, trial.outputs, keys),
        x1,
        x2,
        output,
        trial.outputs,
        fn.dtype,
        batch_size or plan(longest, 2 * kept, fn.device),
        batch_size or step,
        advance,
        keys,
    )
