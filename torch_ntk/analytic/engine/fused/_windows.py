"""Averages over some positions in fused loops: which positions each of their results reads."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from torch import Tensor

from ...operations import Operation

# With more windows around a position, products of matrices are faster than loops.
_MOST_WINDOWS = 2


@dataclass(frozen=True)
class Windows:
    """The windows of an average along one axis of positions.

    Attributes:
        spans: Per result the first position that it reads, and one past the last.
        weights: Per result the weights of all positions.
    """

    spans: tuple[tuple[int, int], ...]
    weights: tuple[tuple[float, ...], ...]

    @property
    def most(self) -> int:
        """The largest number of windows that have a position in common."""
        size = len(self.weights[0])
        return max(sum(a <= s < b for a, b in self.spans) for s in range(size))

    def reach(self, displacement: int) -> int:
        """The largest displacement of positions that results at most `displacement` apart need."""
        spans = [(o, a, b) for o, (a, b) in enumerate(self.spans) if a < b]
        return max(
            (b - 1 - a for o, a, _ in spans for p, _, b in spans if abs(p - o) <= displacement),
            default=0,
        )


def windows(operation: Operation) -> tuple[Windows, Windows] | str:
    """The windows of an operation that is an average, along either axis; else why there are none.

    Args:
        operation: Any operation without a fused form.
    """
    matrices = operation.averages()
    if matrices is None:
        return "it has no fused form"
    rows, columns = (_windows(m) for m in matrices)
    if max(rows.most, columns.most) > _MOST_WINDOWS:
        return f"more than {_MOST_WINDOWS} of its windows have a position in common"
    return rows, columns


def _windows(matrix: Tensor) -> Windows:
    return _of_weights(tuple(tuple(float(w) for w in row) for row in matrix.tolist()))


@lru_cache(maxsize=256)
def _of_weights(weights: tuple[tuple[float, ...], ...]) -> Windows:
    spans = []
    for row in weights:
        read = [s for s, w in enumerate(row) if w]
        spans.append((read[0], read[-1] + 1) if read else (0, 0))
    return Windows(tuple(spans), weights)
