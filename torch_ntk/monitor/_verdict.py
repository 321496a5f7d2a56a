"""From the curves to a sentence: was this training lazy?"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

LAZY_BELOW = 0.1
RICH_ABOVE = 0.3


@dataclass(frozen=True)
class Verdict:
    """The regime of a training, and why.

    Attributes:
        regime: `"lazy"`, `"feature learning"`, `"in between"` or `"unknown"`.
        reason: A sentence with the numbers behind it.
    """

    regime: str
    reason: str

    def __str__(self) -> str:
        """The two as one line."""
        return f"{self.regime}: {self.reason}"


def verdict(last: Mapping[str, float]) -> Verdict:
    """Judge a training by its last measurement.

    Lazy means that the kernel stands still and that the network goes where its linearization
    goes. Both are relative: a drift of 0.1 is a kernel that moved by a tenth of its norm, a gap
    of 0.1 a linearization that misses a tenth of what the outputs moved. Below 0.1 in both the
    training is called lazy, above 0.3 in either feature learning. The limits are conventions:
    in the infinite-width limit both fall like width^-1/2 (Lee et al. 2019, theorem 2.1).

    Args:
        last: Metrics by name; `drift` and `linearization_gap` are read.
    """
    drift = last.get("drift", math.nan)
    gap = last.get("linearization_gap", math.nan)
    known = [value for value in (drift, gap) if not math.isnan(value)]
    if not known:
        return Verdict("unknown", "neither the kernel's drift nor the linearization gap is known")
    parts = []
    if not math.isnan(drift):
        parts.append(f"the kernel moved by {drift:.1%} of its norm")
    if not math.isnan(gap):
        parts.append(f"the linearized network misses {gap:.1%} of the outputs' movement")
    facts = " and ".join(parts)
    which = "the larger is" if len(known) == 2 else "which is"
    if max(known) < LAZY_BELOW:
        return Verdict("lazy", f"{facts}; {which} below {LAZY_BELOW:.0%}")
    if max(known) > RICH_ABOVE:
        return Verdict("feature learning", f"{facts}; {which} above {RICH_ABOVE:.0%}")
    return Verdict("in between", f"{facts}; {which} between {LAZY_BELOW:.0%} and {RICH_ABOVE:.0%}")
