"""The factor by which a step can be longer before it raises the loss."""

from __future__ import annotations

import math
from collections.abc import Callable

_DOUBLINGS, _HALVINGS = 20, 10  # the largest numbers of times that the step is doubled or halved
_WIDTH = (
    0.05  # the relative width of the last bracket, after which interpolation is precise to 1e-3
)


def critical_multiple(loss: Callable[[float], float]) -> float | None:
    """The smallest multiple c > 0 of a step at which loss(c) exceeds loss(0).

    The step is doubled or halved until c and 2c bracket the point, and the bracket is bisected.
    This takes about ten evaluations if c is close to 1. If the loss crosses loss(0) several times,
    another crossing than the first may be found.

    Args:
        loss: The loss after c times the step, as a function of c. A value that is not finite counts
            as larger than any other.

    Returns:
        The multiple. It is infinite if loss(2^20) does not exceed loss(0), and None if loss(2^-10)
        exceeds it, so that the direction does not decrease the loss.
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
