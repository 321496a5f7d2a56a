"""What is done around a CUDA graph, with a stand-in that executes on the CPU what was captured.

`tests/gpu` has the real one.
"""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from torch import Tensor

from torch_ntk.empirical import _cuda_graph
from torch_ntk.empirical._cuda_graph import CudaGraph
from torch_ntk.empirical._recorder import Recorder, Recording, decided


class Graph:
    """Replaying writes into the tensors that capturing returned."""

    captured: Any = None

    def replay(self) -> None:
        """Execute what was captured."""
        static, recording, results, conditions = self.captured
        again, others = recording(static)
        for old, new in zip([*results, *conditions], [*again, *others], strict=True):
            old.copy_(new)


class Stream:
    """Waits for nothing."""

    def wait_stream(self, other: object) -> None:
        """Nothing is computed elsewhere."""


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> None:
    """The parts of torch.cuda that are used."""
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    for name in ("device", "stream", "graph"):
        monkeypatch.setattr(torch.cuda, name, lambda _: contextlib.nullcontext())
    monkeypatch.setattr(_cuda_graph, "budget", lambda _: 8 * 10_000)


def recorded(n: int = 3) -> tuple[Recording, list[Tensor]]:
    """Operations with a result and a decision."""
    inputs = [torch.ones(n), torch.ones(n)]
    with Recorder(inputs) as recorder:
        sign = 1.0 if decided((inputs[0] > 0).all()) else -1.0
        result = sign * inputs[0] + inputs[1].cumsum(0)
    recording = recorder.recording([result])
    assert recording is not None
    return recording, inputs


@pytest.mark.usefixtures("device")
def test_results_are_new_and_inputs_are_left_alone() -> None:
    """Every call copies its inputs in, and its results out."""
    recording, inputs = recorded()
    graph = CudaGraph.of(recording, inputs)
    assert isinstance(graph, CudaGraph)
    graph.graph.captured = graph.inputs, recording, graph.results, graph.conditions
    found = []
    for factor in (1.0, -2.0):
        given = [factor * t for t in inputs]
        results, conditions = graph(given)
        expected, wanted = recording(given)
        assert torch.equal(results[0], expected[0])
        assert [bool(c) for c in conditions] == [bool(c) for c in wanted]
        assert torch.equal(given[0], factor * inputs[0])
        found.append(results[0])
    assert not torch.equal(*found)  # the first result is still what it was
    assert graph.decided == (True,)


@pytest.mark.usefixtures("device")
def test_what_is_large_or_cannot_be_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is executed operation by operation."""
    recording, inputs = recorded(2000)
    assert CudaGraph.of(recording, inputs) is recording

    def refuse(_: object) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(torch.cuda, "graph", refuse)
    recording, inputs = recorded()
    assert CudaGraph.of(recording, inputs) is recording
