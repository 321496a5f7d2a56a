"""The five values of `output`: shapes of kernels, and operations on their output indices."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .._types import Output

OUTPUTS: tuple[Output, ...] = ("full", "trace", "mean", "diagonal", "pseudo")


def shape(output: Output, n1: int, n2: int, o: int) -> tuple[int, ...]:
    """Return the shape of the kernel between `n1` and `n2` samples with `o` outputs."""
    if output == "full":
        return (n1, n2, o, o)
    return (n1, n2, o) if output == "diagonal" else (n1, n2)


def row_bytes(output: Output, n2: int, o: int, dtype: torch.dtype) -> int:
    """Return the memory of a row of samples: a block that is summed, and a copy in final order."""
    return 3 * math.prod(shape(output, 1, n2, o)) * (torch.finfo(dtype).bits // 8)


def zeros(output: Output, n1: int, n2: int, o: int, like: Tensor) -> Tensor:
    """Return a block of zeros to which products are added, with the axes of a matrix product.

    The shape is `[n1, O, n2, O]` for `"full"` and `[O, n1, n2]` for `"diagonal"`. `settled`
    permutes the sum once, so that no contribution must be permuted.
    """
    dims: tuple[int, ...] = (n1, n2)
    if output == "full":
        dims = (n1, o, n2, o)
    elif output == "diagonal":
        dims = (o, n1, n2)
    return like.new_zeros(dims)


def settled(block: Tensor, output: Output) -> Tensor:
    """Return the block with the axes of `shape`."""
    if output == "full":
        return block.permute(0, 2, 1, 3)
    return block.permute(1, 2, 0) if output == "diagonal" else block


def add_columns_(kernel: Tensor, products: Tensor, first: int, output: Output) -> None:
    """Add the entries `Θ[n, m, :, first … first + c]`, `[m, c, n, O]`, to a block `[n, m, ...]`."""
    last = first + products.shape[1]
    if output == "full":
        kernel[..., first:last] += products.permute(2, 0, 3, 1)
        return
    diagonal = products[..., first:last].diagonal(dim1=1, dim2=3).transpose(0, 1)
    if output == "diagonal":
        kernel[..., first:last] += diagonal
    else:
        kernel += diagonal.sum(-1)


def transposed(kernel: Tensor) -> Tensor:
    """Return `Θ(x2, x1)` from `Θ(x1, x2)`, with the samples and the outputs exchanged."""
    return kernel.permute(1, 0, 3, 2) if kernel.ndim == 4 else kernel.transpose(0, 1)


def symmetrize_(kernel: Tensor) -> None:
    """Make `Θ(x, x)` exactly symmetric in place, by copying one triangle to the other.

    A matrix product may round entries (a, b) and (b, a) differently. The triangle is that of the
    pairs (sample, output), so that the diagonal blocks of a full kernel are symmetric, too.
    """
    pairs = kernel
    if kernel.ndim > 2:
        pairs = kernel.permute(0, 2, 1, 3) if kernel.ndim == 4 else kernel.permute(2, 0, 1)
    matrix = pairs.flatten(2).flatten(0, 1) if kernel.ndim == 4 else pairs
    pairs.copy_((matrix.triu() + matrix.triu(1).mT).view(pairs.shape))


def mirror_(block: Tensor, samples: int, output: Output) -> None:
    """Copy the entries above the diagonal of a block made by `zeros` to those below it.

    The samples of its rows are those of its first columns.
    """
    if output == "full":
        rows = samples * block.shape[1]
        block = block.view(rows, -1)[:, :rows]
    else:
        block = block[..., :samples]
    above = block.triu(1)
    block.triu_().add_(above.mT)


def joined(kernels: Sequence[dict[str, Tensor]], output: Output) -> dict[str, Tensor]:
    """Return the kernels of all outputs, by their keys, from those of groups of outputs."""
    first, *others = kernels
    if output == "diagonal":
        return {key: torch.cat([found[key] for found in kernels], dim=2) for key in first}
    for found in others:
        for key, kernel in first.items():
            kernel += found[key]
    return first


def finish(kernel: Tensor, output: Output, o: int) -> Tensor:
    """Apply the final division of `"mean"`, after all parameters have been added."""
    return kernel.div_(o) if output == "mean" else kernel


def advice(output: Output, o: int) -> str:
    """Return a sentence about cheaper outputs, for an error about memory."""
    if output == "full" and o > 1:
        return (
            f"output='diagonal' is {o} times smaller, output='mean', 'trace' and 'pseudo' are "
            f"{o * o} times smaller"
        )
    if output == "diagonal" and o > 1:
        return f"output='mean', 'trace' and 'pseudo' are {o} times smaller"
    return "compute it for fewer samples at a time, block by block"
