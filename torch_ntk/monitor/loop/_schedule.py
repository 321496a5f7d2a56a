"""When to measure: at fixed steps, or as often as a share of the running time allows."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence

from ..._checks import (
    check_choice,
    check_finite_number,
    check_positive_int,
    describe,
    type_error,
    value_error,
)

_PER_DOUBLING = 4  # points of the logarithmic schedule between a step and its double


class Schedule:
    """Decides at which steps a measurement is due.

    Without `every_n_steps` and `at_steps`, a measurement is due as soon as the time spent on
    measurements, the next one included, is at most `max_overhead` of the time passed. With one of
    them, the steps are fixed and the budget does not apply: the caller has asked for exactly these
    points.

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
        self._spent = 0.0
        self._last_cost = 0.0

    def start(self) -> None:
        """Begin to count the running time, and what measurements take of it, anew."""
        self._start = self._clock()
        self._spent = self._last_cost = 0.0

    @property
    def is_running(self) -> bool:
        """Whether the running time is being counted."""
        return self._start is not None

    def spend(self, seconds: float) -> None:
        """Take `seconds` of a measurement from the budget."""
        self._spent += seconds
        self._last_cost = seconds

    @property
    def last_cost(self) -> float:
        """The seconds that the last measurement took."""
        return self._last_cost

    def share(self, seconds: float = 0.0) -> float:
        """The share of the running time that measurements have taken, in [0, 1].

        Args:
            seconds: What a measurement has taken that has not been spent yet.
        """
        if self._start is None:
            return 0.0
        passed = self._clock() - self._start
        return min((self._spent + seconds) / passed, 1.0) if passed > 0 else 0.0

    def due(self, step: int) -> bool:
        """Whether to measure at `step`."""
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
        passed = self._clock() - self._start
        return self._spent + self._last_cost <= self.max_overhead * passed


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
