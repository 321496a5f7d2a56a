"""When a measurement is due, on a clock that the test turns."""

from __future__ import annotations

from typing import Any

import pytest

from torch_ntk.monitor import Schedule


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def due(schedule: Schedule, steps: int) -> list[int]:
    return [step for step in range(steps) if schedule.due(step)]


def test_multiples() -> None:
    assert due(Schedule(4), 13) == [0, 4, 8, 12]


def test_about_four_points_per_doubling() -> None:
    points = due(Schedule(1, "log"), 1025)
    assert points[:14] == [0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20]
    for k in range(3, 10):
        assert sum(2**k <= p < 2 ** (k + 1) for p in points) == 4


def test_logarithmic_in_units_of_every_n_steps() -> None:
    assert due(Schedule(10, "log"), 130) == [0, 10, 20, 30, 40, 50, 60, 70, 80, 100, 120]


def test_budget_holds_the_share() -> None:
    """Steps of 10 ms and measurements of 0.2 s: 5% of the time, and not much less."""
    clock = Clock()
    schedule = Schedule(max_overhead=0.05, clock=clock)
    schedule.start()
    spent = fired = 0.0
    for step in range(5000):
        if schedule.due(step):
            clock.now += 0.2
            schedule.spend(0.2)
            spent += 0.2
            fired += 1
            assert step == 0 or spent <= 0.05 * (clock.now - 1000.0) + 0.011
        clock.now += 0.01
    total = clock.now - 1000.0
    assert 0.04 * total < spent <= 0.05 * total
    assert schedule.share() == pytest.approx(spent / total)


def test_budget_applies_to_logarithmic_points_too() -> None:
    clock = Clock()
    schedule = Schedule(kind="log", max_overhead=0.5, clock=clock)
    schedule.start()
    schedule.spend(1.0)
    assert due(schedule, 40) == []
    clock.now += 4.0
    assert due(schedule, 24) == [0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20]


def test_no_budget_means_never_and_a_whole_one_always() -> None:
    clock = Clock()
    none, whole = Schedule(max_overhead=0.0, clock=clock), Schedule(max_overhead=1.0, clock=clock)
    for schedule in (none, whole):
        schedule.start()
        schedule.spend(0.5)
    clock.now += 1.0
    assert due(none, 10) == []
    assert due(whole, 3) == [0, 1, 2]


def test_fixed_steps_do_not_ask_for_the_time() -> None:
    schedule = Schedule(2, max_overhead=0.0, clock=Clock())
    schedule.start()
    schedule.spend(1e9)
    assert due(schedule, 5) == [0, 2, 4]


def test_exactly_these_steps() -> None:
    clock = Clock()
    schedule = Schedule(at_steps=[7, 2, 2, 11], max_overhead=0.0, clock=clock)
    schedule.start()
    schedule.spend(1e9)  # no budget applies to them
    assert due(schedule, 13) == [2, 7, 11]
    assert due(Schedule(at_steps=range(0, 10, 4)), 10) == [0, 4, 8]


def test_the_share_of_the_time() -> None:
    clock = Clock()
    schedule = Schedule(clock=clock)
    assert schedule.share(3.0) == 0.0  # nothing runs yet
    schedule.start()
    clock.now += 10.0
    schedule.spend(1.0)
    assert schedule.share() == pytest.approx(0.1)
    assert schedule.share(2.0) == pytest.approx(0.3)
    assert schedule.share(100.0) == 1.0


def test_starting_again_forgets_the_time_between() -> None:
    clock = Clock()
    schedule = Schedule(max_overhead=0.1, clock=clock)
    schedule.start()
    schedule.spend(5.0)
    clock.now += 1e6
    schedule.start()
    assert schedule.share() == 0.0
    schedule.spend(1.0)
    clock.now += 2.0
    assert not schedule.due(7)
    assert schedule.share() == 0.5


@pytest.mark.parametrize(
    ("arguments", "error", "names"),
    [
        ({"every_n_steps": 0}, ValueError, "every_n_steps"),
        ({"every_n_steps": 2.0}, TypeError, "every_n_steps"),
        ({"every_n_steps": True}, TypeError, "every_n_steps"),
        ({"kind": "cubic"}, ValueError, "schedule"),
        ({"max_overhead": -0.1}, ValueError, "max_overhead"),
        ({"max_overhead": 5}, ValueError, "max_overhead"),
        ({"max_overhead": float("nan")}, ValueError, "max_overhead"),
        ({"max_overhead": "5%"}, TypeError, "max_overhead"),
        ({"at_steps": 5}, TypeError, "at_steps"),
        ({"at_steps": "12"}, TypeError, "at_steps"),
        ({"at_steps": [1, 2.0]}, TypeError, "at_steps"),
        ({"at_steps": [True]}, TypeError, "at_steps"),
        ({"at_steps": [3, -1]}, ValueError, "at_steps"),
        ({"at_steps": []}, ValueError, "at_steps"),
        ({"at_steps": [1], "every_n_steps": 5}, ValueError, "at_steps"),
        ({"at_steps": [1], "kind": "log"}, ValueError, "at_steps"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], error: type[Exception], names: str) -> None:
    with pytest.raises(error, match=f"`{names}`"):
        Schedule(**arguments)
