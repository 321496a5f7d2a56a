"""A forecast beside the training that it is of; without any trainer.

Apart from `torch_ntk.forecasting`, so that a forecast alone needs nothing of monitors.
"""

from ._course import Course as Course
from ._forecast_session import ForecastSession as ForecastSession
from ._steps import Steps as Steps
from ._steps import rates_now as rates_now
from ._steps import read_steps_of as read_steps_of

__all__ = ["Course", "ForecastSession", "Steps", "rates_now", "read_steps_of"]
