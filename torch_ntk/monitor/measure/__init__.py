"""The metrics, what they need, and how the network is evaluated for a measurement.

A `Record` has the reference on one probe and everything that was measured since. For a measurement
it makes a `Moment`, which represents the network at one step. Quantities that several metrics need
(kernel, spectrum, outputs) are attributes of the moment, which are computed when they are first
used. Then every requested `Metric` of the registry computes its value from the moment.
"""

from ._metric import Curve as Curve
from ._metrics import FORECAST_CURVES as FORECAST_CURVES
from ._metrics import PANELS as PANELS
from ._metrics import SPECTRAL as SPECTRAL
