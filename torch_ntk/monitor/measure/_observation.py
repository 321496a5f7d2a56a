"""What one measurement found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class Observation:
    """One measurement.

    Attributes:
        step: Number of optimizer steps taken.
        scalars: The metrics by name, and `"seconds"`, the wall time that they took.
        kernel: Θ_t, or None if no metric needs it.
        eigenvalues: The spectrum of Θ_t, ascending, or None.
        outputs: f_t on the probe, or None. Of very many outputs some, evenly spread.
        linearized: f_t^lin on the probe, or None; the same ones.
    """

    step: int
    scalars: dict[str, float]
    kernel: Tensor | None = field(default=None, repr=False)
    eigenvalues: Tensor | None = field(default=None, repr=False)
    outputs: Tensor | None = field(default=None, repr=False)
    linearized: Tensor | None = field(default=None, repr=False)


def columns(rows: Sequence[Mapping[str, float]]) -> dict[str, list[float]]:
    """`"step"` and each metric by name, one entry for each row; NaN where a row lacks it."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    return {n: [row.get(n, float("nan")) for row in rows] for n in names}
