"""How sizes in a network depend on its width, at initialization and after a few training steps.

`coordinate_check` draws a network of each width from each seed, trains it for a few steps
(`_training.py`), and notes in every forward pass the outputs of its modules (`_recorder.py`); the
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
