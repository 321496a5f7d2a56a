"""A network as a sequence of operations on covariances: `lift/` makes it, `engine/` runs it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from .operations import Input, Operation


@dataclass(frozen=True)
class Step:
    """One operation in a program.

    Attributes:
        operation: The operation, or an input of the network.
        inputs: The indices of the steps whose results are the operation's inputs.
        positions: `(P, Q)` of the result; (1, 1) for a vector.
    """

    operation: Input | Operation
    inputs: tuple[int, ...]
    positions: tuple[int, int]


@dataclass(frozen=True)
class Program:
    """The steps in an order of evaluation; the result of the last one is the network's output."""

    steps: tuple[Step, ...]

    @property
    def known(self) -> tuple[Input, ...]:
        """The inputs of the network, and other data of its images."""
        return tuple(s.operation for s in self.steps if isinstance(s.operation, Input))

    @property
    def random_per_image(self) -> bool:
        """Whether an operation draws random numbers for every image: see `Operation`."""
        return any(
            not isinstance(s.operation, Input) and s.operation.random_per_image for s in self.steps
        )

    @classmethod
    def to(cls, steps: Sequence[Step], last: int) -> Program:
        """Return the program of those of `steps` on which the step with index `last` depends."""
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
