"""Find which part of each value the network depends on, before anything is computed."""

from __future__ import annotations

from dataclasses import dataclass

from .._program import Program
from ..operations import Input


@dataclass(frozen=True)
class Plan:
    """The form in which each value of a program is computed.

    Attributes:
        full: Per step, whether for all pairs of positions, because an average over positions
            follows; otherwise the same position in both images is enough.
        distance: Whether covariances are kept as distances: wherever nothing is full, and an
            image is as far from itself as from a copy.
        variances: Per step, whether the variances of its value are needed.
        mixed: Per step, whether an average over positions went before: its variances then depend
            on the covariances within an image.
        last_use: Per step, the last step that takes its value.
    """

    full: tuple[bool, ...]
    distance: bool
    variances: tuple[bool, ...]
    mixed: tuple[bool, ...]
    last_use: tuple[int, ...]

    @property
    def variances_need_pairs(self) -> bool:
        """Whether variances depend on the covariances between positions of an image."""
        return any(v and m for v, m in zip(self.variances, self.mixed, strict=True))


def plan(program: Program) -> Plan:
    """Decide for every step, from the last to the first, what those after it need."""
    steps = program.steps
    n = len(steps)
    full, last_use, mixed = [False] * n, [n] * n, [False] * n
    for i, step in reversed(list(enumerate(steps))):
        for j in step.inputs:
            last_use[j] = i if last_use[j] == n else last_use[j]
            assert not isinstance(step.operation, Input)
            several = steps[j].positions != (1, 1) or step.positions != (1, 1)
            full[j] = full[j] or step.operation.wants_full(full[i], several)
    for i, step in enumerate(steps):
        mixes = not isinstance(step.operation, Input) and step.operation.mixes_positions
        mixed[i] = any(mixed[j] or (mixes and full[j]) for j in step.inputs)
    distance = not any(full) and not program.random_per_image
    variances = _variances(program, distance)
    return Plan(tuple(full), distance, tuple(variances), tuple(mixed), tuple(last_use))


def _variances(program: Program, distance: bool) -> list[bool]:
    """Return per value whether its variances are needed: all for distances.

    They are computed step by step, so those of a step's inputs are needed as well.
    """
    needed = [distance] * len(program.steps)
    for i, step in reversed(list(enumerate(program.steps))):
        for j in step.inputs:
            assert not isinstance(step.operation, Input)
            needed[j] = needed[j] or needed[i] or step.operation.needs_variances
    return needed
