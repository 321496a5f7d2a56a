"""The backward pass of a plan: cotangents of its calls for all samples and outputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import vjp, vmap

from .._functional import CANNOT_TRANSFORM, ModelFunction, check_batching
from .._types import Parameters
from ..memory import is_out_of_memory
from ._uses import Plan, PlanChangedError, perturbed

Backward = tuple[tuple[Tensor, ...], Parameters, tuple[Tensor, ...]]
"""Cotangents of the calls, gradients of the rest, and inputs of the uses."""


def backward(fn: ModelFunction, plan_: Plan, x: Tensor, right: set[int]) -> Backward:
    """For all samples of `x` and all outputs: `[N, O, ...]`, `[N, O, ...]` and `[N, ...]`.

    All at once under vmap, checked against one plain backward pass; sample by sample where an
    operation has no batching rule, or a wrong one.

    Args:
        fn: The function.
        plan_: Its plan.
        x: The samples.
        right: Numbers of samples for which the batching was seen to be right: where a rule is
            wrong, it is so for shapes and not for values. This call's number is added.

    Raises:
        PlanChangedError: The model makes other calls than planned, or fails.
    """
    try:
        b, gradients, sources = vmap(lambda sample: of_sample(fn, plan_, sample, None))(x)
        u = None if x.shape[0] in right else _direction(fn, b, gradients)
        if u is not None:
            alone_b, alone_gradients, _ = of_sample(fn, plan_, x[-1], u)
            batched = [*b, *(gradients[n] for n in plan_.rest)]
            alone = [*alone_b, *(alone_gradients[n] for n in plan_.rest)]
            check_batching(
                {str(k): torch.tensordot(u, t[-1], dims=1) for k, t in enumerate(batched)},
                {str(k): t for k, t in enumerate(alone)},
            )
            right.add(x.shape[0])
        return b, gradients, sources
    except CANNOT_TRANSFORM as error:
        if is_out_of_memory(error) or isinstance(error, PlanChangedError):
            raise
    try:
        each = [of_sample(fn, plan_, sample, None, loop=True) for sample in x]
    except CANNOT_TRANSFORM as error:
        if is_out_of_memory(error) or isinstance(error, PlanChangedError):
            raise
        raise PlanChangedError("The model fails where its plan was made without it.") from error
    return (
        tuple(torch.stack(t) for t in zip(*(e[0] for e in each), strict=True)),
        {n: torch.stack([e[1][n] for e in each]) for n in plan_.rest},
        tuple(torch.stack(t) for t in zip(*(e[2] for e in each), strict=True)),
    )


def of_sample(
    fn: ModelFunction, plan_: Plan, sample: Tensor, u: Tensor | None, loop: bool = False
) -> Backward:
    """One sample's backward pass in the direction `u`, or in every output's if that is None."""
    # Zeros without a layout of their own: results keep theirs, and nothing is read.
    zero = torch.zeros((), dtype=fn.dtype, device=fn.device)
    zeros = tuple(zero.expand(s) for s in plan_.shapes)
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
