"""Kernels and outputs that are stored during a training, since the page shows them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..measure._infinite_kernel import mean_kernel
from ..measure._observation import Observation, spread
from ..measure._record import Record
from ..reference._reference import Reference

MOST_SAMPLES = 64
_MOST_MAPS = 32
_MOST_POINTS = 1000


class Points(NamedTuple):
    """Outputs of the network and of its linearization at one step.

    Attributes:
        step: The number of optimizer steps.
        network: P of the outputs f_t, `[P]`.
        linearized: The same outputs of the linearization f_t^lin, `[P]`.
        place: Their indices in the flattened outputs, `[P]`.
        outputs: The number of outputs of each sample.
    """

    step: int
    network: Tensor
    linearized: Tensor
    place: Tensor
    outputs: int


class Pictures:
    """The kernel at some of the measured steps, and the last linearization.

    At most 32 kernels of at most 64 samples are stored. If there is one more, the one is deleted
    whose neighbours are closest to each other in steps. So the first one, the last one and an even
    selection between them remain, however long the training is.

    Attributes:
        maps: Pairs of step and kernel `[n, n]`, in units of `output="mean"`, in the order of steps.
        points: The outputs at the last measurement that had a linearization, or None.
    """

    def __init__(self) -> None:
        self.maps: list[tuple[int, Tensor]] = []
        self.points: Points | None = None

    def add(self, record: Record, seen: Observation) -> None:
        """Store kernel and outputs of a measurement as far as the page shows them."""
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
        """The state as tensors and plain values."""
        return {
            "maps": [[step, kernel] for step, kernel in self.maps],
            "points": None if self.points is None else list(self.points),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state, which may be empty."""
        self.maps = [(int(step), kernel) for step, kernel in state.get("maps", ())]
        points = state.get("points")
        self.points = None if points is None else Points(*points)


def classes_of(reference: Reference) -> Tensor | None:
    """The class `[N]` of each sample, or None if targets are not one integer for each sample."""
    y = reference.probe.y
    if y is None or y.shape != (len(reference.probe),):
        return None
    return None if y.is_floating_point() or y.is_complex() else y.detach().cpu()


def samples_shown(reference: Reference) -> Tensor:
    """The indices `[n]` of the at most 64 samples that are shown, ordered by class if known."""
    classes, count = classes_of(reference), len(reference.probe)
    order = torch.arange(count) if classes is None else torch.argsort(classes, stable=True)
    return order[spread(range(count), MOST_SAMPLES)]
