"""Figures of kernels and of predicted training, each as `(figure, axes)`.

The functions do not use pyplot's global state. They draw into the axes that are passed as `ax`, or
make a new figure; `plot_coordinates` always makes a figure with several axes. Save a figure with
`figure.savefig("name.png")`; a notebook displays it.
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
