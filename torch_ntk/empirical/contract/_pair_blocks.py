"""The sum of all parameters' contributions, block of rows by block of columns."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..._types import Output
from ...memory import ranges
from .._job import KernelJob
from .._outputs import mirror_, settled, transposed, zeros
from .._parts import Kernels
from .._stages import stage
from ._factors import Factor, Factors, GramFactor, JacobianFactor
from ._jacobian_pieces import blocks
from ._piece_sizes import piece_sizes
from ._products import add_, add_product_

# More blocks save little. With a single one kernels of MLPs and CNNs take 6 to 24 % longer.
_MOST_BLOCKS = 8


class PairBlocks:
    """Writes the kernels of a job, from the factors of blocks of samples.

    Attributes:
        kernels: The results.
    """

    def __init__(self, job: KernelJob) -> None:
        self._job = job
        self.kernels: Kernels = job.empty_kernels()
        self._like = torch.zeros((), dtype=job.fn.products, device=job.fn.device)

    def add_square(self, start: int, stop: int, factors: Factors) -> None:
        """Write the kernels of the samples `start … stop` of x1 among themselves."""
        output, outputs = self._job.output, self._job.outputs
        for key, result in self.kernels.items():
            parts = [part for name, part in factors.items() if name[0] == key]
            with stage("products"):
                _add_square(result[start:stop, start:stop], parts, output, outputs)

    def add_block(
        self, rows: tuple[int, int], columns: tuple[int, int], left: Factors, right: Factors
    ) -> None:
        """Write the kernels between two blocks of samples, and their transposes if x2 is x1.

        The factors of the columns are removed, so that each is freed after use.
        """
        (a, b), (c, d) = rows, columns
        output = self._job.output
        for key, result in self.kernels.items():
            block = zeros(output, b - a, d - c, self._job.outputs, self._like)
            with stage("products"):
                for name, part in left.items():
                    if name[0] == key:
                        add_(block, part, right.pop(name), output)
                result[a:b, c:d] = settled(block, output)
            if self._job.x2 is None:
                result[c:d, a:b] = transposed(result[a:b, c:d])


def _add_square(square: Tensor, parts: list[Factor], output: Output, outputs: int) -> None:
    """Write the kernel of some samples among themselves, half of which is computed.

    The blocks go row by row from the diagonal to the right. All contributions are added while a
    block is in the cache, and then it is mirrored. Factors with many positions have many rows for
    a sample, and are divided further.
    """
    n = square.shape[0]
    rows = outputs if output == "full" else 1
    # Factors whose features or columns are not stored are contracted first, for all samples.
    passing = [part for part in parts if part.passes]
    kept = [part for part in parts if not part.passes]
    strips = list(ranges(0, n, _samples(n, rows, piece_sizes(square.device).rows, _blocks(parts))))
    total = zeros(output, n, n, outputs, square) if passing else None
    for part in passing:
        assert total is not None
        _add_passing(total, part, strips, output)
    for a, b in strips:
        if total is None:
            block = zeros(output, b - a, n - a, outputs, square)
        else:
            block = _strip(total, a, b, output)
        for part in kept:
            _add_strip(block, part, a, b, output)
        mirror_(block, b - a, output)
        square[a:b, a:] = settled(block, output)
        square[b:, a:b] = transposed(square[a:b, b:])


def _add_passing(
    total: Tensor, part: Factor, strips: list[tuple[int, int]], output: Output
) -> None:
    """Add a factor that `passes`, whose features or columns are made here and then freed."""
    if isinstance(part, JacobianFactor):
        n, rows = part.samples, part.outputs if output == "full" else 1
        matrices = total if output == "diagonal" else total.view(1, n * rows, n * rows)
        for (j,) in blocks([part.pieces], output, total.dtype):
            for a, b in ((a * rows, b * rows) for a, b in strips):
                add_product_(matrices[:, a:b, a:], j[:, a:b], j[:, a:])
        return
    assert isinstance(part, GramFactor)
    gathered = part.gathered(total.dtype)
    for a, b in strips:
        _add_strip(_strip(total, a, b, output), gathered, a, b, output)


def _strip(total: Tensor, a: int, b: int, output: Output) -> Tensor:
    """Return the samples `a … b` by `a …` of a block; see `_outputs.zeros`."""
    first, second = (1, 2) if output == "diagonal" else (0, 2 if output == "full" else 1)
    return total.narrow(first, a, b - a).narrow(second, a, total.shape[second] - a)


def _add_strip(block: Tensor, part: Factor, a: int, b: int, output: Output) -> None:
    """Add a factor between the samples `a … b` and `a …`, from the diagonal to the right."""
    n = part.samples
    rows = part.outputs if output == "full" else 1
    size = piece_sizes(block.device)
    step = _samples(n, rows * part.positions, size.rows, _blocks([part]))
    if isinstance(part, GramFactor) and part.between:
        step = _samples(n, part.positions, size.tall, _MOST_BLOCKS)
    for c, d in ranges(a, b, min(b - a, step)):
        if d - c == n:
            add_(block, part, part, output)
        else:
            below = _strip(block, c - a, d - a, output)
            add_(below, part.narrow(c, d), part.narrow(c, n), output)


def _blocks(parts: Sequence[Factor]) -> int:
    """Return the number of blocks of rows with which all products take the least time.

    A product with M multiplications takes (1 + 1/k) M / 2 of them with k blocks of rows, because of
    symmetry, plus the time of c multiplications to set up each block: the minimum is at
    k² = M / (2 c).
    """
    if not parts:
        return 1
    total = sum(part.multiplications for part in parts)
    overhead = piece_sizes(parts[0].device).overhead * len(parts)
    return max(1, min(_MOST_BLOCKS, round(math.sqrt(total / (2 * overhead)))))


def _samples(n: int, rows: int, least: int, most: int) -> int:
    """Return the samples per block, such that there are `least` rows and at most `most` blocks."""
    return max(-(-least // rows), -(-n // most))
