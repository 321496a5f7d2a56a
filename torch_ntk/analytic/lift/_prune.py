"""Of all steps that were read, those that the output needs."""

from __future__ import annotations

from dataclasses import replace

from .._ops import Step


def needed(steps: list[Step], last: int) -> tuple[Step, ...]:
    """The steps that the last one needs, renumbered."""
    wanted = {last}
    for i in range(last, -1, -1):
        if i in wanted:
            wanted.update(steps[i].inputs)
    order = sorted(wanted)
    number = {old: new for new, old in enumerate(order)}
    return tuple(replace(steps[i], inputs=tuple(number[j] for j in steps[i].inputs)) for i in order)
