"""How much longer a step might have been before it would have raised the loss."""

from __future__ import annotations

import math
from collections.abc import Callable

_DOUBLINGS, _HALVINGS = 20, 10  # of the step, at most
_WIDTH = 0.05  # of the last bracket; what is interpolated in it is off by some 1e-3


def critical_multiple(loss: Callable[[float], float]) -> float | None:
    """The smallest multiple c > 0 of a step at which loss(c) exceeds loss(0).

    The step is doubled or halved until the loss exceeds that of the start in one and not in the
    other, and the bracket is bisected: about ten evaluations where the step is of the right size.
    Of a loss that crosses that of the start several times another crossing may be found.

    Args:
        loss: The loss at c times the step; what is not finite exceeds everything.

    Returns:
        The multiple; infinite if the loss stays below at 2^20 steps, and None if it exceeds that of
        the start at 2^-10 steps already: the step does not go down.
    """
    start = loss(0.0)

    def excess(c: float) -> float:
        value = loss(c) - start
        return value if math.isfinite(value) else math.inf

    low = high = 1.0
    below = above = excess(1.0)
    while below > 0.0:
        if low <= 0.5**_HALVINGS:
            return None
        high, above = low, below
        low *= 0.5
        below = excess(low)
    while above <= 0.0:
        if high >= 2.0**_DOUBLINGS:
            return math.inf
        low, below = high, above
        high *= 2.0
        above = excess(high)
    while high - low > _WIDTH * low:
        middle = 0.5 * (low + high)
        value = excess(middle)
        if value > 0.0:
            high, above = middle, value
        else:
            low, below = middle, value
    return low + (high - low) * (below / (below - above) if math.isfinite(above) else 0.5)
