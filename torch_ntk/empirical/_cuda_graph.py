"""Recorded operations as a CUDA graph, with a single launch instead of one for each operation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..memory import budget
from ._recorder import Recording

# A graph keeps the memory of all its results, at most the free memory divided by this number.
_SHARE = 8


@dataclass(frozen=True)
class CudaGraph:
    """A recording as a captured graph.

    Attributes:
        recording: The operations.
        graph: The graph that contains them.
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
        """The bytes of copies of the results, the only memory that a call allocates."""
        return sum(t.numel() * t.element_size() for t in self.results)

    @property
    def decided(self) -> tuple[bool, ...]:
        """The truth values that the conditions must have."""
        return self.recording.decided

    @staticmethod
    def of(recording: Recording, inputs: Sequence[Tensor]) -> Recording | CudaGraph:
        """Return the graph, or the recording itself if it is large or cannot be captured.

        Operations that wait for the device, or copy from the host's memory, cannot be captured.
        """
        kept = recording.peak + sum(t.numel() * t.element_size() for t in inputs)
        device = inputs[0].device
        if kept > budget(device) // _SHARE:
            return recording
        static = [t.clone() for t in inputs]
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(device):
            try:
                # In the first execution libraries allocate their memory, outside of the graph.
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
        """Return the results and conditions as new tensors; see `Recording.__call__`."""
        torch._foreach_copy_(self.inputs, list(inputs))
        self.graph.replay()
        return [t.clone() for t in self.results], [t.clone() for t in self.conditions]
