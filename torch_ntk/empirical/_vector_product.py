"""Kernel columns as products with vectors: a vjp for each column, then one jvp for all rows.

Column (m, j) of the kernel is J1 · (J2[m]ᵀ e_j): the inner vector is a vjp of sample m, the
outer product a jvp of the whole batch x1 in that direction. A sample's Jacobian is never
formed (Novak et al. 2022, section 3.2).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import jvp, vjp, vmap

from .._functional import ModelFunction, failure, is_out_of_memory
from .._types import Output, Parameters
from ._blocks import Backoff, plan, ranges
from ._outputs import reduce_full, shape, symmetrize_, transposed
from ._trial import Trial


def _directions(fn: ModelFunction, x: Tensor, basis: Tensor) -> Parameters:
    """vjps of every sample of `x` [m, ...] with every row of `basis` [c, O]: `[m·c, ...]`."""

    def one(sample: Tensor) -> Parameters:
        _, pull = vjp(lambda p: fn.single(p, sample), fn.params)
        grads: Parameters = vmap(lambda e: pull(e)[0])(basis)
        return grads

    try:
        grads = vmap(one)(x)
    except (RuntimeError, NotImplementedError, ValueError) as error:
        if is_out_of_memory(error):
            raise
        columns = []
        for sample in x:
            _, pull = vjp(lambda p, s=sample: fn.single(p, s), fn.params)
            columns.append([pull(e)[0] for e in basis])
        return {k: torch.stack([g[k] for row in columns for g in row]) for k in fn.params}
    return {k: v.flatten(0, 1) for k, v in grads.items()}


def _products(fn: ModelFunction, x: Tensor, directions: Parameters) -> Tensor:
    """jvps of the batch `x` [n, ...] in each of `c` directions: `[c, n, O]`."""

    def one(v: Parameters) -> Tensor:
        product: Tensor = jvp(lambda p: fn.batch(p, x), (fn.params,), (v,))[1]
        return product

    try:
        return vmap(one)(directions)
    except (RuntimeError, NotImplementedError, ValueError) as error:
        if is_out_of_memory(error):
            raise
        count = next(iter(directions.values())).shape[0]
        return torch.stack([one({k: v[i] for k, v in directions.items()}) for i in range(count)])


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
) -> Tensor:
    """The kernel `Θ(x1, x2)`, or the exactly symmetric `Θ(x1, x1)` if `x2` is None."""
    other = x1 if x2 is None else x2
    n1, n2, o = x1.shape[0], other.shape[0], trial.outputs
    # Rows share the memory with the columns: as many directions as one block of rows allows.
    rows = batch_size or plan(n1, 4 * trial.activation_bytes, fn.device)
    per_column = bytes_per_column(fn, trial) + 2 * rows * trial.activation_bytes
    at_once = plan(n2 * o, per_column, fn.device)
    outputs = min(o, at_once)
    samples = batch_size or max(1, at_once // o)
    basis = torch.eye(o, dtype=fn.dtype, device=fn.device)
    result = torch.zeros(shape(output, n1, n2, o), dtype=fn.dtype, device=fn.device)

    def columns(start: int, stop: int) -> None:
        first_row = start if x2 is None else 0
        block = torch.zeros(n1 - first_row, stop - start, o, o, dtype=fn.dtype, device=fn.device)
        for i, k in ranges(0, o, outputs):
            directions = _directions(fn, other[start:stop], basis[i:k])
            for a, b in ranges(first_row, n1, rows):
                products = _products(fn, x1[a:b], directions)  # [m·c, n, O]
                shaped = products.view(stop - start, k - i, b - a, o)
                block[a - first_row : b - first_row, :, :, i:k] = shaped.permute(2, 0, 3, 1)
        kept = reduce_full(block, output)
        result[first_row:, start:stop] = kept
        if x2 is None:
            symmetrize_(result[start:stop, start:stop])
            result[start:stop, stop:] = transposed(result[stop:, start:stop])
        advance(stop - start)

    try:
        Backoff(n2, samples).run(columns)
    except (RuntimeError, NotImplementedError) as error:
        if is_out_of_memory(error):
            raise
        raise failure(error, "differentiate the outputs of the model forwards") from error
    return result
