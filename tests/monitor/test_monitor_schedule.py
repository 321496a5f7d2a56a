"""When a measurement is due, on a clock that the test turns."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from torch_ntk.monitor.loop._schedule import Schedule


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


def run(
    schedule: Schedule, clock: Clock, steps: int, cost: float, step_time: float, first: int = 0
) -> list[int]:
    """The steps that are measured, at a cost in seconds; the first one costs three times that."""
    points: list[int] = []
    for step in range(first, first + steps):
        if not points or schedule.due(step, points[-1]):
            price = cost if points or first else 3.0 * cost
            clock.now += price
            schedule.spend(price)
            points.append(step)
        clock.now += step_time
    return points


def started(**options: Any) -> tuple[Schedule, Clock]:
    clock = Clock()
    schedule = Schedule(clock=clock, **options)
    schedule.start()
    return schedule, clock


def test_budget_holds_the_share() -> None:
    """Steps of 10 ms and measurements of 0.6 s: 5% of the time, and not much less."""
    schedule, clock = started(max_overhead=0.05)
    points = run(schedule, clock, 20000, 0.6, 0.01)
    clock.now += 0.6
    schedule.spend(0.6)  # the last one, in any case
    assert 0.04 < schedule.share() <= 0.05
    distances = [b - a for a, b in pairwise(points)]
    assert max(distances[2:]) - min(distances[2:]) <= 1  # evenly


@pytest.mark.parametrize("steps", [50, 77, 128, 1000, 12000])
def test_a_run_has_ten_points_that_are_spread_over_it(steps: int) -> None:
    schedule, clock = started()
    points = run(schedule, clock, steps, 0.02, 0.001)
    assert 10 <= len(points) <= 100
    assert max(b - a for a, b in zip(points, [*points[1:], steps], strict=True)) <= steps / 9


@pytest.mark.parametrize(("cost", "step_time"), [(0.3, 0.001), (0.49, 0.05), (2.0, 0.3)])
def test_what_is_beyond_the_budget_takes_five_seconds(cost: float, step_time: float) -> None:
    schedule, clock = started()
    points = run(schedule, clock, 400, cost, step_time)
    spent = (len(points) + 2) * cost
    assert spent <= max(5.0, 3.0 * cost + 0.05 * (clock.now - 1000.0))


def test_time_without_training_is_not_made_up_for_at_once() -> None:
    schedule, clock = started()
    run(schedule, clock, 100, 0.6, 0.1)
    clock.now += 1000.0  # a validation
    after = run(schedule, clock, 100, 0.6, 0.1, first=100)
    assert after == [100]


def test_figures_put_off_no_measurement() -> None:
    schedule, clock = started()
    plain = run(*started(), 2000, 0.02, 0.01)
    schedule.spend(0.06, figures=0.55)
    clock.now += 0.61
    with_figures = run(schedule, clock, 2000, 0.02, 0.01, first=1)
    assert len(with_figures) >= 0.7 * len(plain)
    assert not schedule.due_figures()  # 1% of 20 s, and the last one is to come
    clock.now += 150.0
    assert schedule.due_figures()


def test_a_state_goes_on() -> None:
    """The time between two runs does not count, and what was spent before does."""
    whole = run(*started(), 800, 0.6, 0.1)
    schedule, clock = started()
    points = run(schedule, clock, 400, 0.6, 0.1)
    state = schedule.state_dict()
    clock.now += 1e6
    resumed = Schedule(clock=clock)
    resumed.load_state_dict(state)
    resumed.start()
    for step in range(400, 800):
        if resumed.due(step, points[-1]):
            clock.now += 0.6
            resumed.spend(0.6)
            points.append(step)
        clock.now += 0.1
    assert points == whole


@pytest.mark.parametrize("steps", [50, 64, 255, 1000, 20_000])
def test_a_run_of_known_length_has_ten_points_beyond_its_budget(steps: int) -> None:
    schedule, clock = started()
    schedule.length = steps
    points = run(schedule, clock, steps, cost=0.4, step_time=1e-4)
    assert 10 <= len(points) <= 12
    assert max(b - a for a, b in pairwise(points)) <= steps // 10 + 1


def test_budget_applies_to_logarithmic_points_too() -> None:
    schedule, clock = started(kind="log", max_overhead=0.5)
    schedule.spend(6.0)
    assert due(schedule, 40) == []
    clock.now += 36.0
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


def test_starting_again_leaves_out_the_time_between() -> None:
    schedule, clock = started(max_overhead=0.1)
    clock.now += 5.0
    schedule.spend(1.0)
    clock.now += 1e6
    schedule.start()
    assert schedule.share() == pytest.approx(0.2)
    clock.now += 5.0
    assert schedule.share() == pytest.approx(0.1)


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
