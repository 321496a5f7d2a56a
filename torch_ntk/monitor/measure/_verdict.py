"""The verdict on a training, whether it is lazy, in one sentence."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

LAZY_BELOW = 0.1
RICH_ABOVE = 0.3
TURNED_ABOVE = 0.05  # 1 - cosine, as for a change of 0.3 times the norm orthogonal to Θ_0
BUFFERS_ABOVE = 0.1
_TIMES_FROM = 10.0  # relative changes above this are written as a factor and not as a percentage
_FEW = 32  # a probe with fewer samples is called small
_DIVERGED_ABOVE = 1000.0  # the relative change of the parameters above which a run has diverged

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
    """The regime of a training, with the reason.

    Attributes:
        regime: `"lazy"`, `"feature learning"` or `"in between"`. It is `"undecided"` if running
            statistics have changed as well, `"diverged"` if the parameters became NaN, infinite or
            a thousand times as large, and `"unknown"` if nothing was measured or nothing changed.
        reason: A sentence with the numbers from which the regime follows.
        meaning: What the regime means and what to try, or "".
        limits: On how many samples and outputs the numbers are based, or "" if it is not known.
    """

    regime: str
    reason: str
    meaning: str = ""
    limits: str = ""

    def __str__(self) -> str:
        """Regime and reason in one line."""
        return f"{self.regime}: {self.reason}"

    @property
    def text(self) -> str:
        """All parts of the verdict in a few sentences."""
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

    A training is lazy if the kernel hardly changes and the outputs follow the linearization: drift
    and linearization gap are both below 0.1. It is feature learning if `kernel_distance`, 1 - cos,
    is above 0.05, or if it is not known and drift is above 0.3, or if the gap is above 0.3.
    Otherwise it is in between, as with a kernel that only grows. These limits are conventions. In
    the infinite-width limit drift and gap decrease as width^-1/2 (Lee et al. 2019, theorem 2.1).

    There is no judgement if drift and gap are exactly 0 and the parameters are not known to have
    changed. Neither is there one if they are above 0.1 and buffers have changed by more than 0.1 of
    their norm, since running statistics of normalization change kernel and outputs even if the
    parameters do not change.

    Args:
        last: The metrics of the last measurement by name, of which `drift`, `kernel_distance`,
            `linearization_gap`, `param_drift`, `buffer_drift` and `statistics_share` are used.
        diverged_at: The step at which the parameters were NaN or infinite, if they still are.
        samples: The number of samples on which the metrics were measured, or None.
        outputs: The number of outputs of a sample if the kernel is estimated from directions of
            them, else None.
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
        # A network that is linear in its parameters has drift 0 and gap 0 although it learns.
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
    """The regime and the reason, if drift or gap is known (the other one may be NaN)."""
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
    # Statistics of the probe are a function of the parameters, and do not make it undecided.
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
    """A clause about the change of the kernel; `distance` may be NaN."""
    if math.isnan(distance):
        return f"the kernel moved by {_amount(drift)} its norm"
    turned = f"the kernel has turned by {distance:.2g} (1 - cosine, 1 at most)"
    if drift <= 1.0:
        return f"the kernel moved by {_amount(drift)} its norm and has turned by {distance:.2g}"
    # With s = ‖Θ_t‖ / ‖Θ_0‖ and the cosine c, drift² = s² - 2sc + 1 is solved for s.
    cosine = 1.0 - distance
    size = cosine + math.sqrt(max(0.0, cosine**2 - 1.0 + drift**2))
    return f"{turned} and is {size:.3g} times as large as at the start"


def _limits(samples: int | None, outputs: int | None) -> str:
    """A sentence about the samples and outputs on which the verdict is based."""
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
    """A relative change as "12.0% of" or "12 times", to be put before the name of the whole."""
    return f"{share:.1%} of" if share < _TIMES_FROM else f"{share:.3g} times"
