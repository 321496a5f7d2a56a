"""A network at equal positions, evaluated block by block in compiled loops."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .._ops import Activation, Affine, Concatenation, Flatten, Input, Scale, Sum
from ._displacement import Layout
from ._evaluate import Images, Task
from ._inputs import FEW, close_pairs, products
from ._loops import differences, from_products
from ._passes import Pair, Passes, fused_layers
from ._state import State, spread

# Bytes of one array of a block, as in `_streamed.py`.
_BLOCK = 1 << 20
_BLOCK_ON_GPU = 1 << 27
# Numbers that are kept of what activations need of the images.
_KEPT = 1 << 23


class Equal:
    """Evaluates everything up to the flattening, or to the end.

    Args:
        task: What is evaluated.
        layout: How it is arranged.
        like: A tensor of the type and on the device of the computation.
        shape: The size of the matrix.
    """

    def __init__(self, task: Task, layout: Layout, like: Tensor, shape: tuple[int, int]) -> None:
        self._task = task
        self.layout = layout
        p, q = layout.size
        bytes_ = _BLOCK if like.device.type == "cpu" else _BLOCK_ON_GPU
        pairs = max(1, bytes_ // (like.element_size() * p * q))
        # Square, so that a symmetric matrix wastes little.
        columns = _even(shape[1], max(1, math.isqrt(pairs)))
        self.rows = _even(shape[0], max(1, pairs // columns))
        self.columns = columns
        self._fused = fused_layers(task.program, layout)
        self._kept: dict[tuple[int, int, int, int], tuple[Tensor, ...]] = {}
        self._passes = Passes(
            task.program,
            layout,
            (self.rows, self.columns),
            like,
            ntk=task.ntk,
            compile=True,
            distance=True,
        )

    def __call__(self, one: Images, two: Images) -> State:
        """The value of the end for a block of `rows` times `columns` pairs."""
        program, plan, passes = self._task.program, self._task.plan, self._passes
        values: dict[int, Pair] = {}
        for i in self.layout.steps:
            step = program.steps[i]
            if i in self._fused.values():
                continue  # done together with the activation that takes its value
            layer = self._fused.get(i)
            sources = step.inputs if layer is None else program.steps[layer].inputs
            taken = [values[j] for j in sources]
            match step.operation:
                case Input():
                    made = self._input(i, one, two)
                case Activation() as operation:
                    images = self._images(operation, step.inputs[0], one, two)
                    if layer is None:
                        made = passes.activation(i, operation, taken[0], images)
                    else:
                        sums = self._sums(layer, one, two)
                        made = passes.layer(layer, operation, taken[0], (0, 0), images, sums)
                case Affine():
                    made = passes.affine(i, taken[0], (0, 0), self._sums(i, one, two))
                case Scale() as operation:
                    made = passes.weighted(taken, (operation.factor**2,))
                case Concatenation() as operation:
                    made = passes.weighted(taken, operation.shares)
                case _:
                    assert isinstance(step.operation, Sum)
                    made = passes.weighted(taken, (1.0,) * len(taken))
            values[i] = made
            for j in sources:
                if plan.last_use[j] in (i, layer) and j in values:
                    passes.give_back(*values.pop(j))
        return self._state(values[self.layout.steps[-1]])

    def _state(self, made: Pair) -> State:
        """The value of the end: the mean over positions, or a copy, as buffers are used again."""
        found: list[Tensor | None] = []
        flatten = isinstance(self._task.program.steps[self.layout.end].operation, Flatten)
        p, q = self._task.program.steps[self.layout.steps[-1]].positions
        for buffer in made:
            if buffer is None:
                found.append(buffer)
                continue
            a = self._passes.inside(buffer)[..., :p, :q]
            found.append(a.mean(dim=(-2, -1), keepdim=True) if flatten else a.clone())
        self._passes.give_back(*made)
        assert found[0] is not None
        ntk = found[1]
        if ntk is None and self._task.ntk:
            ntk = found[0].new_zeros(())
        return State(found[0], ntk, True, False)

    def _input(self, i: int, one: Images, two: Images) -> Pair:
        x1, x2 = self._task.inputs(i, one, two)
        p, q = x1.shape[-2:]
        d = self._passes.take()
        into = self._passes.inside(d)[..., :p, :q]
        channels = x1.shape[1]
        if channels <= FEW:
            differences(channels, self._passes.loop)(x1, x2, into)
            return d, None
        q1, q2 = one.variances[i], two.variances[i]
        assert q1 is not None
        assert q2 is not None
        norms = q1[:, None], q2[None]
        from_products(channels, self._passes.loop)(products(x1, x2), *norms, into)
        twins = self._twins(one, two, into)
        if twins is not None:
            twins.fill_(torch.inf)  # known already
        at, exact = close_pairs(into, x1, x2, norms)
        if at is not None:
            into[at] = exact
        if twins is not None:
            twins.zero_()
        return d, None

    def _twins(self, one: Images, two: Images, d: Tensor) -> Tensor | None:
        """The distances of images to themselves in a block `[n1, n2, P, Q]`, if it has any."""
        start, stop = max(one.start, two.start), min(one.stop, two.stop)
        if not self._task.symmetric or start >= stop:
            return None
        rows = slice(start - one.start, stop - one.start)
        columns = slice(start - two.start, stop - two.start)
        return d[rows, columns].diagonal(dim1=0, dim2=1)

    def _images(
        self, operation: Activation, before: int, one: Images, two: Images
    ) -> tuple[Tensor, ...]:
        """What an activation needs of the images of either side, shaped to go with the block."""
        first = self._image(operation, before, one, 0)
        return (*first, *self._image(operation, before, two, 1))

    def _image(
        self, operation: Activation, before: int, images: Images, side: int
    ) -> tuple[Tensor, ...]:
        """The same of one side; kept, as a row of blocks has its images in common."""
        key = (before, side, images.start, images.stop)
        if key not in self._kept:
            q = images.variances[before]
            assert q is not None
            if sum(a.numel() for kept in self._kept.values() for a in kept) > _KEPT:
                self._kept.clear()
            parts = operation.dual.images(q)
            self._kept[key] = tuple(spread(self._room(a), side, False) for a in parts)
        return self._kept[key]

    def _sums(self, i: int, one: Images, two: Images) -> tuple[Tensor, Tensor]:
        """The variances of step i on either side, shaped to go with the block."""
        q1, q2 = one.variances[i], two.variances[i]
        assert q1 is not None
        assert q2 is not None
        return spread(self._room(q1), 0, False), spread(self._room(q2), 1, False)

    def _room(self, a: Tensor) -> Tensor:
        p, q = self.layout.size
        if a.shape[-2:] == (p, q):
            return a
        return F.pad(a, (0, q - a.shape[-1], 0, p - a.shape[-2]))


def _even(number: int, most: int) -> int:
    """The size of the fewest blocks of at most `most` that `number` can be divided into."""
    return math.ceil(number / math.ceil(number / most))
