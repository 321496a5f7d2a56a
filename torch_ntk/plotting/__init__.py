"""Figures of kernels and of predicted training, each as `(figure, axes)`.

Nothing here touches pyplot's global state: a figure is made for the call, or drawn into the axes
that are passed as `ax`; `plot_coordinates` always makes one, with several axes. Save it with
`figure.savefig("name.png")`; a notebook shows it.
"""

from ._coordinates import CoordinatesLike as CoordinatesLike
from ._coordinates import plot_coordinates as plot_coordinates
from ._density import plot_density as plot_density
from ._forecast import ForecastLike as ForecastLike
from ._forecast import plot_forecast as plot_forecast
from ._kernel import plot_kernel as plot_kernel
from ._spectrum import plot_spectrum as plot_spectrum
from ._trajectories import plot_trajectories as plot_trajectories

__all__ = [
    "CoordinatesLike",
    "ForecastLike",
    "plot_coordinates",
    "plot_density",
    "plot_forecast",
    "plot_kernel",
    "plot_spectrum",
    "plot_trajectories",
]
