"""A network with a global average, evaluated by blocks of displacements; see `_layout.py`."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ....activations import DualActivation
from ...operations import Activation, Buffers, Input, Pool, State
from .._task import Block, Images, Task
from ._buffers import LoopBuffers
from ._layout import Layout, twice, windows
from ._loops import ImageTerms, Loop, products
from ._walk import FusedEvaluation, Walk

# Bytes of one array of a block. About six are alive; they are to stay in the caches of a CPU.
BLOCK_BYTES = 1 << 20
BLOCK_BYTES_ON_GPU = 1 << 27
# Images on a side of a block, whose pairs are computed one after the other.
_SIDE = 8

_Known = dict[int, ImageTerms]
"""Per step what it needs to know of the images of one side."""


class DisplacementEvaluation(FusedEvaluation):
    """Everything up to the average over all positions.

    Args:
        task: What is evaluated.
        layout: How it is arranged.
        like: A tensor of the type and on the device of the computation.
        shape: The size of the matrix.
        compile: Whether to compile the loops.
    """

    fixed = False

    def __init__(
        self, task: Task, layout: Layout, like: Tensor, shape: tuple[int, int], compile: bool
    ) -> None:
        self._task = task
        self._layout = layout
        self._like = like
        self.end = layout.end
        p, q = layout.size
        bytes_ = BLOCK_BYTES if like.device.type == "cpu" else BLOCK_BYTES_ON_GPU
        entries = bytes_ // like.element_size()
        columns = max(1, min(q, entries // (p * q)))
        self._pairs = max(1, entries // (p * q * p * q))
        side = max(_SIDE, math.isqrt(self._pairs - 1) + 1)
        self.block = min(shape[0], side), min(shape[1], side)
        self._displacements = (max(1, min(p, entries // (p * q * columns))), columns)
        lead = (self._pairs, *self._displacements)
        loop = Loop(compile, (*lead, *layout.buffer), like.dtype, like.device)
        self._buffers = LoopBuffers(task, layout, loop, like)

    def __call__(self, block: Block) -> State:
        """The average for the pairs of a block, `[n1, n2, 1, 1]`.

        Of a symmetric matrix, only the pairs on and above its diagonal are computed.
        """
        rows, columns = torch.meshgrid(*(torch.arange(n) for n in block.shape), indexing="ij")
        wanted = torch.ones(block.shape, dtype=torch.bool)
        if self._task.symmetric:
            wanted = rows + block.rows.start <= columns + block.columns.start
        rows, columns = rows[wanted], columns[wanted]
        k = self._like.new_zeros(*block.shape, 1, 1)
        t = torch.zeros_like(k) if self._task.ntk else None
        for start in range(0, len(rows), self._pairs):
            # Every group has one size: the last one repeats its last pair.
            chosen = torch.arange(start, start + self._pairs).clamp(max=len(rows) - 1)
            r, c = rows[chosen], columns[chosen]
            k[r, c, 0, 0], found = self._group(block, r, c)
            if t is not None and found is not None:
                t[r, c, 0, 0] = found
        return State(k, t, False, False)

    def _group(self, block: Block, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor | None]:
        """The averages for some pairs, `[pairs]`."""
        first, second = self._known(block, rows, columns)
        identical = self._identical(block, rows, columns)
        totals = [self._like.new_zeros(len(rows)) for _ in range(1 + self._task.ntk)]
        steps = self._task.program.steps
        positions = steps[self._layout.steps[-1]].positions
        (p, q), (d1, d2) = self._layout.size, self._displacements
        for a in range(0, p, d1):
            for b in range(0, q, d2):
                # Every block has one size: the last one begins with what was counted before.
                start = min(a, p - d1), min(b, q - d2)
                seen = {
                    i: (*first[i], *(windows(x, start, (d1, d2)) for x in second[i])) for i in first
                }
                walk = _Walk(self._task, self._layout, self._buffers, start)
                made = walk.of(seen, identical if start == (0, 0) else {})
                for total, buffer in zip(totals, made, strict=False):
                    if buffer is not None:
                        skip = a - start[0], b - start[1]
                        total += self._buffers.total(buffer, positions, start, skip)
                self._buffers.give_back(*made)
        pool = steps[self._layout.end].operation
        assert isinstance(pool, Pool)
        factor = float(pool.rows[0, 0] * pool.columns[0, 0]) ** 2
        return totals[0] * factor, totals[1] * factor if self._task.ntk else None

    def _known(self, block: Block, rows: Tensor, columns: Tensor) -> tuple[_Known, _Known]:
        """What steps need of the images: inputs, and what activations make of the variances.

        Of the second images, four copies side by side, in which a displacement is an offset.
        """
        first: _Known = {}
        second: _Known = {}
        for i in self._layout.steps:
            operation = self._task.program.steps[i].operation
            if isinstance(operation, Input):
                x1, x2 = operation.both
                one: ImageTerms = (x1[block.rows.slice][rows],)
                two: ImageTerms = (x2[block.columns.slice][columns],)
            elif isinstance(operation, Activation):
                # Outside of a value that is smaller than the room: any number, weighted by 0.
                one = operation.dual.images(self._variances(i, block.rows)[rows])
                two = operation.dual.images(self._variances(i, block.columns)[columns])
            else:
                continue
            first[i] = tuple(self._layout.padded(a)[..., None, None, :, :] for a in one)
            second[i] = tuple(twice(self._layout.padded(a)) for a in two)
        return first, second

    def _identical(
        self, block: Block, rows: Tensor, columns: Tensor
    ) -> dict[int, tuple[Tensor, Tensor]]:
        """Per activation the pairs of identical images, and the variances of these images."""
        same = self._task.identical(rows + block.rows.start, columns + block.columns.start)
        found = same.nonzero()[:, 0]
        if not len(found):
            return {}
        return {
            i: (found, self._layout.padded(self._variances(i, block.rows)[rows[found]]))
            for i in self._layout.steps
            if isinstance(self._task.program.steps[i].operation, Activation)
        }

    def _variances(self, i: int, images: Images) -> Tensor:
        q = images.variances[self._task.program.steps[i].inputs[0]]
        assert q is not None
        return q


class _Walk(Walk):
    """A block of displacements."""

    def of(self, seen: _Known, identical: dict[int, tuple[Tensor, Tensor]]) -> Buffers:
        """The value before the average.

        Args:
            seen: Per step what it needs of both images at these displacements.
            identical: Per activation the pairs of identical images, and their variances. Where
                there are any, activations are loops of their own, to be corrected in between.
        """
        self._seen, self._identical = seen, identical
        if identical:
            self._merged = {}
        return self.run()

    def _input(self, step: int, features: Input) -> Buffers:
        k = self._buffers.take()
        x1, x2 = self._seen[step]
        products(x1.shape[1], self._buffers.loop)(x1, x2, self._buffers.inside(k))
        return k, None

    def _images(self, step: int) -> ImageTerms:
        return self._seen[step]

    def activation(self, step: int, dual: DualActivation, taken: Buffers) -> Buffers:
        """With the exact entries of identical images."""
        made = super().activation(step, dual, taken)
        if step in self._identical:
            self._buffers.put_identical(dual, taken, made, *self._identical[step])
        return made
