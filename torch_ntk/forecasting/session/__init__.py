"""Compare a training, while it runs, with its forecast; independent of any trainer.

This folder is imported separately from `torch_ntk.forecasting`, so that a forecast alone does not
import the monitor.
"""

from ._course import Course as Course
from ._forecast_session import ForecastSession as ForecastSession
from ._steps import Steps as Steps
from ._steps import rates_now as rates_now
from ._steps import read_steps_of as read_steps_of

__all__ = ["Course", "ForecastSession", "Steps", "rates_now", "read_steps_of"]
