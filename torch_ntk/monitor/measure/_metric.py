"""What a metric is: a number with a name, how it is computed, and where it is shown."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from torch import Tensor

from ..._checks import ArgumentError
from ._moment import Moment

Need: TypeAlias = Literal[
    "kernel", "parts", "spectrum", "outputs", "movement", "infinite", "last_step"
]
"""What a metric may need of a `Moment`, by the name of the property there."""

Values: TypeAlias = Tensor | float | Mapping[str, float]
"""The value of a metric, or several values by their logged names."""

VALIDATION = "val_"
"""Begins the name of a metric on the validation probe."""


@dataclass(frozen=True)
class Panel:
    """A chart of curves that belong together.

    Attributes:
        title: Stands above it, in the figure of the history and on TensorBoard's page alike.
        logarithmic: Whether the figure's axis is.
        in_figure: Whether the figure has it; TensorBoard's page has every panel.
    """

    title: str
    logarithmic: bool = False
    in_figure: bool = True


@dataclass(frozen=True)
class Curve:
    """A logged number over the steps.

    Attributes:
        name: As it is logged, without prefix; one that ends in "/" stands for all that begin so.
        label: In a legend; "" is what follows the "/".
        panel: The chart that it belongs to.
        is_limit: Whether it is something that other curves of the chart are compared with.
    """

    name: str
    label: str
    panel: Panel
    is_limit: bool = False

    @property
    def is_family(self) -> bool:
        """Whether it stands for many."""
        return self.name.endswith("/")


@dataclass(frozen=True)
class Metric:
    """A number that says something of a network in training; an entry of the registry.

    Attributes:
        name: By which it is chosen, and logged unless `compute` returns other names.
        compute: From a moment of the training to the value; or to several by their logged names,
            or to none. Where the value is not defined it raises `UndefinedError` with the reason:
            the metric is left out then, with one warning, and training goes on. Any other error
            is a mistake in the metric and ends the measurement.
        needs: What it takes from the moment. An error on the way to that ends the measurement.
        curves: How it is shown, its own curve first.
        meaning: The formula, in a few words.
        on_request: Whether it is measured only where a user names it.
        on_validation: Whether it is measured on the validation probe as well.
    """

    name: str
    compute: Callable[[Moment], Values]
    needs: tuple[Need, ...]
    curves: tuple[Curve, ...]
    meaning: str
    on_request: bool = False
    on_validation: bool = False

    def measure(self, moment: Moment) -> dict[str, float]:
        """Its values by their logged names; a reason why it has none goes to `moment.undefined`."""
        for need in self.needs:  # an error in here is one of the measurement, not of the metric
            getattr(moment, need)
        try:
            found = self.compute(moment)
        except ArgumentError as error:
            moment.undefined[self.name] = str(error)
            return {}
        return {self.name: float(found)} if isinstance(found, (Tensor, float)) else dict(found)

    @property
    def validation_curves(self) -> tuple[Curve, ...]:
        """Its curve on the validation probe, if there is one."""
        if not self.on_validation:
            return ()
        own = self.curves[0]
        return (Curve(VALIDATION + own.name, f"{own.label}, validation", own.panel),)
