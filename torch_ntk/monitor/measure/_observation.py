"""The results of one measurement, and rows and columns of several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from torch import Tensor

_T = TypeVar("_T")


@dataclass(frozen=True)
class Observation:
    """The results of one measurement.

    Attributes:
        step: The number of optimizer steps so far.
        scalars: The metrics by name, and `"seconds"`, the wall time that they took.
        kernel: The kernel Θ_t, or None if no metric needs it.
        eigenvalues: The eigenvalues of Θ_t in ascending order, or None.
        outputs: The outputs f_t on the probe `[N, O]`, or some of them if O is very large, or None.
        linearized: The same outputs of the linearization f_t^lin, or None.
    """

    step: int
    scalars: dict[str, float]
    kernel: Tensor | None = field(default=None, repr=False)
    eigenvalues: Tensor | None = field(default=None, repr=False)
    outputs: Tensor | None = field(default=None, repr=False)
    linearized: Tensor | None = field(default=None, repr=False)


def spread(items: Sequence[_T], most: int) -> list[_T]:
    """At most `most` of the items, evenly spaced, with the first and the last one."""
    if len(items) <= most:
        return list(items)
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]


def columns(rows: Sequence[Mapping[str, float]]) -> dict[str, list[float]]:
    """Columns of a table by their names, from rows in which a missing value counts as NaN."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    return {n: [row.get(n, float("nan")) for row in rows] for n in names}
