"""Measure how sizes in a network depend on its width, at the start and after some training steps.

`coordinate_check` draws a network of each width with each seed, trains it for a few steps
(`_training.py`), and records the outputs of its modules (`_recorder.py`). The resulting
`CoordinateCheck` has the sizes and the slopes that are fitted to them.
"""

from ._check import CoordinateCheck as CoordinateCheck
from ._check import CoordinateSizes as CoordinateSizes
from ._coordinate_check import OptimizerFactory as OptimizerFactory
from ._coordinate_check import coordinate_check as coordinate_check

__all__ = [
    "CoordinateCheck",
    "CoordinateSizes",
    "OptimizerFactory",
    "coordinate_check",
]
