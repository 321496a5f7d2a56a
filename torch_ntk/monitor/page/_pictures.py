"""What a page shows of the measurements besides numbers, kept while training goes on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from ..measure._evaluation import mean_kernel
from ..measure._observation import Observation
from ..measure._record import Record
from ..reference._reference import Reference

MOST_SAMPLES = 64
_MOST_MAPS = 32
_MOST_POINTS = 1000
_T = TypeVar("_T")


class Points(NamedTuple):
    """Outputs of the network beside those of its linearization, at one step.

    Attributes:
        step: Optimizer steps taken.
        network: Some of f_t `[P]`.
        linearized: The same ones of f_t^lin `[P]`.
        place: Their places in the flattened outputs `[P]`.
        outputs: How many of these each sample has.
    """

    step: int
    network: Tensor
    linearized: Tensor
    place: Tensor
    outputs: int


class Pictures:
    """The kernel's map at some of the measured steps, and the last linearization.

    At most 32 maps are kept, of at most 64 samples: where there are more, the map goes whose
    neighbours are nearest to each other in steps, so that the first, the last and an even choice
    between them stay, however long the training is.

    Attributes:
        maps: Step and map `[n, n]`, in units of `output="mean"`, early to late.
        points: Outputs at the last measurement that had a linearization.
    """

    def __init__(self) -> None:
        self.maps: list[tuple[int, Tensor]] = []
        self.points: Points | None = None

    def add(self, record: Record, seen: Observation) -> None:
        """Keep what is to be shown of a measurement."""
        reference = record.reference
        if reference is None:
            return
        if seen.kernel is not None:
            output, picks = record.evaluation.output or "mean", samples_shown(reference)
            kernel = mean_kernel(seen.kernel.detach(), output, reference.size).cpu()
            self.maps.append((seen.step, kernel[picks][:, picks].float()))
            if len(self.maps) > _MOST_MAPS:
                steps = [step for step, _ in self.maps]
                gaps = [after - before for before, after in zip(steps, steps[2:], strict=False)]
                del self.maps[1 + gaps.index(min(gaps))]
        if seen.outputs is not None and seen.linearized is not None:
            f = seen.outputs.detach().flatten(1).cpu()
            g = seen.linearized.detach().flatten(1).cpu()
            place = torch.tensor(spread(range(f.numel()), _MOST_POINTS))
            network, linearized = (values.flatten()[place].float() for values in (f, g))
            self.points = Points(seen.step, network, linearized, place, f.shape[1])

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values only."""
        return {
            "maps": [[step, kernel] for step, kernel in self.maps],
            "points": None if self.points is None else list(self.points),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state; without one from nothing."""
        self.maps = [(int(step), kernel) for step, kernel in state.get("maps", ())]
        points = state.get("points")
        self.points = None if points is None else Points(*points)


def classes_of(reference: Reference) -> Tensor | None:
    """The class of each sample of the probe; None where targets are not one integer for each."""
    y = reference.probe.y
    if y is None or y.shape != (len(reference.probe),):
        return None
    return None if y.is_floating_point() or y.is_complex() else y.detach().cpu()


def samples_shown(reference: Reference) -> Tensor:
    """The samples of the map `[n]`: by class where they have one, at most 64, evenly spread."""
    classes, count = classes_of(reference), len(reference.probe)
    order = torch.arange(count) if classes is None else torch.argsort(classes, stable=True)
    return order[spread(range(count), MOST_SAMPLES)]


def spread(items: Sequence[_T], most: int) -> list[_T]:
    """At most `most` items, evenly spread, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]
