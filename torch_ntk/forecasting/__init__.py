"""Predict a training from the kernel at its start: loss curve, outputs, largest stable step.

`forecast` takes a network and its data, `forecast_from_kernel` a kernel that has been computed
already. `torch_ntk.plotting.plot_forecast` draws the prediction and the real loss curve together.
"""

from ._forecast import Forecast as Forecast
from ._from_kernel import forecast_from_kernel as forecast_from_kernel
from ._from_model import forecast as forecast
from ._from_model import outputs_of as outputs_of
from ._loss import LossLike as LossLike

__all__ = ["Forecast", "LossLike", "forecast", "forecast_from_kernel", "outputs_of"]
