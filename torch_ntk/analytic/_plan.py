"""What of each value must be held, found before anything is computed."""

from __future__ import annotations

from dataclasses import dataclass

from ._ops import (
    Activation,
    Affine,
    Concatenation,
    Flatten,
    Gained,
    Normalization,
    Pool,
    Program,
    Scale,
    Sum,
)

# Those whose variances follow from variances alone.
_LINEAR = (Affine, Gained, Scale, Sum, Concatenation, Pool, Flatten)


@dataclass(frozen=True)
class Plan:
    """How the values of a program are held.

    Attributes:
        full: Per step, whether pairs of positions are held, because an average over positions
            follows; otherwise the same position in both images is enough.
        distance: Whether covariances are held as distances: wherever nothing is full.
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
        """Whether variances can only be had from the covariances within each image."""
        return any(v and m for v, m in zip(self.variances, self.mixed, strict=True))


def plan(program: Program) -> Plan:
    """Decide for every step, from the last to the first, what those after it need."""
    steps = program.steps
    n = len(steps)
    full = [False] * n
    last_use = [n] * n
    for i in reversed(range(n)):
        step = steps[i]
        for j in step.inputs:
            last_use[j] = i if last_use[j] == n else last_use[j]
            if isinstance(step.operation, Pool):
                several = steps[j].positions != (1, 1) or step.positions != (1, 1)
                full[j] = full[j] or several
            elif not isinstance(step.operation, Flatten):
                full[j] = full[j] or full[i]
    distance = not any(full)
    mixed = [False] * n
    for i, step in enumerate(steps):
        pooled = isinstance(step.operation, Pool) and full[step.inputs[0]]
        mixed[i] = pooled or any(mixed[j] for j in step.inputs)
    return Plan(
        tuple(full),
        distance,
        tuple(_variances(program, distance)),
        tuple(mixed),
        tuple(last_use),
    )


def _variances(program: Program, distance: bool) -> list[bool]:
    """Where operations are not linear; everywhere if covariances are held as distances.

    Variances are computed step by step, so those of a step's inputs are needed as well.
    """
    steps = program.steps
    needed = [distance] * len(steps)
    for i in reversed(range(len(steps))):
        step = steps[i]
        nonlinear = isinstance(step.operation, (Activation, Normalization))
        linear = isinstance(step.operation, _LINEAR)
        for j in step.inputs:
            needed[j] = needed[j] or nonlinear or (linear and needed[i])
    return needed
