"""Explain which steps of a program fused loops evaluate, and why they do not evaluate others."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ._program import Program
from .engine import divided
from .operations import Input


@dataclass(frozen=True)
class ExplainedStep:
    """How one operation is evaluated.

    Attributes:
        operation: The name of the operation.
        positions: `(P, Q)` of its result; (1, 1) for a vector.
        loop: The number of the fused loop that evaluates it; None if tensor operations do.
        how: Over what the loop iterates, or why no loop evaluates the step.
    """

    operation: str
    positions: tuple[int, int]
    loop: int | None
    how: str


@dataclass(frozen=True)
class AnalyticExplanation:
    """How the kernel of an infinitely wide network is evaluated; prints as a table.

    Attributes:
        steps: The operations in their order, without the inputs of the network.
    """

    steps: tuple[ExplainedStep, ...]

    @property
    def fused(self) -> bool:
        """Whether fused loops evaluate all operations."""
        return all(step.loop is not None for step in self.steps)

    def __str__(self) -> str:
        """Return a table with a row for each operation."""
        width = max([9, *(len(step.operation) for step in self.steps)])
        rows = [f"{'operation':<{width}}  {'positions':>9}  {'loop':>4}  how"]
        for step in self.steps:
            p, q = step.positions
            loop = "-" if step.loop is None else str(step.loop)
            rows.append(f"{step.operation:<{width}}  {f'{p}×{q}':>9}  {loop:>4}  {step.how}")
        return "\n".join(rows)


def explanation(program: Program, like: Tensor) -> AnalyticExplanation:
    """Return how `engine.run` would evaluate a program.

    Args:
        program: The network with its inputs.
        like: A tensor with the dtype and device of the computation.
    """
    parts = divided(program, like)
    loops = {i: (n, r) for n, r in enumerate(parts.regions, 1) for i in r.steps}
    steps = []
    for i, step in enumerate(program.steps):
        if isinstance(step.operation, Input):
            continue
        n, region = loops.get(i, (None, None))
        how = parts.reasons[i] if region is None else region.shape.value
        if region is not None and parts.kernels:
            how += ", in a Triton kernel"
        steps.append(ExplainedStep(type(step.operation).__name__, step.positions, n, how))
    return AnalyticExplanation(tuple(steps))
