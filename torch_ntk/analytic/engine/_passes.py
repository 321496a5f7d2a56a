"""Operations on a block of displacements, from buffer to buffer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from .._ops import Activation, Affine, Program
from ._displacement import Layout, inside, shifts, weights
from ._loops import Function, Loop, Window, activation, filtering, layer, products

Pair: TypeAlias = tuple[Tensor, Tensor | None]
"""Buffers with margins that hold K and, if it is wanted and not 0 everywhere, Θ."""


class Passes:
    """What a block goes through, and the buffers for it.

    Buffers are `[..., P + margins, Q + margins]` and are used again and again, so a block stays in
    cache on its way through the network.

    Args:
        program: The network.
        layout: How values are arranged.
        lead: The axes before the positions: pairs and displacements, or images and images.
        like: A tensor of the type and on the device of the computation.
        ntk: Whether Θ is wanted.
        compile: Whether to compile the loops.
        distance: Whether distances are held, at equal positions; otherwise covariances, with two
            axes of displacements before the positions.
    """

    def __init__(
        self,
        program: Program,
        layout: Layout,
        lead: tuple[int, ...],
        like: Tensor,
        *,
        ntk: bool,
        compile: bool,
        distance: bool,
    ) -> None:
        self._layout = layout
        self._like = like
        self._ntk = ntk
        self._distance = distance
        self._full = (*lead, *layout.buffer)
        self._free: list[Tensor] = []
        self.loop = Loop(compile, self._full, like.dtype, like.device, distance)
        self._functions: dict[tuple[int, bool], Function] = {}
        self._layers: dict[int, tuple[Window, Tensor, Tensor, Tensor]] = {}
        for i in layout.steps:
            operation = program.steps[i].operation
            if isinstance(operation, Affine):
                self._layers[i] = self._layer(operation)

    # -- buffers -------------------------------------------------------------------------------

    def take(self) -> Tensor:
        """A buffer; its margins are 0, or hold the other side of the image."""
        return self._free.pop() if self._free else self._like.new_zeros(self._full)

    def give_back(self, *buffers: Tensor | None) -> None:
        """Say that buffers are not needed any more."""
        self._free.extend(b for b in buffers if b is not None)

    def inside(self, a: Tensor) -> Tensor:
        """A buffer without its margins."""
        above, _, left, _ = self._layout.margin
        p, q = self._layout.size
        return a[..., above : above + p, left : left + q]

    def _maybe(self, a: Tensor | None) -> Tensor | None:
        return None if a is None else self.inside(a)

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

    def input(self, x1: Tensor, x2: Tensor) -> Pair:
        """The covariance of known features: the mean over channels, axis 1, of the products."""
        k = self.take()
        products(x1.shape[1], self.loop)(x1, x2, self.inside(k))
        return k, None

    def activation(
        self, i: int, operation: Activation, taken: Pair, images: tuple[Tensor, ...]
    ) -> Pair:
        """Step i, an activation, with what its dual needs of either image."""
        k, t = taken
        if (i, t is not None) not in self._functions:
            made = activation(operation.dual, t is not None, self.loop)
            self._functions[i, t is not None] = made
        k_out, t_out = self.take(), None if t is None else self.take()
        self._functions[i, t is not None](
            self.inside(k), self._maybe(t), images, self.inside(k_out), self._maybe(t_out)
        )
        return k_out, t_out

    def exact(
        self, operation: Activation, taken: Pair, made: Pair, twins: Tensor, q: Tensor
    ) -> None:
        """Put in what is known of images with themselves: at displacement 0 they are equal.

        Args:
            operation: The activation.
            taken: What it took.
            made: What it made, corrected in place.
            twins: Which pairs of the block are an image with itself.
            q: Variances of these images, `[twins, P, Q]`.
        """
        kappa, slope = operation.dual.diagonal(q)
        self.inside(made[0])[twins, 0, 0] = kappa
        if made[1] is not None and taken[1] is not None:
            self.inside(made[1])[twins, 0, 0] = self.inside(taken[1])[twins, 0, 0] * slope

    def affine(
        self, i: int, taken: Pair, start: tuple[int, int], sums: tuple[Tensor, Tensor] | None = None
    ) -> Pair:
        """Step i, a layer of weights, for the displacements from `start` on."""
        k, t = taken
        window, *weights_ = self._read(i, taken, start)
        if (i, t is not None) not in self._functions:
            made = filtering(window, t is not None, self._ntk, self.loop)
            self._functions[i, t is not None] = made
        k_out, t_out = self.take(), self.take() if self._ntk else None
        self._functions[i, t is not None](
            k, t, *weights_, sums, self.inside(k_out), self._maybe(t_out)
        )
        return k_out, t_out

    def layer(
        self,
        i: int,
        operation: Activation,
        taken: Pair,
        start: tuple[int, int],
        images: tuple[Tensor, ...],
        sums: tuple[Tensor, Tensor] | None = None,
    ) -> Pair:
        """Step i, a layer of weights, and the activation that takes its value."""
        k, t = taken
        window, *weights_ = self._read(i, taken, start)
        if (~i, t is not None) not in self._functions:
            made = layer(window, operation.dual, t is not None, self._ntk, self.loop)
            self._functions[~i, t is not None] = made
        k_out, t_out = self.take(), self.take() if self._ntk else None
        self._functions[~i, t is not None](
            k, t, *weights_, sums, images, self.inside(k_out), self._maybe(t_out)
        )
        return k_out, t_out

    def _read(
        self, i: int, taken: Pair, start: tuple[int, int]
    ) -> tuple[Window, Tensor, Tensor, Tensor]:
        """Fill the margins of what a layer reads; its taps and their weights for the block."""
        for a in taken:
            if a is not None:
                self._wrap(a)
        window, rows, columns, added = self._layers[i]
        if not self._distance:
            d1, d2 = self._full[-4:-2]
            rows = rows[:, :, start[0] : start[0] + d1]
            columns = columns[:, :, :, start[1] : start[1] + d2]
        return window, rows, columns, added

    def weighted(self, taken: Sequence[Pair], shares: Sequence[float]) -> Pair:
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
            (s1, s2), (d1, d2) = start, self._full[-4:-2]
            rows = inside(positions[0], size[0], a)[s1 + skip[0] : s1 + d1, None, :, None]
            columns = inside(positions[1], size[1], a)[None, s2 + skip[1] : s2 + d2, None, :]
            a = a * rows * columns
        return a.sum(dim=(1, 2, 3, 4))

    def _layer(self, operation: Affine) -> tuple[Window, Tensor, Tensor, Tensor]:
        """Where the taps read, their weights along either axis, and what is added."""
        size, margin = self._layout.size, self._layout.margin
        moved = shifts(operation.rows, size[0]), shifts(operation.columns, size[1])
        assert moved[0] is not None
        assert moved[1] is not None
        rows = weights(operation.rows, size[0], self._like)
        columns = weights(operation.columns, size[1], self._like)
        factor = operation.sigma_w**2 / (len(rows) * len(columns))
        shift = operation.sigma_b**2
        added = [shift, float(operation.weight_trained), shift * operation.bias_trained]
        rows = rows * factor
        if self._distance:  # equal positions have displacement 0
            rows, columns = rows[:, 0, None, None, :, None], columns[:, 0, None, None, None, :]
        else:
            rows, columns = rows[:, None, :, None, :, None], columns[:, None, None, :, None, :]
        window = Window(moved[0], moved[1], size, (margin[0], margin[2]))
        return window, rows.contiguous(), columns.contiguous(), self._like.new_tensor(added)


def fused_layers(program: Program, layout: Layout) -> dict[int, int]:
    """Activations that are the only ones to take the value of a layer: to that layer."""
    steps = program.steps
    users = [j for step in steps for j in step.inputs]
    return {
        i: steps[i].inputs[0]
        for i in layout.steps
        if isinstance(steps[i].operation, Activation)
        and isinstance(steps[steps[i].inputs[0]].operation, Affine)
        and users.count(steps[i].inputs[0]) == 1
    }
