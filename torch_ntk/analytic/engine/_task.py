"""A computation, and blocks of the pairs of images that it is for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from .._program import Program
from ..operations import Variances, spread
from ._plan import Plan

StepVariances: TypeAlias = tuple[Tensor | None, ...]
"""Per step the variances of its value in some images, `[n, P, Q]`; None if not needed."""


def with_itself(q: Tensor, full: bool) -> Variances:
    """Return variances `[n, P, Q]` shaped for pairs of an image with itself, `[n, 1, ...]`."""
    one = q[:, None]
    return (one[..., None, None], one[:, :, None, None]) if full else (one, one)


@dataclass(frozen=True)
class Images:
    """Some images of one side, with the variances of every value in them.

    Attributes:
        start: The number of the first image.
        stop: One past the number of the last image.
        variances: Per step, `[stop - start, P, Q]`.
    """

    start: int
    stop: int
    variances: StepVariances

    def __len__(self) -> int:
        return self.stop - self.start

    @classmethod
    def joined(cls, start: int, stop: int, parts: Iterable[Sequence[Tensor | None]]) -> Images:
        """Return the images from `start` to `stop` with the variances of consecutive parts."""
        whole = (None if of[0] is None else torch.cat(of) for of in zip(*parts, strict=True))
        return cls(start, stop, tuple(whole))

    @property
    def slice(self) -> slice:
        """Their numbers."""
        return slice(self.start, self.stop)

    def part(self, start: int, stop: int) -> Images:
        """The images from number `start` to `stop` of all."""
        a, b = start - self.start, stop - self.start
        return Images(start, stop, tuple(None if v is None else v[a:b] for v in self.variances))


@dataclass(frozen=True)
class Block:
    """The pairs of some images of x1 with some of x2.

    Attributes:
        rows: The images of x1.
        columns: The images of x2.
        paired: Whether it has one column, in which each of the rows is with itself; `columns` are
            `rows` then.
    """

    rows: Images
    columns: Images
    paired: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        """The numbers of rows and of columns."""
        return len(self.rows), 1 if self.paired else len(self.columns)

    def variances(self, step: int, full: bool) -> Variances | None:
        """Return the variances of a value, shaped to broadcast with its state."""
        q1, q2 = self.rows.variances[step], self.columns.variances[step]
        if q1 is None or q2 is None:
            return None
        if self.paired:
            return with_itself(q1, full)
        return spread(q1, 0, full), spread(q2, 1, full)


@dataclass(frozen=True)
class Task:
    """A computation, independent of the block of pairs.

    Attributes:
        program: The network.
        plan: In which form its values are computed.
        ntk: Whether Θ is wanted.
        symmetric: Whether the second images are the first.
    """

    program: Program
    plan: Plan
    ntk: bool
    symmetric: bool

    def identical(self, first: Tensor, second: Tensor) -> Tensor:
        """Return which of some pairs are an image with itself, or with an exact copy.

        Args:
            first: Numbers of images of the first side.
            second: Of the second side; they broadcast with each other.
        """
        same = first == second
        if torch.is_grad_enabled() or self.program.random_per_image:
            # An image's exact value knows one image: the derivative by its copy would be lost.
            return same if self.symmetric else torch.zeros_like(same)
        same = torch.ones_like(same)
        for known in self.program.known:
            x1, x2 = known.both
            same = same & (x1[first] == x2[second]).flatten(same.ndim).all(-1).to(same.device)
        return same
