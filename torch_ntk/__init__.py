"""The Neural Tangent Kernel for PyTorch.

Layers in the NTK parameterization (`NTKLinear`, …), kernels of real modules (`empirical_ntk`),
linearized networks (`linearize`), and Lightning callbacks that show whether training is lazy
(`torch_ntk.callbacks.NTKMonitor`).
"""

from . import metrics as metrics
from ._version import __version__ as __version__
from .empirical import empirical_nngp as empirical_nngp
from .empirical import empirical_ntk as empirical_ntk
