"""The way of one block through the loops, common to both arrangements."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from ....activations import DualActivation
from ...operations import Buffers, FusedBlock, Input, State
from .._task import Block, Task
from ._buffers import LoopBuffers
from ._layout import Layout
from ._loops import ImageTerms, Sums


class FusedEvaluation(ABC):
    """Evaluates everything before one step, block by block, in buffers that are used again.

    Attributes:
        end: The step whose value it gives.
        block: Images of x1 and of x2 in a block.
        fixed: Whether every block must have this size.
    """

    end: int
    block: tuple[int, int]
    fixed: bool

    @abstractmethod
    def __call__(self, block: Block) -> State:
        """The value of the step `end` for a block of pairs."""


class Walk(FusedBlock, ABC):
    """One block on its way; subclasses know what it needs of the images.

    Args:
        task: What is evaluated.
        layout: How values are arranged.
        buffers: The loops and their buffers.
        start: The first displacement of the block along either axis.
    """

    def __init__(
        self, task: Task, layout: Layout, buffers: LoopBuffers, start: tuple[int, int] = (0, 0)
    ) -> None:
        self._task = task
        self._layout = layout
        self._buffers = buffers
        self._start = start
        self._merged = layout.merged

    @abstractmethod
    def _input(self, step: int, features: Input) -> Buffers:
        """The known features that enter at a step."""

    @abstractmethod
    def _images(self, step: int) -> ImageTerms:
        """What the activation of a step needs to know of the images."""

    def _sums(self, step: int) -> Sums:
        """With distances, the variances of the value of a step."""
        return None

    def run(self) -> Buffers:
        """The value of the last step of the layout."""
        steps = self._task.program.steps
        # A layer that is merged is done together with the activation that takes its value, so its
        # inputs are used at that later step.
        sources = {
            i: steps[self._merged.get(i, i)].inputs
            for i in self._layout.steps
            if i not in self._merged.values()
        }
        last_use = {j: i for i, inputs in sources.items() for j in inputs}
        values: dict[int, Buffers] = {}
        for i, inputs in sources.items():
            taken = [values[j] for j in inputs]
            operation = steps[i].operation
            if isinstance(operation, Input):
                values[i] = self._input(i, operation)
            else:
                values[i] = operation.fused(self, i, taken)
            for j in set(inputs):
                if last_use[j] == i:
                    self._buffers.give_back(*values.pop(j))
        return values[self._layout.steps[-1]]

    def affine(self, step: int, taken: Buffers) -> Buffers:
        """A layer of weights."""
        return self._buffers.affine(step, taken, self._start, self._sums(step))

    def activation(self, step: int, dual: DualActivation, taken: Buffers) -> Buffers:
        """An activation, with the layer before it if both are one loop."""
        images = self._images(step)
        layer = self._merged.get(step)
        if layer is None:
            return self._buffers.activation(step, dual, taken, images)
        sums = self._sums(layer)
        return self._buffers.layer(layer, dual, taken, self._start, sums, images)

    def weighted(self, taken: Sequence[Buffers], weights: Sequence[float]) -> Buffers:
        """A sum with constant weights."""
        return self._buffers.weighted(taken, weights)
