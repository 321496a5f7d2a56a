"""Say how a program is evaluated: which steps go through fused loops, and why others do not."""

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
        operation: Its name.
        positions: `(P, Q)` of its value; (1, 1) for a vector.
        loop: The number of the fused loop that it is part of; None if it is done by tensor
            operations.
        how: What one image of the loop is, or why the step is in none.
    """

    operation: str
    positions: tuple[int, int]
    loop: int | None
    how: str


@dataclass(frozen=True)
class AnalyticExplanation:
    """How a network of infinite width is evaluated; prints as a table.

    Attributes:
        steps: The operations in their order. Known features, which all loops read, are left out.
    """

    steps: tuple[ExplainedStep, ...]

    @property
    def fused(self) -> bool:
        """Whether all of it goes through fused loops."""
        return all(step.loop is not None for step in self.steps)

    def __str__(self) -> str:
        """A table with a line for each operation."""
        width = max(9, *(len(step.operation) for step in self.steps), 9)
        rows = [f"{'operation':<{width}}  {'positions':>9}  {'loop':>4}  how"]
        for step in self.steps:
            p, q = step.positions
            loop = "-" if step.loop is None else str(step.loop)
            rows.append(f"{step.operation:<{width}}  {f'{p}×{q}':>9}  {loop:>4}  {step.how}")
        return "\n".join(rows)


def explanation(program: Program, like: Tensor) -> AnalyticExplanation:
    """How `engine.run` would evaluate a program.

    Args:
        program: The network with its inputs.
        like: A tensor of the type and on the device of the computation.
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
