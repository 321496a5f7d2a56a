"""Kernel columns as products with vectors: a vjp for each column, then one jvp for all rows.

Column (m, j) of the kernel is J1 · (J2[m]ᵀ e_j): the inner vector is a vjp of sample m, the
outer product a jvp of every sample of x1 in that direction. A sample's Jacobian is never
formed (Novak et al. 2022).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import jvp, vjp, vmap

from .._checks import ArgumentError, value_error
from .._functional import (
    CANNOT_TRANSFORM,
    ModelFunction,
    check_batching,
    failure,
)
from .._types import Output, Parameters
from ..memory import Backoff, check_enough, is_out_of_memory, plan, ranges
from ._outputs import add_columns_, shape, symmetrize_, transposed
from ._parts import Kernels, Keys, distinct
from ._trial import Trial


def _pullback(fn: ModelFunction, sample: Tensor) -> Callable[[Tensor], tuple[Parameters]]:
    pull: Callable[[Tensor], tuple[Parameters]]
    pull = vjp(lambda p: fn.single(p, sample), fn.params)[1]
    return pull


def _directions(fn: ModelFunction, x: Tensor, basis: Tensor) -> Parameters:
    """The vjps of every sample of `x` [m, ...] with every row of `basis` [c, O]: `[m·c, ...]`."""

    def one(sample: Tensor) -> Parameters:
        pull = _pullback(fn, sample)
        grads: Parameters = vmap(lambda e: pull(e)[0])(basis)
        return grads

    count = x.shape[0] * basis.shape[0]
    try:
        # A wrong batching rule may also return other shapes: reshape raises then.
        grads = {k: v.reshape(count, *fn.params[k].shape) for k, v in vmap(one)(x).items()}
        weights = _weights(basis.shape[0], basis)
        last = {k: _combined(weights, v[-len(weights) :]) for k, v in grads.items()}
        check_batching(last, _pullback(fn, x[-1])(weights @ basis)[0])
    except CANNOT_TRANSFORM as error:
        if is_out_of_memory(error):
            raise
        columns = []
        for sample in x:
            pull = _pullback(fn, sample)
            columns.append([pull(e)[0] for e in basis])
        return {k: torch.stack([g[k] for row in columns for g in row]) for k in fn.params}
    return grads


def _product(fn: ModelFunction, sample: Tensor, direction: Parameters) -> Tensor:
    """The jvp of one sample in one direction: `[O]`."""
    product: Tensor = jvp(lambda p: fn.single(p, sample), (fn.params,), (direction,))[1]
    return product


def _products(fn: ModelFunction, x: Tensor, directions: Parameters) -> Tensor:
    """The jvps of each of the samples `x` [n, ...] in each of `c` directions: `[c, n, O]`."""
    count = next(iter(directions.values())).shape[0]
    try:
        products: Tensor = vmap(lambda v: vmap(lambda s: _product(fn, s, v))(x))(directions)
        products = products.reshape(count, x.shape[0], -1)
        weights = _weights(count, products)
        combined = {k: _combined(weights, v) for k, v in directions.items()}
        check_batching({"f": weights @ products[:, -1]}, {"f": _product(fn, x[-1], combined)})
    except CANNOT_TRANSFORM as error:
        if is_out_of_memory(error):
            raise
        each = [{k: v[i] for k, v in directions.items()} for i in range(count)]
        products = torch.stack([torch.stack([_product(fn, s, v) for s in x]) for v in each])
    return products


def _weights(n: int, like: Tensor) -> Tensor:
    """Weights of a sum in which no two terms can change places unnoticed."""
    return torch.linspace(1.0, 0.5, n, dtype=like.dtype, device=like.device)


def _combined(weights: Tensor, rows: Tensor) -> Tensor:
    return torch.einsum("c,c...->...", weights, rows)


def _check_forward_mode(fn: ModelFunction, x: Tensor, outputs: int) -> None:
    """The derivative forwards must be the transpose of the one backwards.

    It is not where a forward stops gradients with `torch.no_grad()` (forward mode does not stop
    there) or where an autograd.Function defines a `jvp` that does not belong to its `backward`.
    With g = Jᵀu, `⟨u, J g⟩ = ‖g‖²`, a sum without cancellation.
    """
    u = _weights(outputs, next(iter(fn.params.values())))
    directions = _directions(fn, x[:1], u[None])
    forwards = float(_products(fn, x[:1], directions).flatten() @ u)
    backwards = sum(float(v.square().sum()) for v in directions.values())
    if not math.isfinite(backwards):
        return  # the kernel will not be finite either, and says more about it
    if not abs(forwards - backwards) <= 100 * torch.finfo(fn.dtype).eps ** 0.5 * backwards:
        raise value_error(
            "method",
            "'jacobian' for this model",
            "'vector_product', but its derivative in forward mode is not the one of its "
            f"backward pass ({forwards:.6g} instead of {backwards:.6g})",
            "Its forward may use torch.no_grad(), which forward mode ignores: "
            "x.detach() works in both.",
        )


def bytes_per_column(fn: ModelFunction, trial: Trial) -> int:
    """Memory of one vjp of one sample: the direction, and the activations of its backward pass."""
    item = torch.finfo(fn.dtype).bits // 8
    return 2 * item * sum(p.numel() for p in fn.params.values()) + 2 * trial.activation_bytes


def kernel(
    fn: ModelFunction,
    x1: Tensor,
    x2: Tensor | None,
    output: Output,
    trial: Trial,
    batch_size: int | None,
    advance: Callable[[int], None],
    keys: Keys,
) -> Kernels:
    """The kernels `Θ(x1, x2)`, or the exactly symmetric `Θ(x1, x1)` if `x2` is None."""
    if trial.writes:
        raise value_error(
            "method",
            "'structured' or 'jacobian' for this model",
            "'vector_product', but its forward writes to its parameters in place, also to "
            "their derivatives in forward mode",
            "Let the forward use new tensors: self.weight.clamp(-1, 1).",
        )
    other = x1 if x2 is None else x2
    n1, n2, o = x1.shape[0], other.shape[0], trial.outputs
    check_enough(bytes_per_column(fn, trial) + 4 * trial.activation_bytes)
    # Rows share the memory with the columns: as many directions as one block of rows allows.
    rows = batch_size or plan(n1, 4 * trial.activation_bytes, fn.device)
    per_column = bytes_per_column(fn, trial) + 2 * rows * trial.activation_bytes
    at_once = plan(n2 * o, per_column, fn.device)
    samples = batch_size or max(1, at_once // o)
    outputs = max(1, min(o, at_once // samples))
    basis = torch.eye(o, dtype=fn.dtype, device=fn.device)
    dims = shape(output, n1, n2, o)
    results = {key: basis.new_zeros(dims) for key in distinct(keys)}
    blocks = Backoff(n2, samples, within=max(rows, outputs))

    def columns(start: int, stop: int) -> None:
        top = start if x2 is None else 0  # above stands what was mirrored
        for result in results.values():
            result[top:, start:stop] = 0
        for i, k in ranges(0, o, blocks.cut(outputs)):
            directions = _directions(fn, other[start:stop], basis[i:k])
            for key, result in results.items():
                # A part of the kernel is the derivative along a part of the direction.
                own = {
                    n: v if keys[n] == key else torch.zeros_like(v) for n, v in directions.items()
                }
                for a, b in ranges(top, n1, blocks.cut(rows)):
                    products = _products(fn, x1[a:b], own).view(stop - start, k - i, b - a, o)
                    add_columns_(result[a:b, start:stop], products, i, output)
        if x2 is None:
            for result in results.values():
                symmetrize_(result[start:stop, start:stop])
                result[start:stop, stop:] = transposed(result[stop:, start:stop])
        advance(stop - start)

    try:
        Backoff(1, 1).run(lambda _start, _stop: _check_forward_mode(fn, x1, o))
        blocks.run(columns)
    except CANNOT_TRANSFORM as error:
        if is_out_of_memory(error) or isinstance(error, ArgumentError):
            raise
        raise failure(
            error,
            "differentiate the outputs of the model forwards",
            "method='jacobian' needs only backward passes.",
        ) from error
    return results
