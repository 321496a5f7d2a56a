"""What a block goes through in fused loops, from buffer to buffer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ....activations import DualActivation
from ...operations import Affine, Buffers
from .._task import Task
from ._layout import Layout, inside, shifts, tap_weights
from ._loops import Function, ImageTerms, Loop, Sums, Weights, Window, activation, filtering, layer


class LoopBuffers:
    """The loops of one network, and the buffers between them.

    Buffers are `[..., P + margins, Q + margins]` and are used again and again, so a block stays in
    cache on its way through the network.

    Args:
        task: What is evaluated.
        layout: How values are arranged.
        loop: What the loops are made for. Its shape is that of the buffers: axes of pairs and
            displacements, or of images and images, before the positions.
        like: A tensor of the type and on the device of the computation.
    """

    def __init__(self, task: Task, layout: Layout, loop: Loop, like: Tensor) -> None:
        self.loop = loop
        self._layout = layout
        self._like = like
        self._ntk = task.ntk
        self._free: list[Tensor] = []
        self._functions: dict[tuple[int, bool], Function] = {}
        self._layers = {
            i: self._weights(operation)
            for i in layout.steps
            if isinstance(operation := task.program.steps[i].operation, Affine)
        }

    # -- buffers -------------------------------------------------------------------------------

    def take(self) -> Tensor:
        """A buffer; its margins are 0, or show the other side of the image."""
        return self._free.pop() if self._free else self._like.new_zeros(self.loop.shape)

    def give_back(self, *buffers: Tensor | None) -> None:
        """Say that buffers are not needed any more."""
        self._free.extend(b for b in buffers if b is not None)

    def inside(self, a: Tensor) -> Tensor:
        """A buffer without its margins."""
        above, _, left, _ = self._layout.margin
        p, q = self._layout.size
        return a[..., above : above + p, left : left + q]

    def _inside(self, pair: Buffers) -> Buffers:
        k, t = pair
        return self.inside(k), None if t is None else self.inside(t)

    def _new(self, ntk: bool) -> Buffers:
        return self.take(), self.take() if ntk else None

    def _wrap(self, a: Tensor) -> None:
        """Fill the margins with the other side of the image, on axes that close in a circle."""
        above, below, left, right = self._layout.margin
        p, q = self._layout.size
        if self._layout.wraps[0]:
            a[..., :above, :] = a[..., p : p + above, :]
            a[..., above + p :, :] = a[..., above : above + below, :]
        if self._layout.wraps[1]:
            a[..., :left] = a[..., q : q + left]
            a[..., left + q :] = a[..., left : left + right]

    # -- operations ----------------------------------------------------------------------------

    def activation(
        self, i: int, dual: DualActivation, taken: Buffers, images: ImageTerms
    ) -> Buffers:
        """Step i, an activation, with what its dual needs of either image."""
        ntk = taken[1] is not None
        if (i, ntk) not in self._functions:
            self._functions[i, ntk] = activation(dual, ntk, self.loop)
        made = self._new(ntk)
        self._functions[i, ntk](self._inside(taken), images, self._inside(made))
        return made

    def put_identical(
        self, dual: DualActivation, taken: Buffers, made: Buffers, pairs: Tensor, q: Tensor
    ) -> None:
        """Put in what is known of images with themselves: at displacement 0 they are equal.

        Args:
            dual: Of the activation.
            taken: What it took.
            made: What it made, corrected in place.
            pairs: Which pairs of the block are an image with itself.
            q: Variances of these images, `[len(pairs), P, Q]`.
        """
        kappa, slope = dual.diagonal(q)
        self.inside(made[0])[pairs, 0, 0] = kappa
        if made[1] is not None and taken[1] is not None:
            self.inside(made[1])[pairs, 0, 0] = self.inside(taken[1])[pairs, 0, 0] * slope

    def affine(self, i: int, taken: Buffers, start: tuple[int, int], sums: Sums) -> Buffers:
        """Step i, a layer of weights, for the displacements from `start` on."""
        window, weights = self._read(i, taken, start)
        ntk = taken[1] is not None
        if (i, ntk) not in self._functions:
            self._functions[i, ntk] = filtering(window, ntk, self._ntk, self.loop)
        made = self._new(self._ntk)
        self._functions[i, ntk](taken, weights, sums, self._inside(made))
        return made

    def layer(
        self, i: int, dual: DualActivation, taken: Buffers, start: tuple[int, int], sums: Sums,
        images: ImageTerms,
    ) -> Buffers:  # fmt: skip
        """Step i, a layer of weights, and the activation that takes its value."""
        window, weights = self._read(i, taken, start)
        ntk = taken[1] is not None
        if (~i, ntk) not in self._functions:  # apart from the layer alone, which `affine` may need
            made_by = layer(window, dual, ntk, self._ntk, self.loop)
            self._functions[~i, ntk] = made_by
        made = self._new(self._ntk)
        self._functions[~i, ntk](taken, weights, sums, images, self._inside(made))
        return made

    def _read(self, i: int, taken: Buffers, start: tuple[int, int]) -> tuple[Window, Weights]:
        """Fill the margins of what a layer reads; its taps and their weights for the block."""
        for a in taken:
            if a is not None:
                self._wrap(a)
        window, weights = self._layers[i]
        if not self.loop.distance:
            d1, d2 = self.loop.shape[-4:-2]
            weights = weights._replace(
                rows=weights.rows[:, :, start[0] : start[0] + d1],
                columns=weights.columns[:, :, :, start[1] : start[1] + d2],
            )
        return window, weights

    def weighted(self, taken: Sequence[Buffers], shares: Sequence[float]) -> Buffers:
        """The sum of values with constant weights."""
        first = self._weighted([k for k, _ in taken], shares)
        with_ntk = [(t, s) for (_, t), s in zip(taken, shares, strict=True) if t is not None]
        if not with_ntk:
            return first, None
        return first, self._weighted([t for t, _ in with_ntk], [s for _, s in with_ntk])

    def _weighted(self, buffers: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
        out = self.take()
        into = self.inside(out)
        torch.mul(self.inside(buffers[0]), shares[0], out=into)
        for buffer, share in zip(buffers[1:], shares[1:], strict=True):
            into.add_(self.inside(buffer), alpha=share)
        return out

    def total(
        self, a: Tensor, positions: tuple[int, int], start: tuple[int, int], skip: tuple[int, int]
    ) -> Tensor:
        """The sum over positions and displacements, `[pairs]`.

        Args:
            a: A buffer.
            positions: How many positions the value has.
            start: The first displacement of the block.
            skip: Displacements at the beginning of the block that another block has counted.
        """
        size = self._layout.size
        a = self.inside(a)[:, skip[0] :, skip[1] :]
        if positions != size:
            (s1, s2), (d1, d2) = start, self.loop.shape[-4:-2]
            rows = inside(positions[0], size[0], a)[s1 + skip[0] : s1 + d1, None, :, None]
            columns = inside(positions[1], size[1], a)[None, s2 + skip[1] : s2 + d2, None, :]
            a = a * rows * columns
        return a.sum(dim=(1, 2, 3, 4))

    def _weights(self, operation: Affine) -> tuple[Window, Weights]:
        """Where the taps read, their weights along either axis, and what is added."""
        size, margin = self._layout.size, self._layout.margin
        moved = shifts(operation.rows, size[0]), shifts(operation.columns, size[1])
        assert moved[0] is not None
        assert moved[1] is not None
        rows = tap_weights(operation.rows, size[0], self._like)
        columns = tap_weights(operation.columns, size[1], self._like)
        factor = operation.weight_variance / (len(rows) * len(columns))
        own = operation.weight_gradient / operation.weight_variance
        added = [operation.bias_variance, own, operation.bias_gradient]
        rows = rows * factor
        if self.loop.distance:  # the same position has displacement 0
            rows, columns = rows[:, 0, None, None, :, None], columns[:, 0, None, None, None, :]
        else:
            rows, columns = rows[:, None, :, None, :, None], columns[:, None, None, :, None, :]
        window = Window(moved[0], moved[1], size, (margin[0], margin[2]))
        return window, Weights(
            rows.contiguous(), columns.contiguous(), self._like.new_tensor(added)
        )
