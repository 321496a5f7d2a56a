"""The class of a metric: a number with a name, a function that computes it, and its curves."""

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
"""The quantities that a metric may need, which are attributes of `Moment`."""

Values: TypeAlias = Tensor | float | Mapping[str, float]
"""The value of a metric (a tensor has one entry), or several values by their logged names."""

VALIDATION = "val_"
"""The first part of the name of a metric on the validation probe."""


@dataclass(frozen=True)
class Panel:
    """A chart of curves that belong together.

    Attributes:
        title: The title, both in the figure of the history and on TensorBoard's page.
        logarithmic: Whether the vertical axis of the figure is logarithmic.
        in_figure: Whether the figure of the history contains this panel. TensorBoard's page has all
            panels.
    """

    title: str
    logarithmic: bool = False
    in_figure: bool = True


@dataclass(frozen=True)
class Curve:
    """A logged number as a function of the step.

    Attributes:
        name: The logged name without prefix. If it ends in "/", it represents all curves whose
            names begin with it.
        label: The label in a legend. If it is "", the label is the part of the name after the "/".
        panel: The chart of the curve.
        is_limit: Whether the curve is a limit with which other curves of the chart are compared.
    """

    name: str
    label: str
    panel: Panel
    is_limit: bool = False

    @property
    def is_family(self) -> bool:
        """Whether it represents all curves whose names begin with its name."""
        return self.name.endswith("/")


@dataclass(frozen=True)
class Metric:
    """A number that describes a network in training. It is an entry of the registry.

    Attributes:
        name: The name by which users request it. It is also the logged name, unless `compute`
            returns other names.
        compute: A function of a moment of the training that returns the value, or any number of
            values by their logged names. If the value is not defined, it raises `UndefinedError`
            with the reason. The metric is then left out with one warning, and training continues.
            Any other error is a mistake in the metric and ends the measurement.
        needs: The quantities of the moment that it needs. An error in computing one of them ends
            the measurement.
        curves: Its curves, of which the first one has its name.
        meaning: The formula in a few words.
        on_request: Whether it is measured only if a user requests it by name.
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
        """The values by their logged names.

        If the metric is not defined, there are none, and the reason is put into `moment.undefined`.
        """
        for need in self.needs:  # an error here ends the measurement
            getattr(moment, need)
        try:
            found = self.compute(moment)
        except ArgumentError as error:
            moment.undefined[self.name] = str(error)
            return {}
        return {self.name: float(found)} if isinstance(found, (Tensor, float)) else dict(found)

    @property
    def validation_curves(self) -> tuple[Curve, ...]:
        """The curve of its values on the validation probe, if it is measured there."""
        if not self.on_validation:
            return ()
        own = self.curves[0]
        return (Curve(VALIDATION + own.name, f"{own.label}, validation", own.panel),)
