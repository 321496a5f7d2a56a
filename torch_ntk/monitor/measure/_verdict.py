"""From the curves to a sentence: was this training lazy?"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

LAZY_BELOW = 0.1
RICH_ABOVE = 0.3
BUFFERS_ABOVE = 0.1
_TIMES_FROM = 10.0  # a relative change from which on a factor reads better than a percentage


@dataclass(frozen=True)
class Verdict:
    """The regime of a training, and why.

    Attributes:
        regime: `"lazy"`, `"feature learning"` or `"in between"`; `"undecided"` if running
            statistics have moved as well, `"diverged"` if the parameters became NaN or infinite,
            `"unknown"` if nothing was measured or nothing has moved.
        reason: A sentence with the numbers behind it.
    """

    regime: str
    reason: str

    def __str__(self) -> str:
        """The two as one line."""
        return f"{self.regime}: {self.reason}"


def verdict(last: Mapping[str, float], diverged_at: int | None = None) -> Verdict:
    """Judge a training by its last measurement.

    Lazy means that the kernel stands still and that the network goes where its linearization
    goes. Both are relative: a drift of 0.1 is a kernel that moved by a tenth of its norm, a gap
    of 0.1 a linearization that misses a tenth of what the outputs moved. Below 0.1 in both the
    training is called lazy, above 0.3 in either feature learning. The limits are conventions:
    in the infinite-width limit both fall like width^-1/2 (Lee et al. 2019, theorem 2.1).

    No judgement is made where both are exactly 0 and the parameters are not known to have moved,
    or where they are above 0.1 and buffers moved by more than 0.1 of their norm: running statistics
    of normalization move the kernel and the outputs without any change of the parameters.

    Args:
        last: Metrics by name; `drift`, `linearization_gap`, `param_drift` and `buffer_drift` are
            read.
        diverged_at: The step at which the parameters were found NaN or infinite, if they have
            not recovered since.
    """
    if diverged_at is not None:
        return Verdict(
            "diverged",
            f"the network had NaN or infinite parameters at step {diverged_at}; "
            "lower the learning rate",
        )
    drift = last.get("drift", math.nan)
    gap = last.get("linearization_gap", math.nan)
    known = [value for value in (drift, gap) if not math.isnan(value)]
    if not known:
        return Verdict("unknown", "neither the kernel's drift nor the linearization gap is known")
    if not any(known) and not last.get("param_drift", 0.0) > 0.0:
        # A network that is linear in its parameters has no drift and no gap although it learns.
        linear = "" if "param_drift" in last else ", unless the network is linear in its parameters"
        return Verdict(
            "unknown",
            f"nothing has moved yet{linear}: what is known of drift and gap is exactly 0; "
            "train for longer, or check that the learning rate is not 0",
        )
    parts = []
    if not math.isnan(drift):
        parts.append(f"the kernel moved by {_amount(drift)} its norm")
    if not math.isnan(gap):
        parts.append(f"the linearized network misses {_amount(gap)} the outputs' movement")
    facts = " and ".join(parts)
    buffers = last.get("buffer_drift", 0.0)
    if buffers > BUFFERS_ABOVE and max(known) >= LAZY_BELOW:
        return Verdict(
            "undecided",
            f"{facts}; but the running statistics of normalization moved by {_amount(buffers)} "
            "their norm, which moves the kernel and the outputs without any change of the "
            "parameters, so that the two cannot be told apart",
        )
    which = "the larger is" if len(known) == 2 else "which is"
    if max(known) < LAZY_BELOW:
        return Verdict("lazy", f"{facts}; {which} below {LAZY_BELOW:.0%}")
    if max(known) > RICH_ABOVE:
        return Verdict("feature learning", f"{facts}; {which} above {RICH_ABOVE:.0%}")
    return Verdict("in between", f"{facts}; {which} between {LAZY_BELOW:.0%} and {RICH_ABOVE:.0%}")


def _amount(share: float) -> str:
    """A relative change in words that go before the name of the whole."""
    return f"{share:.1%} of" if share < _TIMES_FROM else f"{share:.3g} times"
