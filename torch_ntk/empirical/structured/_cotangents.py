"""The backward pass of a plan: cotangents of its calls for all samples and outputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import vjp, vmap

from ..._functional import Batch, CannotTransformError, ModelFunction, transforming
from ..._types import Parameters
from ._parameter_uses import ParameterUses, perturbed


@dataclass(frozen=True)
class Cotangents:
    """The results of one batched backward pass for N samples and all O outputs.

    Attributes:
        outputs: The outputs `[N, O]`.
        of_calls: The derivatives of the outputs by the result of each call, `[N, O, ...]`.
        of_rest: The Jacobians of the parameters without rules, `[N, O, ...]`, by name.
        sources: The inputs of the uses, `[N, ...]`.
    """

    outputs: Tensor
    of_calls: tuple[Tensor, ...]
    of_rest: Parameters
    sources: tuple[Tensor, ...]


def cotangents(fn: ModelFunction, planned: ParameterUses, x: Batch, o: int) -> Cotangents:
    """Return the cotangents for all samples of `x` and all O outputs.

    They are computed at once under vmap; or sample by sample if an operation has no batching rule,
    or one that returns wrong shapes.
    """
    try:
        with transforming():
            found = fn.of_each(x, lambda sample: _of_sample(fn, planned, sample))
        if _are_of_shape(found, fn, planned, len(x), o):
            return Cotangents(*found)
    except CannotTransformError:
        pass
    with transforming():
        each = [_of_sample(fn, planned, sample, loop=True) for sample in x.samples()]
    return Cotangents(
        torch.stack([e[0] for e in each]),
        _stacked([e[1] for e in each]),
        {n: torch.stack([e[2][n] for e in each]) for n in planned.rest},
        _stacked([e[3] for e in each]),
    )


def _of_sample(
    fn: ModelFunction, planned: ParameterUses, sample: Batch, loop: bool = False
) -> tuple[Any, ...]:
    """Return one sample's outputs, cotangents, Jacobians of the rest, and sources."""
    # Expanded zeros have no layout, so that results keep theirs, and take no memory.
    zero = torch.zeros((), dtype=fn.dtype, device=fn.device)
    zeros = tuple(zero.expand(s) for s in planned.shapes)
    rest = {n: fn.params[n] for n in planned.rest}
    transformed: tuple[Any, ...] = vjp(
        lambda z, r: perturbed(fn, planned, z, r, sample), zeros, rest, has_aux=True
    )
    out, pull, sources = transformed
    basis = torch.eye(out.shape[0], dtype=fn.dtype, device=fn.device)
    if not loop:
        return out, *vmap(pull)(basis), sources
    rows = [pull(e) for e in basis]
    of_rest = {n: torch.stack([r[1][n].to_dense() for r in rows]) for n in planned.rest}
    return out, _stacked([r[0] for r in rows]), of_rest, sources


def _stacked(rows: Sequence[Sequence[Tensor]]) -> tuple[Tensor, ...]:
    return tuple(torch.stack(t) for t in zip(*rows, strict=True))


def _are_of_shape(
    found: tuple[Any, ...], fn: ModelFunction, planned: ParameterUses, n: int, o: int
) -> bool:
    """Whether all shapes are right: some batching rules confuse axes."""
    _, of_calls, of_rest, sources = found
    return (
        not any(j.is_sparse for j in of_rest.values())
        and all(b.shape == (n, o, *s) for b, s in zip(of_calls, planned.shapes, strict=True))
        and all(of_rest[name].shape == (n, o, *fn.params[name].shape) for name in planned.rest)
        and all(s.shape == (n, *u.source.shape) for s, u in zip(sources, planned.uses, strict=True))
    )
