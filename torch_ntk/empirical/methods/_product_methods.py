"""Three methods for products with the Jacobian of a batch and with its transpose.

The first two evaluate all samples of the batch together: the sum over samples in Jᵀv is then part
of the backward pass, and the gradient of a single sample is never formed.
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


class ProductMethod(ABC):
    """A method for products with the Jacobian `J[n]`, `[O, P]`, of each sample n of a batch."""

    def bytes_per_sample(self, fn: ModelFunction, forward: Inspection) -> int:
        """Return the bytes that one sample takes in a product with one vector."""
        return 4 * forward.activation_bytes

    @abstractmethod
    def pull(self, fn: ModelFunction, x: Batch, v: Tensor) -> tuple[Tensor, Parameters]:
        """Return the outputs `[n, O]`, and `Σ_n J[n]ᵀ v[c, n]` as `{name: [c, ...]}`.

        Here v is `[c, n, O]`.
        """

    @abstractmethod
    def push(self, fn: ModelFunction, x: Batch, w: Parameters) -> Tensor:
        """Return `J[n] w[c]` as `[c, n, O]` for w `{name: [c, ...]}`."""


class FunctionalProducts(ProductMethod):
    """Products by torch.func, for several vectors at once; Jw in forward mode, without a graph."""

    def pull(self, fn: ModelFunction, x: Batch, v: Tensor) -> tuple[Tensor, Parameters]:
        """Make one forward pass, and a backward pass for each vector."""
        with transforming(), RightOperations():
            transformed = vjp(lambda p: fn.batch(p, x), fn.params)
            out, pull = transformed[0], transformed[1]
            rows = _for_each(lambda d: pull(d["v"])[0], {"v": v})
        return out.detach(), rows

    def push(self, fn: ModelFunction, x: Batch, w: Parameters) -> Tensor:
        """Make a jvp for each vector."""

        def one(direction: Parameters) -> Parameters:
            return {"f": jvp(lambda p: fn.batch(p, x), (fn.params,), (direction,))[1]}

        with transforming(), RightOperations():
            return _for_each(one, w)["f"]


class PlainProducts(ProductMethod):
    """Products by plain backward passes of the user's own module.

    Jw is the derivative of `⟨Jᵀu, w⟩` with respect to u.
    """

    def pull(self, fn: ModelFunction, x: Batch, v: Tensor) -> tuple[Tensor, Parameters]:
        """Make a backward pass for each vector."""

        def of_pass(found: PlainPass) -> tuple[Tensor, Parameters]:
            rows = [found.gradients(direction) for direction in v]
            return found.outputs.detach(), {k: torch.stack([r[k] for r in rows]) for k in rows[0]}

        return _run(fn, x, of_pass)

    def push(self, fn: ModelFunction, x: Batch, w: Parameters) -> Tensor:
        """Make two backward passes for each vector."""

        def of_pass(found: PlainPass) -> Tensor:
            count = next(iter(w.values())).shape[0]
            rows = [found.along({k: d[c] for k, d in w.items()}) for c in range(count)]
            return torch.stack(rows).detach()

        return _run(fn, x, of_pass)


class DenseProducts(ProductMethod):
    """Products with formed Jacobians of a block, for operations with first derivatives only."""

    def bytes_per_sample(self, fn: ModelFunction, forward: Inspection) -> int:
        """Return the bytes of a sample's Jacobian; the vectors add little."""
        return forward.outputs * 2 * fn.parameter_bytes + 4 * forward.activation_bytes

    def pull(self, fn: ModelFunction, x: Batch, v: Tensor) -> tuple[Tensor, Parameters]:
        """Return the weighted sums of the rows of the Jacobians."""
        rows = v.reshape(v.shape[0], -1)
        outputs, jacobians = plain_jacobians(fn, x, fn.params)
        return outputs, {
            k: (rows @ j.reshape(rows.shape[1], -1)).reshape(-1, *fn.params[k].shape)
            for k, j in jacobians.items()
        }

    def push(self, fn: ModelFunction, x: Batch, w: Parameters) -> Tensor:
        """Return the Jacobians times each vector."""
        products = [
            (j @ w[k].reshape(-1, j.shape[2]).T).permute(2, 0, 1)
            for k, j in plain_jacobians(fn, x, fn.params)[1].items()
        ]
        return torch.stack(products).sum(0)


PRODUCT_METHODS: tuple[type[ProductMethod], ...] = (
    FunctionalProducts,
    PlainProducts,
    DenseProducts,
)


def _for_each(one: Callable[[Parameters], Parameters], directions: Parameters) -> Parameters:
    """Return `one` of every direction: all at once, or one by one if vmap has no rule."""
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
    """Use a plain pass; an operation without the derivative raises `CannotTransformError`."""
    try:
        return fn.exact_plain.run(x, of_pass)
    except (ArgumentError, MemoryError):
        raise
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        raise CannotTransformError(str(error)) from error
