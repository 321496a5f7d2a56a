"""Averages over some positions in fused loops: which positions each of their results reads."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from torch import Tensor

from ...operations import Operation

# Each entry is added once for every pair of windows around its two positions, along either axis.
# With more windows than these, products of matrices are faster in networks with global pooling.
_MOST_WINDOWS = 8
_NONE = (-1, 0.0)


@dataclass(frozen=True)
class Windows:
    """The windows of an average along one axis of positions.

    Attributes:
        around: Per position the windows that it is in, each with its weight there; -1 in place of
            windows that are not there, so that all positions have as many.
    """

    around: tuple[tuple[tuple[int, float], ...], ...]

    @property
    def most(self) -> int:
        """The largest number of windows that have a position in common."""
        return len(self.around[0])

    def reach(self, displacement: int) -> int:
        """Return the largest displacement that results at most `displacement` apart depend on."""
        read = [(o, s) for s, each in enumerate(self.around) for o, _ in each if o >= 0]
        return max(
            (abs(t - s) for o, s in read for p, t in read if abs(p - o) <= displacement), default=0
        )


def windows(operation: Operation) -> tuple[Windows, Windows] | str:
    """Return the windows of an average along either axis, or why an operation has none.

    Args:
        operation: Any operation without a fused form.
    """
    matrices = operation.averages()
    if matrices is None:
        return "it has no fused form"
    rows, columns = (_windows(m) for m in matrices)
    if rows is None or columns is None:
        return f"more than {_MOST_WINDOWS} of its windows have a position in common"
    return rows, columns


def _windows(matrix: Tensor) -> Windows | None:
    return _of_weights(tuple(tuple(float(w) for w in row) for row in matrix.T.tolist()))


@lru_cache(maxsize=256)
def _of_weights(weights: tuple[tuple[float, ...], ...]) -> Windows | None:
    """Return the windows from the weights of each position in all results."""
    around = [[(o, w) for o, w in enumerate(row) if w] for row in weights]
    most = max(1, *(len(each) for each in around))
    if most > _MOST_WINDOWS:
        return None
    return Windows(tuple((*each, *[_NONE] * (most - len(each))) for each in around))
