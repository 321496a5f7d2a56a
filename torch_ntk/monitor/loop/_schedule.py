"""When to measure: at fixed steps, or as often as a share of the running time allows."""

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

_PER_DOUBLING = 4  # points of the logarithmic schedule between a step and its double
_GIVEN = 5.0  # seconds of measurements that a run may have beyond its budget
_POINTS = 10  # that a run has at the least, if as many fit into that time
_STRIDE = 5  # steps between these points, in a run of up to twice as many points of them
_FIRST = 3.0  # times as long as the next measurement the first one may have taken
_FOR_FIGURES = 0.2  # the part of the budget that figures have for themselves


class Schedule:
    """Decides at which steps a measurement is due.

    Without `every_n_steps` and `at_steps`, measurements take at most the share `max_overhead` of
    the running time, the last one of the run included, and are as far apart in time as that
    needs, whatever has gone by before. A run of 50 steps or more has at least ten all the same,
    spread over it, as long as they take less than five seconds together; its length is not known
    before its end, so that the distance doubles whenever there are twenty. With one of the two
    arguments the steps are fixed and the budget does not apply: the caller has asked for exactly
    these points.

    Figures have a part of the budget for themselves and put off no measurement.

    The first and the last step are measured in any case; that is the caller's part.

    Args:
        every_n_steps: Linear: due at its multiples. Logarithmic: due at about four steps per
            doubling, starting from steps 0, n, 2n, ….
        kind: `"linear"` or `"log"`.
        max_overhead: The share of the running time that measurements may take, in [0, 1]; 1 means
            every step.
        at_steps: Due at exactly these steps; instead of the three above.
        clock: Seconds from a fixed origin; replaced in tests.

    Raises:
        TypeError, ValueError: An argument is out of its range, or two do not go together.
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
        self._clock = clock
        self._start: float | None = None
        self._seen = self._before = 0.0
        self._spent = self._last_cost = self._last_end = 0.0
        self._points = 0
        self._figures = self._figure_cost = 0.0

    def start(self) -> None:
        """Count the running time from now on; what went by since it was last asked for does not."""
        if self._start is not None:
            self._before += self._seen - self._start
        self._start = self._seen = self._clock()

    @property
    def is_running(self) -> bool:
        """Whether the running time is being counted."""
        return self._start is not None

    def spend(self, seconds: float, figures: float = 0.0) -> None:
        """Take a measurement from the budget.

        Args:
            seconds: That it has taken, without its figures.
            figures: Seconds that these have taken; 0 if there were none.
        """
        self._spent += seconds
        self._last_cost = seconds
        self._points += 1
        self._figures += figures
        self._figure_cost = figures or self._figure_cost
        self._last_end = self._passed()

    @property
    def last_cost(self) -> float:
        """The seconds that the last measurement took."""
        return self._last_cost

    def _passed(self) -> float:
        """Seconds that have been counted."""
        if self._start is None:
            return self._before
        self._seen = self._clock()
        return self._before + self._seen - self._start

    def share(self, seconds: float = 0.0) -> float:
        """The share of the running time that measurements and figures have taken, in [0, 1].

        Args:
            seconds: What a measurement has taken that has not been spent yet.
        """
        passed = self._passed()
        spent = self._spent + self._figures + seconds
        return min(spent / passed, 1.0) if passed > 0 and self.is_running else 0.0

    @property
    def has_budget(self) -> bool:
        """Whether points follow from the time, and not from the arguments."""
        return self.at_steps is None and self.every_n_steps is None

    def due(self, step: int, last: int | None = None) -> bool:
        """Whether to measure at `step`, after the last measurement at the step `last`."""
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
        is_far = self.kind == "log" or last is None or step - last >= _stride(step)
        return self._is_within_budget() or (is_far and self._is_given())

    def _is_within_budget(self) -> bool:
        allowed = self.max_overhead * (1.0 - _FOR_FIGURES if self._figures else 1.0)
        passed, cost = self._passed(), self._last_cost
        # Apart, so that time without training, such as a validation, is not made up for at once;
        # and with the last one, which comes in any case. The first one has cost more than those.
        is_apart = cost <= allowed * (passed - self._last_end)
        to_come = cost if self._points == 1 else 2.0 * cost
        return is_apart and self._spent + to_come <= allowed * passed

    def _is_given(self) -> bool:
        # Many a first measurement is slow, of a small network by what is loaded then.
        cost = self._last_cost / (_FIRST if self._points == 1 else 1.0)
        fits = self._spent + cost <= _GIVEN and _POINTS * cost <= _GIVEN
        return fits and self.max_overhead > 0.0

    def due_figures(self) -> bool:
        """Whether there is time for figures whose turn it is."""
        if not self.has_budget or not self._figures or self.max_overhead == 1.0:
            return True
        allowed = self.max_overhead * _FOR_FIGURES * self._passed()
        return self._figures + 2.0 * self._figure_cost <= allowed

    def state_dict(self) -> dict[str, float]:
        """The time counted so far, and what measurements have taken of it."""
        return {
            "passed": self._passed(),
            "spent": self._spent,
            "last_cost": self._last_cost,
            "last_end": self._last_end,
            "points": float(self._points),
            "figures": self._figures,
            "figure_cost": self._figure_cost,
        }

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Go on from a state; the time since then does not count."""
        self._start, self._before = None, state["passed"]
        self._spent, self._last_cost = state["spent"], state["last_cost"]
        self._last_end, self._points = state["last_end"], int(state["points"])
        self._figures, self._figure_cost = state["figures"], state["figure_cost"]


def _stride(step: int) -> int:
    """Steps between points that every run has: 5 up to step 100, 10 up to 200, 20 up to 400, …."""
    return _STRIDE << (step // (2 * _POINTS * _STRIDE)).bit_length()


def is_log_spaced(step: int) -> bool:
    """Whether `step` is one of 0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, …."""
    if step < 2 * _PER_DOUBLING:
        return step >= 0
    stride = 1 << int(math.log2(step / _PER_DOUBLING))
    return step % stride == 0


def _check_steps(steps: object) -> frozenset[int]:
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
