"""Covariances between all pairs of positions, arranged by displacement.

Under convolutions of stride 1 an entry (p, p') moves together with (p + a, p' + a): the
displacement p' - p never changes. So the `P × Q × P × Q` array of a pair of images is a set of
independent images, one for each displacement. Displacements d and d - P share one image of P rows,
with p' = (p + d) mod P: rows 0 … P-d-1 belong to d, the others to d - P, and a filter is cut at
the line between them by weights of 0 and 1; columns likewise. This keeps exactly P² Q² entries,
every layer is a pass over small images, and a block of displacements goes through *all* layers
while it stays in cache.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..._program import Program
from ...operations import Activation, Affine, Flatten, Input, Pool, Taps
from .._plan import Plan


@dataclass(frozen=True)
class Layout:
    """How a network's values between all pairs of positions are arranged.

    Attributes:
        end: The step after them: the average over all positions, or the flattening.
        steps: The steps before it, in order.
        merged: Activations that alone take the value of a layer, to that layer: both are one loop.
        size: `(P, Q)`, room for the largest of their values.
        margin: Rows and columns around it: above, below, left, right.
        wraps: Whether the margins show the other side of the image, along either axis.
    """

    end: int
    steps: tuple[int, ...]
    merged: Mapping[int, int]
    size: tuple[int, int]
    margin: tuple[int, int, int, int]
    wraps: tuple[bool, bool]

    @property
    def buffer(self) -> tuple[int, int]:
        """Rows and columns with the margins."""
        above, below, left, right = self.margin
        return self.size[0] + above + below, self.size[1] + left + right

    def padded(self, a: Tensor) -> Tensor:
        """`a` `[..., P, Q]` of a value that may be smaller, with zeros to the full size."""
        p, q = self.size
        return F.pad(a, (0, q - a.shape[-1], 0, p - a.shape[-2]))


def displacement_layout(program: Program, plan: Plan) -> Layout | None:
    """The arrangement by displacement, or None where it does not apply.

    It does where everything between all pairs of positions keeps displacements, and ends in one
    average over all positions.
    """
    steps = program.steps
    full = tuple(i for i, f in enumerate(plan.full) if f)
    ends = [
        i for i, s in enumerate(steps) if any(plan.full[j] for j in s.inputs) and not plan.full[i]
    ]
    if not full or len(ends) != 1:
        return None
    end = steps[ends[0]].operation
    if not isinstance(end, Pool) or not end.to_one_position:
        return None
    # An affine layer may take a value of one position, of which there are no pairs.
    if any(not all(plan.full[j] for j in steps[i].inputs) for i in full):
        return None
    return _arranged(program, full, ends[0])


def same_position_layout(program: Program, plan: Plan) -> Layout | None:
    """The arrangement of values at the same position, up to a flattening or to the end.

    None where a step before that moves positions in another way, or does not compile.
    """
    steps = program.steps
    flattenings = [i for i, s in enumerate(steps) if isinstance(s.operation, Flatten)]
    if not plan.distance or len(flattenings) > 1:
        return None
    end = flattenings[0] if flattenings else len(steps) - 1
    before = tuple(range(end if flattenings else len(steps)))
    if any(j < end for s in steps[end + 1 :] for j in s.inputs):
        return None
    return _arranged(program, before, end)


def _arranged(program: Program, included: tuple[int, ...], end: int) -> Layout | None:
    """The arrangement of some steps, if each keeps displacements and has its loop."""
    steps = program.steps
    size = (
        max(steps[i].positions[0] for i in included),
        max(steps[i].positions[1] for i in included),
    )
    rows: list[int] = [0]
    columns: list[int] = [0]
    wraps = [False, False]
    for i in included:
        operation = steps[i].operation
        if not isinstance(operation, Input) and not operation.fuses:
            return None
        if isinstance(operation, Affine):
            for axis, (taps, found) in enumerate(
                ((operation.rows, rows), (operation.columns, columns))
            ):
                moved = shifts(taps, size[axis])
                if moved is None:
                    return None
                found.extend(moved)
                wraps[axis] = wraps[axis] or _wraps(taps, moved)
    margin = (-min(rows), max(rows), -min(columns), max(columns))
    if max(margin[:2]) > size[0] or max(margin[2:]) > size[1]:
        return None
    merged = _merged(program, included)
    return Layout(end, included, merged, size, margin, (wraps[0], wraps[1]))


def _merged(program: Program, included: tuple[int, ...]) -> dict[int, int]:
    steps = program.steps
    users = [j for step in steps for j in step.inputs]
    return {
        i: steps[i].inputs[0]
        for i in included
        if isinstance(steps[i].operation, Activation)
        and isinstance(steps[steps[i].inputs[0]].operation, Affine)
        and users.count(steps[i].inputs[0]) == 1
    }


def shifts(taps: Taps, size: int) -> tuple[int, ...] | None:
    """Per tap the distance from output to source on an axis of `size` that closes in a circle.

    None if a tap has more than one, as with a stride, or where the axis is folded at its ends.
    """
    found = []
    for sources in taps.sources:
        seen = {(s - o) % size for o, s in enumerate(sources) if s >= 0}
        if len(seen) > 1:
            return None
        shift = seen.pop() if seen else 0
        found.append(shift if shift <= size // 2 else shift - size)
    return tuple(found)


def _wraps(taps: Taps, moved: tuple[int, ...]) -> bool:
    return any(
        s >= 0 and s != o + shift
        for sources, shift in zip(taps.sources, moved, strict=True)
        for o, s in enumerate(sources)
    )


def tap_weights(taps: Taps, size: int, like: Tensor) -> Tensor:
    """`[taps, displacement, position]`: 1 where both positions of the pair read a position."""
    position = torch.arange(size)
    partner = (position + position[:, None]) % size  # [displacement, position]
    reads = torch.zeros(len(taps.sources), size, dtype=torch.bool)
    for a, sources in enumerate(taps.sources):
        reads[a, : len(sources)] = torch.tensor(sources) >= 0
    return (reads[:, None, :] & reads[:, partner]).to(like)


def inside(count: int, size: int, like: Tensor) -> Tensor:
    """`[displacement, position]`: 1 where both positions are among the first `count`."""
    position = torch.arange(size)
    partner = (position + position[:, None]) % size
    return ((position < count) & (partner < count)).to(like)


def windows(a: Tensor, start: tuple[int, int], shape: tuple[int, int]) -> Tensor:
    """`a` `[..., P, Q]` seen from each displacement of a block, without copying.

    Args:
        a: Images laid side by side twice along both axes, `[..., 2P, 2Q]`, contiguous.
        start: The first displacement along either axis.
        shape: The number of displacements along either axis.

    Returns:
        `[..., D1, D2, P, Q]` whose entry (d1, d2, i, j) is that of `a` at (i + d1, j + d2).
    """
    rows, columns = a.shape[-2] // 2, a.shape[-1] // 2
    row = a.stride(-2)
    return a.as_strided(
        (*a.shape[:-2], *shape, rows, columns),
        (*a.stride()[:-2], row, 1, row, 1),
        a.storage_offset() + start[0] * row + start[1],
    )


def twice(a: Tensor) -> Tensor:
    """`[..., P, Q]` laid side by side along both axes, `[..., 2P, 2Q]`."""
    return torch.cat([torch.cat([a, a], -1)] * 2, -2)
