"""Fixtures that several folders of tests share."""

from __future__ import annotations

import pytest
import torch
from cases import CASES, Case
from oracles import jacobian_loop

# The models of the tests are so small that threads only wait for each other.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def oracle() -> _Oracle:
    """Jacobians of the cases by plain autograd, each computed once per session."""
    return _Oracle()


class _Oracle:
    def __init__(self) -> None:
        self._known: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def __call__(self, case: Case) -> tuple[torch.Tensor, torch.Tensor]:
        """Jacobians `[4, O, P]` and `[3, O, P]` on `case.inputs(4)` and `case.inputs(3, 1)`."""
        if case.name not in self._known:
            self._known[case.name] = (
                jacobian_loop(case.build(), case.inputs(4)),
                jacobian_loop(case.build(), case.inputs(3, 1)),
            )
        return self._known[case.name]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test with an argument `case` runs for every row of the table."""
    own = any(
        mark.args and "case" in str(mark.args[0])
        for mark in metafunc.definition.iter_markers("parametrize")
    )
    if "case" in metafunc.fixturenames and not own:
        marks = [[pytest.mark.slow] if c.slow else [] for c in CASES]
        metafunc.parametrize(
            "case",
            [pytest.param(c, id=c.name, marks=m) for c, m in zip(CASES, marks, strict=True)],
        )
