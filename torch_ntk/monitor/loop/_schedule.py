"""`Schedule`: measurements at fixed steps, or as often as a share of the running time allows."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

from ..._checks import (
    check_choice,
    check_finite_number,
    check_positive_int,
    describe,
    type_error,
    value_error,
)

_PER_DOUBLING = 4  # the number of points of the logarithmic schedule between a step and its double
# A run has at least `_POINTS` measurements, even if they exceed its budget, if they take no more
# than `_GIVEN` seconds. Up to step 2 * `_POINTS` * `_STRIDE` they are `_STRIDE` steps apart.
_GIVEN, _POINTS, _STRIDE = 5.0, 10, 5
_FIRST = 3.0  # the first measurement is assumed to take up to this many times as long as the others
_FOR_FIGURES = 0.2  # the share of the budget that is reserved for figures


class Schedule:
    """Decides at which steps a measurement is due.

    Without `every_n_steps` and `at_steps`, measurements take at most the share `max_overhead` of
    the running time, including the last one of the run. The time between two measurements follows
    from this share, and unused time from before is not made up for. A run of 50 steps or more still
    has at least ten measurements, distributed over the run, if these take less than five seconds
    together. If the length of the run is not known, the distance between them doubles whenever
    there are twenty. With `every_n_steps` or `at_steps` the user has chosen the steps, and the
    budget does not apply.

    A part of the budget is reserved for figures, which therefore do not delay measurements.

    The first and the last step are measured in any case, which is the task of the caller.

    Args:
        every_n_steps: The number n. A linear schedule measures at its multiples. A logarithmic one
            measures at about four of the steps 0, n, 2n, … per doubling.
        kind: `"linear"` or `"log"`.
        max_overhead: The share of the running time that measurements may take, in [0, 1]; 1 means
            every step.
        at_steps: The steps at which to measure, instead of the three arguments above.
        clock: A function that returns the time in seconds, which tests replace.

    Attributes:
        length: The optimizer steps of the whole run, or None if they are not known.
        last_cost: The seconds that the last measurement took.

    Raises:
        TypeError, ValueError: An argument is out of its range, or cannot be used with another.
    """

    def __init__(
        self,
        every_n_steps: int | None = None,
        kind: str = "linear",
        max_overhead: float = 0.05,
        at_steps: Iterable[int] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if every_n_steps is not None:
            check_positive_int("every_n_steps", every_n_steps, "None leaves it to `max_overhead`.")
        self.every_n_steps = every_n_steps
        self.kind = check_choice("schedule", kind, ("linear", "log"))
        self.max_overhead = check_finite_number("max_overhead", max_overhead, minimum=0.0)
        if self.max_overhead > 1.0:
            raise value_error("max_overhead", "a share from 0 to 1", max_overhead, "0.05 means 5%.")
        self.at_steps = None if at_steps is None else _check_steps(at_steps)
        if self.at_steps is not None and (every_n_steps is not None or kind != "linear"):
            other = "every_n_steps" if every_n_steps is not None else "schedule='log'"
            raise value_error(
                "at_steps",
                "the only argument that fixes the steps",
                f"at_steps together with {other}",
                "Put all steps in one list, as in at_steps=sorted({*range(0, 1000, 50), 7}).",
            )
        self.length: int | None = None
        self._clock = clock
        self._start: float | None = None
        self._seen = self._before = 0.0
        self._spent = self.last_cost = self._last_end = 0.0
        self._points = 0
        self._figures = self._figure_cost = 0.0

    def start(self) -> None:
        """Start or resume counting the running time, without the time since it was last read."""
        if self._start is not None:
            self._before += self._seen - self._start
        self._start = self._seen = self._clock()

    @property
    def is_running(self) -> bool:
        """Whether the running time is being counted."""
        return self._start is not None

    def spend(self, seconds: float, figures: float = 0.0) -> None:
        """Subtract the seconds of a measurement from the budget, and those of its figures."""
        self._spent += seconds
        self.last_cost = seconds
        self._points += 1
        self._figures += figures
        self._figure_cost = figures or self._figure_cost
        self._last_end = self._passed()

    def _passed(self) -> float:
        """The running time in seconds that has been counted."""
        if self._start is None:
            return self._before
        self._seen = self._clock()
        return self._before + self._seen - self._start

    def share(self, seconds: float = 0.0) -> float:
        """The share of the running time that measurements and figures have taken, in [0, 1].

        It includes `seconds` of a measurement that has not been passed to `spend` yet.
        """
        passed = self._passed()
        spent = self._spent + self._figures + seconds
        return min(spent / passed, 1.0) if passed > 0 and self.is_running else 0.0

    @property
    def has_budget(self) -> bool:
        """Whether the steps depend on the running time."""
        return self.at_steps is None and self.every_n_steps is None

    def due(self, step: int, last: int | None = None) -> bool:
        """Whether to measure at `step`; the last measurement was at `last`, if there was one."""
        if self.at_steps is not None:
            return step in self.at_steps
        if self.every_n_steps is not None:
            if step % self.every_n_steps:
                return False
            return self.kind == "linear" or is_log_spaced(step // self.every_n_steps)
        if self.kind == "log" and not is_log_spaced(step):
            return False
        if self._start is None or self.max_overhead == 1.0:
            return True
        is_far = self.kind == "log" or last is None or step - last >= self._stride(step)
        return self._is_within_budget() or (is_far and self._is_given())

    def _stride(self, step: int) -> int:
        """The distance of measurements beyond the budget.

        It is a tenth of the run if its length is known, and otherwise 5 steps up to step 100, 10 up
        to 200, 20 up to 400, ….
        """
        if self.length is not None:
            return max(_STRIDE, self.length // _POINTS)
        return _STRIDE << (step // (2 * _POINTS * _STRIDE)).bit_length()

    def _is_within_budget(self) -> bool:
        """Whether another measurement keeps the share of the running time."""
        allowed = self.max_overhead * (1.0 - _FOR_FIGURES if self._figures else 1.0)
        passed, cost = self._passed(), self.last_cost
        # The time since the last measurement must suffice, so that there are not several in a row
        # after a long validation. The budget must also have room for the measurement at the end of
        # the run. The first measurement takes longer than these two, and counts for both.
        is_apart = cost <= allowed * (passed - self._last_end)
        to_come = cost if self._points == 1 else 2.0 * cost
        return is_apart and self._spent + to_come <= allowed * passed

    def _is_given(self) -> bool:
        """Whether another measurement is allowed beyond the budget."""
        # The first measurement is often slow, for small networks because modules are imported.
        cost = self.last_cost / (_FIRST if self._points == 1 else 1.0)
        fits = self._spent + cost <= _GIVEN and _POINTS * cost <= _GIVEN
        return fits and self.max_overhead > 0.0

    def due_figures(self) -> bool:
        """Whether the budget allows figures."""
        if not self.has_budget or not self._figures or self.max_overhead == 1.0:
            return True
        allowed = self.max_overhead * _FOR_FIGURES * self._passed()
        return self._figures + 2.0 * self._figure_cost <= allowed

    def state_dict(self) -> dict[str, float]:
        """The running time so far, and the time that measurements and figures have taken."""
        return {
            "passed": self._passed(),
            "spent": self._spent,
            "last_cost": self.last_cost,
            "last_end": self._last_end,
            "points": float(self._points),
            "figures": self._figures,
            "figure_cost": self._figure_cost,
        }

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Continue from a state. The time since the state was saved does not count."""
        self._start, self._before = None, state["passed"]
        self._spent, self.last_cost = state["spent"], state["last_cost"]
        self._last_end, self._points = state["last_end"], int(state["points"])
        self._figures, self._figure_cost = state["figures"], state["figure_cost"]


def is_log_spaced(step: int) -> bool:
    """Whether `step` is one of 0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, …."""
    if step < 2 * _PER_DOUBLING:
        return step >= 0
    stride = 1 << int(math.log2(step / _PER_DOUBLING))
    return step % stride == 0


def _check_steps(steps: object) -> frozenset[int]:
    """The steps as a set, after a check of the argument `at_steps`."""
    expected = "a sequence of step numbers"
    remedy = "Pass at_steps=[0, 10, 100], for example."
    if not isinstance(steps, (Sequence, set, frozenset)) or isinstance(steps, (str, bytes)):
        raise type_error("at_steps", expected, describe(steps), remedy)
    for step in steps:
        if isinstance(step, bool) or not isinstance(step, int):
            raise type_error("at_steps", expected, f"{describe(step)} in it", remedy)
        if step < 0:
            raise value_error("at_steps", "steps of at least 0", f"{step} in it", remedy)
    if not steps:
        raise value_error("at_steps", "not empty", "no step", remedy)
    return frozenset(steps)
