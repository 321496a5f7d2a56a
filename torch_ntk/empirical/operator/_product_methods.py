"""Products with the Jacobian of a batch and with its transpose, in three ways.

The first two evaluate a batch as a batch: the sum over samples in Jᵀv is then part of the backward
pass, and no gradient of a single sample is ever formed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor
from torch.func import jvp, vjp, vmap

from ..._checks import ArgumentError
from ..._functional import (
    Batch,
    CannotTransformError,
    ModelFunction,
    PlainPass,
    RightOperations,
    transforming,
)
from ..._types import Parameters
from ...memory import is_out_of_memory
from ..checksum import plain_jacobians
from ..inspect import Inspection

T = TypeVar("T")


class Way(ABC):
    """How a batch is differentiated."""

    def bytes_per_sample(self, fn: ModelFunction, forward: Inspection) -> int:
        """Memory of one sample while one direction is multiplied."""
        return 4 * forward.activation_bytes

    @abstractmethod
    def pull(self, fn: ModelFunction, x: Batch, v: Tensor) -> tuple[Tensor, Parameters]:
        """Outputs `[n, O]`, and `Σ_n J[n]ᵀ v[c, n]` as `{name: [c, ...]}`, of `v` `[c, n, O]`."""

    @abstractmethod
    def push(self, fn: ModelFunction, x: Batch, w: Parameters) -> Tensor:
        """`J[n] w[c]` as `[c, n, O]`, of `w` `{name: [c, ...]}`."""


class Forward(Way):
    """By torch.func, several directions at once: Jw in forward mode, without a graph."""

    def pull(self, fn: ModelFunction, x: Batch, v: Tensor) -> tuple[Tensor, Parameters]:
        """One forward pass, and a backward pass for each direction."""
        with transforming(), RightOperations():
            transformed = vjp(lambda p: fn.batch(p, x), fn.params)
            out, pull = transformed[0], transformed[1]
            rows = _directions(lambda d: pull(d["v"])[0], {"v": v})
        return out.detach(), rows

    def push(self, fn: ModelFunction, x: Batch, w: Parameters) -> Tensor:
        """One jvp for each direction."""

        def one(direction: Parameters) -> Parameters:
            return {"f": jvp(lambda p: fn.batch(p, x), (fn.params,), (direction,))[1]}

        with transforming(), RightOperations():
            return _directions(one, w)["f"]


class Plain(Way):
    """By plain backward passes of the user's own module: Jw as the derivative of `⟨Jᵀu, w⟩`."""

    def pull(self, fn: ModelFunction, x: Batch, v: Tensor) -> tuple[Tensor, Parameters]:
        """One backward pass for each direction."""

        def of_pass(found: PlainPass) -> tuple[Tensor, Parameters]:
            rows = [found.gradients(direction) for direction in v]
            return found.outputs.detach(), {k: torch.stack([r[k] for r in rows]) for k in rows[0]}

        return _run(fn, x, of_pass)

    def push(self, fn: ModelFunction, x: Batch, w: Parameters) -> Tensor:
        """Two backward passes for each direction."""

        def of_pass(found: PlainPass) -> Tensor:
            count = next(iter(w.values())).shape[0]
            rows = [found.along({k: d[c] for k, d in w.items()}) for c in range(count)]
            return torch.stack(rows).detach()

        return _run(fn, x, of_pass)


class Formed(Way):
    """Jacobians of the samples of a block, for operations with first derivatives only."""

    def bytes_per_sample(self, fn: ModelFunction, forward: Inspection) -> int:
        """Those of the Jacobian, whatever the number of directions."""
        return forward.outputs * 2 * fn.parameter_bytes + 4 * forward.activation_bytes

    def pull(self, fn: ModelFunction, x: Batch, v: Tensor) -> tuple[Tensor, Parameters]:
        """Rows of the Jacobians, weighted and summed."""
        rows = v.reshape(v.shape[0], -1)
        outputs, jacobians = plain_jacobians(fn, x, fn.params)
        return outputs, {
            k: (rows @ j.reshape(rows.shape[1], -1)).reshape(-1, *fn.params[k].shape)
            for k, j in jacobians.items()
        }

    def push(self, fn: ModelFunction, x: Batch, w: Parameters) -> Tensor:
        """The Jacobians times each direction."""
        products = [
            (j @ w[k].reshape(-1, j.shape[2]).T).permute(2, 0, 1)
            for k, j in plain_jacobians(fn, x, fn.params)[1].items()
        ]
        return torch.stack(products).sum(0)


WAYS: tuple[type[Way], ...] = (Forward, Plain, Formed)


def _directions(one: Callable[[Parameters], Parameters], directions: Parameters) -> Parameters:
    """`one` for every direction: at once, or one by one where vmap has no rule."""
    count = next(iter(directions.values())).shape[0]
    if count > 1:
        try:
            with transforming():
                rows: Parameters = vmap(one)(directions)
            return rows
        except CannotTransformError:
            pass
    each = [one({k: d[c] for k, d in directions.items()}) for c in range(count)]
    return {k: torch.stack([row[k] for row in each]) for k in each[0]}


def _run(fn: ModelFunction, x: Batch, of_pass: Callable[[PlainPass], T]) -> T:
    """A plain pass; what autograd cannot do is what torch.func cannot do."""
    try:
        return fn.exact_plain.run(x, of_pass)
    except (ArgumentError, MemoryError):
        raise
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        raise CannotTransformError(str(error)) from error
