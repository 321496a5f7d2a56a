"""A network at the same positions of both images, block by block in compiled loops."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ....memory import even
from ...operations import (
    FEW_CHANNELS,
    Activation,
    Buffers,
    Flatten,
    Input,
    State,
    close_pairs,
    products,
    spread,
)
from .._task import Block, Images, Task
from ._buffers import LoopBuffers
from ._displacements import BLOCK_BYTES, BLOCK_BYTES_ON_GPU
from ._layout import Layout
from ._loops import ImageTerms, Loop, differences, from_products
from ._walk import FusedEvaluation, Walk

# Numbers that are kept of what activations need of the images.
_KEPT = 1 << 23

_Key = tuple[int, int, int, int]


class SamePositionEvaluation(FusedEvaluation):
    """Everything up to the flattening, or to the end, as distances.

    Args:
        task: What is evaluated.
        layout: How it is arranged.
        like: A tensor of the type and on the device of the computation.
        shape: The size of the matrix.
    """

    fixed = True

    def __init__(self, task: Task, layout: Layout, like: Tensor, shape: tuple[int, int]) -> None:
        self._task = task
        self._layout = layout
        self.end = layout.end
        p, q = layout.size
        bytes_ = BLOCK_BYTES if like.device.type == "cpu" else BLOCK_BYTES_ON_GPU
        pairs = max(1, bytes_ // (like.element_size() * p * q))
        # Square, so that a symmetric matrix wastes little.
        columns = even(shape[1], math.isqrt(pairs))
        self.block = even(shape[0], pairs // columns), columns
        self._kept: dict[_Key, ImageTerms] = {}
        loop = Loop(True, (*self.block, *layout.buffer), like.dtype, like.device, True)
        self._buffers = LoopBuffers(task, layout, loop, like)

    def __call__(self, block: Block) -> State:
        """The mean over positions, or a copy, as buffers are used again."""
        walk = _Walk(self._task, self._layout, self._buffers)
        made = walk.of(block, self._kept)
        steps = self._task.program.steps
        flatten = isinstance(steps[self._layout.end].operation, Flatten)
        p, q = steps[self._layout.steps[-1]].positions
        parts = [self._buffers.inside(a)[..., :p, :q] for a in made if a is not None]
        nngp, *rest = [a.mean(dim=(-2, -1), keepdim=True) if flatten else a.clone() for a in parts]
        self._buffers.give_back(*made)
        ntk = rest[0] if rest else nngp.new_zeros(()) if self._task.ntk else None
        return State(nngp, ntk, True, False)


class _Walk(Walk):
    """A block of pairs of images."""

    def of(self, block: Block, kept: dict[_Key, ImageTerms]) -> Buffers:
        """The value before the end.

        Args:
            block: The pairs.
            kept: What activations need of the images, as a row of blocks has images in common.
        """
        self._block, self._kept = block, kept
        return self.run()

    def _input(self, step: int, features: Input) -> Buffers:
        x1 = features.both[0][self._block.rows.slice]
        x2 = features.both[1][self._block.columns.slice]
        p, q = x1.shape[-2:]
        d = self._buffers.take()
        into = self._buffers.inside(d)[..., :p, :q]
        channels, loop = x1.shape[1], self._buffers.loop
        if channels <= FEW_CHANNELS:
            differences(channels, loop)(x1, x2, into)
            return d, None
        variances = self._block.variances(step, False)
        assert variances is not None
        from_products(channels, loop)(products(x1, x2), *variances, into)
        itself = self._of_themselves(into)
        if itself is not None:
            itself.fill_(torch.inf)  # known already
        close = close_pairs(into, x1, x2, variances)
        if close is not None:
            into[close[0]] = close[1]
        if itself is not None:
            itself.zero_()
        return d, None

    def _of_themselves(self, d: Tensor) -> Tensor | None:
        """The distances of images to themselves in a block `[n1, n2, P, Q]`, if it has any."""
        one, two = self._block.rows, self._block.columns
        start, stop = max(one.start, two.start), min(one.stop, two.stop)
        if not self._task.symmetric or start >= stop:
            return None
        rows = slice(start - one.start, stop - one.start)
        columns = slice(start - two.start, stop - two.start)
        return d[rows, columns].diagonal(dim1=0, dim2=1)

    def _images(self, step: int) -> ImageTerms:
        return (*self._image(step, self._block.rows, 0), *self._image(step, self._block.columns, 1))

    def _image(self, step: int, images: Images, side: int) -> ImageTerms:
        """What an activation needs of the images of one side, shaped to go with the block."""
        key = (step, side, images.start, images.stop)
        if key not in self._kept:
            operation = self._task.program.steps[step].operation
            assert isinstance(operation, Activation)
            q = images.variances[self._task.program.steps[step].inputs[0]]
            assert q is not None
            if sum(a.numel() for kept in self._kept.values() for a in kept) > _KEPT:
                self._kept.clear()
            parts = operation.dual.images(q)
            self._kept[key] = tuple(spread(self._layout.padded(a), side, False) for a in parts)
        return self._kept[key]

    def _sums(self, step: int) -> tuple[Tensor, Tensor]:
        """The variances of a layer on either side, shaped to go with the block."""
        sides = enumerate((self._block.rows, self._block.columns))
        one, two = (
            spread(self._layout.padded(q), side, False)
            for side, images in sides
            if (q := images.variances[step]) is not None
        )
        return one, two
