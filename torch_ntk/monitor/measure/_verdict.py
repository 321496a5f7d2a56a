"""From the curves to a sentence: was this training lazy?"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

LAZY_BELOW = 0.1
RICH_ABOVE = 0.3
TURNED_ABOVE = 0.05  # 1 - cosine: a change by 0.3 of the norm across the kernel at the start
BUFFERS_ABOVE = 0.1
_TIMES_FROM = 10.0  # a relative change from which on a factor reads better than a percentage
_FEW = 32  # samples
_DIVERGED_ABOVE = 1000.0  # relative movement of the parameters

_MEANINGS = {
    "lazy": (
        "The network learns as a linear model in fixed features: its kernel at the start decides "
        "what it learns, and predictions from that kernel hold. For features that adapt, try a "
        "larger learning rate, a smaller scale of the outputs or a narrower network."
    ),
    "feature learning": (
        "The features change while the network learns, so that predictions from its kernel at the "
        "start do not hold. For lazy training, try a wider network in NTK parameterization, a "
        "smaller learning rate or a larger scale of the outputs."
    ),
    "in between": (
        "The kernel at the start describes the beginning of this training and not all of it. A "
        "wider network makes it lazier, a larger learning rate or a longer training less so."
    ),
    "undecided": (
        "What moved the kernel and the outputs, the parameters or the statistics, cannot be told "
        "apart. Pass anchor_at=N, a step at which the statistics have settled, to compare with the "
        "network of that step."
    ),
}


@dataclass(frozen=True)
class Verdict:
    """The regime of a training, and why.

    Attributes:
        regime: `"lazy"`, `"feature learning"` or `"in between"`; `"undecided"` if running
            statistics have moved as well, `"diverged"` if the parameters became NaN, infinite or a
            thousand times as large,
            `"unknown"` if nothing was measured or nothing has moved.
        reason: A sentence with the numbers behind it.
        meaning: What that means, and what to try; "" if there is nothing to say.
        limits: What it rests on; "" if that is not known.
    """

    regime: str
    reason: str
    meaning: str = ""
    limits: str = ""

    def __str__(self) -> str:
        """Regime and reason as one line."""
        return f"{self.regime}: {self.reason}"

    @property
    def text(self) -> str:
        """Everything, in a few sentences."""
        parts = (f"{self.regime.capitalize()}: {self.reason}.", self.meaning, self.limits)
        return " ".join(part for part in parts if part)


def verdict(
    last: Mapping[str, float],
    diverged_at: int | None = None,
    *,
    samples: int | None = None,
    outputs: int | None = None,
) -> Verdict:
    """Judge a training by its last measurement.

    Lazy means that the kernel stands still and that the network goes where its linearization
    goes: that the kernel moved by less than 0.1 of its norm, and that the linearization misses
    less than 0.1 of what the outputs moved. Feature learning means that the kernel has turned by
    more than 0.05 (1 - cosine, `kernel_distance`; where that is not known, that it moved by more
    than 0.3 of its norm) or that the linearization misses more than 0.3. A kernel that only grows
    is in between. The limits are conventions: in the infinite-width limit drift and gap fall like
    width^-1/2 (Lee et al. 2019, theorem 2.1).

    No judgement is made where both are exactly 0 and the parameters are not known to have moved,
    or where they are above 0.1 and buffers moved by more than 0.1 of their norm: running statistics
    of normalization move the kernel and the outputs without any change of the parameters.

    Args:
        last: Metrics by name; `drift`, `kernel_distance`, `linearization_gap`, `param_drift`,
            `buffer_drift` and `statistics_share` are read.
        diverged_at: The step at which the parameters were found NaN or infinite, if they have
            not recovered since.
        samples: On how many the metrics were measured.
        outputs: How many each of them has, if the kernel is estimated from directions of them.
    """
    if diverged_at is not None:
        return Verdict(
            "diverged",
            f"the network had NaN or infinite parameters at step {diverged_at}; "
            "lower the learning rate",
        )
    moved = last.get("param_drift", 0.0)
    if moved > _DIVERGED_ABOVE:
        return Verdict(
            "diverged",
            f"the parameters moved by {moved:.3g} times their norm; lower the learning rate",
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
    regime, facts = _judged(last, drift, gap)
    limits = [_limits(samples, outputs)]
    if "statistics_share" in last:
        limits.append(
            f"Statistics of normalization, which the linearized network keeps, make up "
            f"{_amount(last['statistics_share'])} the outputs' movement."
        )
    return Verdict(regime, facts, _MEANINGS[regime], " ".join(filter(None, limits)))


def _judged(last: Mapping[str, float], drift: float, gap: float) -> tuple[str, str]:
    """The regime, and the facts behind it."""
    distance = last.get("kernel_distance", math.nan)
    parts = []
    if not math.isnan(drift):
        parts.append(_movement(drift, distance))
    if not math.isnan(gap):
        parts.append(f"the linearized network misses {_amount(gap)} the outputs' movement")
    facts = " and ".join(parts)
    largest = max(value for value in (drift, gap) if not math.isnan(value))
    if largest < LAZY_BELOW:
        are = "both are" if len(parts) == 2 else "that is"
        return "lazy", f"{facts}; {are} below {LAZY_BELOW:.0%}"
    buffers = last.get("buffer_drift", 0.0)
    # Of statistics that follow from the parameters the verdict need not wait.
    if buffers > BUFFERS_ABOVE and "statistics_share" not in last:
        statistics = f"the running statistics of normalization moved by {_amount(buffers)}"
        return "undecided", f"{facts}; but {statistics} their norm"
    reasons = []
    if not math.isnan(distance):
        if distance > TURNED_ABOVE:
            reasons.append(f"the distance is above {TURNED_ABOVE:g}")
    elif drift > RICH_ABOVE:
        reasons.append(f"the kernel's movement is above {RICH_ABOVE:.0%}")
    if gap > RICH_ABOVE:
        reasons.append(f"what is missed is above {RICH_ABOVE:.0%}")
    if reasons:
        return "feature learning", f"{facts}; {' and '.join(reasons)}"
    return "in between", f"{facts}; that is more than lazy training allows"


def _movement(drift: float, distance: float) -> str:
    """What became of the kernel, in words."""
    if math.isnan(distance):
        return f"the kernel moved by {_amount(drift)} its norm"
    turned = f"the kernel has turned by {distance:.2g} (1 - cosine, 1 at most)"
    if drift <= 1.0:
        return f"the kernel moved by {_amount(drift)} its norm and has turned by {distance:.2g}"
    # From drift² = s² - 2sc + 1, s the kernel's size over that at the start and c the cosine.
    cosine = 1.0 - distance
    size = cosine + math.sqrt(max(0.0, cosine**2 - 1.0 + drift**2))
    return f"{turned} and is {size:.3g} times as large as at the start"


def _limits(samples: int | None, outputs: int | None) -> str:
    if samples is None:
        return ""
    few = ", which are few: eigenvalues and gap may differ on others" if samples < _FEW else ""
    estimated = (
        f" The kernel is estimated from random directions of {outputs:,} outputs."
        if outputs is not None
        else ""
    )
    return f"It rests on {samples} sample{'s' if samples != 1 else ''}{few}.{estimated}"


def _amount(share: float) -> str:
    """A relative change in words that go before the name of the whole."""
    return f"{share:.1%} of" if share < _TIMES_FROM else f"{share:.3g} times"
