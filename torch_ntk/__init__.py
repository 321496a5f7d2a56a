"""The Neural Tangent Kernel for PyTorch.

Layers in the NTK parameterization (`NTKLinear`, …), kernels of real modules (`empirical_ntk`),
linearized networks (`linearize`), and Lightning callbacks that show whether training is lazy
(`torch_ntk.callbacks.NTKMonitor`).
"""

from . import metrics as metrics
from ._version import __version__ as __version__
from .empirical import empirical_nngp as empirical_nngp
from .empirical import empirical_ntk as empirical_ntk
from .empirical import explain as explain
from .empirical import verify as verify
from .linearize import LinearizedModel as LinearizedModel
from .linearize import TaylorModel as TaylorModel
from .linearize import linearize as linearize
from .linearize import taylor_expand as taylor_expand
from .nn import MLP as MLP
from .nn import Abs as Abs
from .nn import Cos as Cos
from .nn import Erf as Erf
from .nn import NTKConv1d as NTKConv1d
from .nn import NTKConv2d as NTKConv2d
from .nn import NTKConv3d as NTKConv3d
from .nn import NTKLinear as NTKLinear
from .nn import Sin as Sin
from .nn import ntk_param_groups as ntk_param_groups
from .nn import ntk_parameterize as ntk_parameterize
from .nn import standard_init_ as standard_init_

__all__ = [
    "MLP",
    "Abs",
    "Cos",
    "Erf",
    "LinearizedModel",
    "NTKConv1d",
    "NTKConv2d",
    "NTKConv3d",
    "NTKLinear",
    "Sin",
    "TaylorModel",
    "__version__",
    "empirical_nngp",
    "empirical_ntk",
    "explain",
    "linearize",
    "metrics",
    "ntk_param_groups",
    "ntk_parameterize",
    "standard_init_",
    "taylor_expand",
    "verify",
]
