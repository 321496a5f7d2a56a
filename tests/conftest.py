"""Fixtures that several folders of tests share."""

from __future__ import annotations

import case as case_module
import pytest
import torch
from cases import CASES, Case

# The models of the tests are so small that threads only wait for each other.
torch.set_num_threads(1)

_CPU = torch.device("cpu")


def pytest_addoption(parser: pytest.Parser) -> None:
    """With `--device cuda` the tests that go through the table run there, and only they."""
    parser.addoption("--device", default="cpu", help="where the models of the table are")


def pytest_configure(config: pytest.Config) -> None:
    """Put the models of the table onto the device that was asked for."""
    case_module.DEVICE = torch.device(config.getoption("--device"))
    # Files are dealt out as they are sorted below, and not by how many tests they have.
    config.option.loadscopereorder = False


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def oracle() -> _Oracle:
    """Jacobians of the cases by plain autograd on the CPU, each computed once per session."""
    return _Oracle()


class _Oracle:
    def __init__(self) -> None:
        self._known: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def __call__(self, case: Case) -> tuple[torch.Tensor, torch.Tensor]:
        """Jacobians on `case.inputs(4)` and `case.inputs(3, 1)`."""
        if case.name not in self._known:
            self._known[case.name] = case.jacobian(4), case.jacobian(3, 1)
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


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What the rows of the table say about the tests that run for them.

    Files with slow tests come first, so that in the end no process waits for another's.
    """
    kept: list[pytest.Item] = []
    dropped: list[pytest.Item] = []
    for item in items:
        callspec = getattr(item, "callspec", None)
        given = {} if callspec is None else callspec.params
        case = given.get("case")
        if not isinstance(case, Case):
            (kept if case_module.DEVICE == _CPU else dropped).append(item)
            continue
        if case.inexact_on_gpu and case_module.DEVICE.type == "cuda":
            reason = f"torch's {case.inexact_on_gpu} has errors of 1e-8 in float64 on a GPU"
            item.add_marker(pytest.mark.xfail(reason=reason, strict=False))
        kept.append(item)
    if dropped:
        config.hook.pytest_deselected(items=dropped)
    slow = {item.path for item in kept if item.get_closest_marker("slow")}
    items[:] = sorted(kept, key=lambda item: item.path not in slow)
