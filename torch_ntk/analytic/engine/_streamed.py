"""A network with a global average, evaluated by blocks of displacements."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .._ops import Activation, Affine, Concatenation, Input, Pool, Scale, Sum
from ._displacement import Layout, twice, windows
from ._evaluate import Images, Task
from ._passes import Pair, Passes, fused_layers
from ._state import State

# Bytes of one array of a block. About six are alive; they are to stay in the caches of a CPU.
_BLOCK = 1 << 20
_BLOCK_ON_GPU = 1 << 27

_Seen = dict[int, tuple[Tensor, ...]]
"""Per step what it needs to know of the images of one side."""


class Streamed:
    """Evaluates everything up to the average over all positions.

    Args:
        task: What is evaluated.
        layout: How it is arranged.
        like: A tensor of the type and on the device of the computation.
        compile: Whether to compile the loops.
    """

    def __init__(self, task: Task, layout: Layout, like: Tensor, compile: bool) -> None:
        self._task = task
        self.layout = layout
        self._like = like
        p, q = layout.size
        bytes_ = _BLOCK if like.device.type == "cpu" else _BLOCK_ON_GPU
        entries = bytes_ // like.element_size()
        columns = max(1, min(q, entries // (p * q)))
        self.pairs = max(1, entries // (p * q * p * q))
        self._shape = (max(1, min(p, entries // (p * q * columns))), columns)
        self._fused = fused_layers(task.program, layout)
        lead = (self.pairs, *self._shape)
        self._passes = Passes(
            task.program, layout, lead, like, ntk=task.ntk, compile=compile, distance=False
        )

    def __call__(self, one: Images, two: Images) -> State:
        """The value of the average for the pairs of a block, `[n1, n2, 1, 1]`.

        Of a symmetric matrix, only the pairs on and above its diagonal are computed.
        """
        shape = (one.stop - one.start, two.stop - two.start)
        rows, columns = torch.meshgrid(*(torch.arange(n) for n in shape), indexing="ij")
        wanted = torch.ones(shape, dtype=torch.bool)
        if self._task.symmetric:
            wanted = rows + one.start <= columns + two.start
        rows, columns = rows[wanted], columns[wanted]
        k = self._like.new_zeros(*shape, 1, 1)
        t = torch.zeros_like(k) if self._task.ntk else None
        for start in range(0, len(rows), self.pairs):
            # Every group has one size: the last one repeats its last pair.
            chosen = torch.arange(start, start + self.pairs).clamp(max=len(rows) - 1)
            r, c = rows[chosen], columns[chosen]
            k[r, c, 0, 0], found = self._group(one, two, r, c)
            if t is not None and found is not None:
                t[r, c, 0, 0] = found
        return State(k, t, False, False)

    def _group(
        self, one: Images, two: Images, rows: Tensor, columns: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """The averages for some pairs, `[pairs]`."""
        first, second = self._seen(one, two, rows, columns)
        twins = self._twins(one, two, rows, columns)
        totals = [self._like.new_zeros(len(rows)) for _ in range(1 + self._task.ntk)]
        steps = self._task.program.steps
        positions = steps[self.layout.steps[-1]].positions
        (p, q), (d1, d2) = self.layout.size, self._shape
        for a in range(0, p, d1):
            for b in range(0, q, d2):
                # Every block has one size: the last one begins with what was counted before.
                start = min(a, p - d1), min(b, q - d2)
                made = self._block(first, second, start, twins if start == (0, 0) else {})
                for total, buffer in zip(totals, made, strict=False):
                    if buffer is not None:
                        skip = a - start[0], b - start[1]
                        total += self._passes.total(buffer, positions, start, skip)
                self._passes.give_back(*made)
        pool = steps[self.layout.end].operation
        assert isinstance(pool, Pool)
        factor = float(pool.rows[0, 0] * pool.columns[0, 0]) ** 2
        return totals[0] * factor, totals[1] * factor if self._task.ntk else None

    def _seen(self, one: Images, two: Images, rows: Tensor, columns: Tensor) -> tuple[_Seen, _Seen]:
        """What steps need of the images: inputs, and what activations make of the variances.

        Of the second images, four copies side by side, in which a displacement is an offset.
        """
        steps = self._task.program.steps
        first: _Seen = {}
        second: _Seen = {}
        for i in self.layout.steps:
            operation = steps[i].operation
            if isinstance(operation, Input):
                x1, x2 = self._task.inputs(i, one, two)
                parts: tuple[tuple[Tensor, ...], tuple[Tensor, ...]] = (x1[rows],), (x2[columns],)
            elif isinstance(operation, Activation):
                # Outside of a value that is smaller than the room: any number, weighted by 0.
                q1, q2 = self._variances(i, one)[rows], self._variances(i, two)[columns]
                parts = operation.dual.images(q1), operation.dual.images(q2)
            else:
                continue
            first[i] = tuple(self._room(a)[..., None, None, :, :] for a in parts[0])
            second[i] = tuple(twice(self._room(a)) for a in parts[1])
        return first, second

    def _twins(
        self, one: Images, two: Images, rows: Tensor, columns: Tensor
    ) -> dict[int, tuple[Tensor, Tensor]]:
        """Per activation the pairs of equal images, and the variances of these images."""
        same = self._task.equal(rows + one.start, columns + two.start)
        found = same.nonzero()[:, 0]
        if not len(found):
            return {}
        return {
            i: (found, self._room(self._variances(i, one)[rows[found]]))
            for i in self.layout.steps
            if isinstance(self._task.program.steps[i].operation, Activation)
        }

    def _variances(self, i: int, images: Images) -> Tensor:
        q = images.variances[self._task.program.steps[i].inputs[0]]
        assert q is not None
        return q

    def _room(self, a: Tensor) -> Tensor:
        p, q = self.layout.size
        return F.pad(a, (0, q - a.shape[-1], 0, p - a.shape[-2]))

    def _block(
        self,
        first: _Seen,
        second: _Seen,
        start: tuple[int, int],
        twins: dict[int, tuple[Tensor, Tensor]],
    ) -> Pair:
        """The value before the average, for a block of displacements."""
        program, plan, passes = self._task.program, self._task.plan, self._passes
        values: dict[int, Pair] = {}
        for i in self.layout.steps:
            step = program.steps[i]
            before = step.inputs[0] if step.inputs else i
            if not twins and i in self._fused.values():
                continue  # done together with the activation that takes its value
            fused = not twins and i in self._fused
            sources = program.steps[before].inputs if fused else step.inputs
            taken = [values[j] for j in sources]
            match step.operation:
                case Input():
                    made = passes.input(first[i][0], windows(second[i][0], start, self._shape))
                case Activation() as operation:
                    seen = (*first[i], *(windows(a, start, self._shape) for a in second[i]))
                    if fused:
                        made = passes.layer(before, operation, taken[0], start, seen)
                    else:
                        made = passes.activation(i, operation, taken[0], seen)
                    if i in twins:
                        passes.exact(operation, taken[0], made, *twins[i])
                case Affine():
                    made = passes.affine(i, taken[0], start)
                case Scale() as operation:
                    made = passes.weighted(taken, (operation.factor**2,))
                case Concatenation() as operation:
                    made = passes.weighted(taken, operation.shares)
                case _:
                    assert isinstance(step.operation, Sum)
                    made = passes.weighted(taken, (1.0,) * len(taken))
            values[i] = made
            for j in sources:
                if plan.last_use[j] in (i, before) and j in values:
                    passes.give_back(*values.pop(j))
        return values[self.layout.steps[-1]]
