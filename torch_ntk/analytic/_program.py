"""A network as a sequence of operations on covariances: what `lift/` makes and `engine/` runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from .operations import Input, Operation


@dataclass(frozen=True)
class Step:
    """One operation in a program.

    Attributes:
        operation: What is done, or the known features that are taken in.
        inputs: The numbers of the steps whose values it takes.
        positions: `(P, Q)` of its value; (1, 1) for a vector.
    """

    operation: Input | Operation
    inputs: tuple[int, ...]
    positions: tuple[int, int]


@dataclass(frozen=True)
class Program:
    """Steps in an order in which they can be done; the value of the last is the network's."""

    steps: tuple[Step, ...]

    @property
    def known(self) -> tuple[Input, ...]:
        """All that is known of the images."""
        return tuple(s.operation for s in self.steps if isinstance(s.operation, Input))

    @property
    def differs_for_itself(self) -> bool:
        """Whether an image with itself is another matter than with an exact copy of it."""
        return any(
            not isinstance(s.operation, Input) and s.operation.differs_for_itself
            for s in self.steps
        )

    @classmethod
    def to(cls, steps: Sequence[Step], last: int) -> Program:
        """The program of those of `steps` that number `last` depends on."""
        wanted = {last}
        for i in range(last, -1, -1):
            if i in wanted:
                wanted.update(steps[i].inputs)
        order = sorted(wanted)
        number = {old: new for new, old in enumerate(order)}
        return cls(
            tuple(
                replace(steps[i], inputs=tuple(number[j] for j in steps[i].inputs)) for i in order
            )
        )
