"""Recorded operations as a CUDA graph: one launch in place of one for each operation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..memory import budget
from ._recorder import Recording

# A graph keeps the memory of all its results. It may be this share of what is free.
_SHARE = 8


@dataclass(frozen=True)
class CudaGraph:
    """A captured recording.

    Attributes:
        recording: The operations.
        graph: What has been captured of them.
        inputs: The tensors that the graph reads.
        results, conditions: The tensors that it writes.
    """

    recording: Recording
    graph: torch.cuda.CUDAGraph
    inputs: list[Tensor]
    results: list[Tensor]
    conditions: list[Tensor]

    @property
    def peak(self) -> int:
        """No new memory, but for copies of the results."""
        return sum(t.numel() * t.element_size() for t in self.results)

    @property
    def decided(self) -> tuple[bool, ...]:
        """The truth values that the conditions must have."""
        return self.recording.decided

    @staticmethod
    def of(recording: Recording, inputs: Sequence[Tensor]) -> Recording | CudaGraph:
        """The graph, or the recording itself if that is large or cannot be captured.

        Operations that wait for the device, or that copy from the memory of the host, cannot.
        """
        kept = recording.peak + sum(t.numel() * t.element_size() for t in inputs)
        device = inputs[0].device
        if kept > budget(device) // _SHARE:
            return recording
        static = [t.clone() for t in inputs]
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(device):
            try:
                # Libraries allocate what they need in a first execution, outside of the graph.
                aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
                aside.wait_stream(torch.cuda.current_stream())
                with torch.cuda.stream(aside):
                    recording(static)
                torch.cuda.current_stream().wait_stream(aside)
                with torch.cuda.graph(graph):
                    results, conditions = recording(static)
            except RuntimeError:
                return recording
        return CudaGraph(recording, graph, static, results, conditions)

    def __call__(self, inputs: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """As `Recording.__call__`. The results are new tensors."""
        torch._foreach_copy_(self.inputs, list(inputs))
        self.graph.replay()
        return [t.clone() for t in self.results], [t.clone() for t in self.conditions]
