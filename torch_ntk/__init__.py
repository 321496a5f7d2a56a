"""The Neural Tangent Kernel for PyTorch.

Layers in the NTK parameterization (`NTKLinear`, …), kernels of real modules (`empirical_ntk`) and
of their infinite-width limits (`analytic_ntk`, `CNTK`), training in closed form (`predict`),
linearized networks (`linearize`), and Lightning callbacks that show whether training is lazy
(`torch_ntk.callbacks.NTKMonitor`).
"""

from . import metrics as metrics
from . import predict as predict
from ._version import __version__ as __version__
from .analytic import CNTK as CNTK
from .analytic import Kernels as Kernels
from .analytic import analytic_kernels as analytic_kernels
from .analytic import analytic_nngp as analytic_nngp
from .analytic import analytic_ntk as analytic_ntk
from .analytic import mlp_kernels as mlp_kernels
from .empirical import NTKOperator as NTKOperator
from .empirical import empirical_nngp as empirical_nngp
from .empirical import empirical_ntk as empirical_ntk
from .empirical import explain as explain
from .empirical import verify as verify
from .estimators import NTKClassifier as NTKClassifier
from .estimators import NTKRegressor as NTKRegressor
from .forecasting import Forecast as Forecast
from .forecasting import forecast as forecast
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
from .sampling import MonteCarloKernel as MonteCarloKernel
from .sampling import monte_carlo_kernel as monte_carlo_kernel

__all__ = [
    "CNTK",
    "MLP",
    "Abs",
    "Cos",
    "Erf",
    "Forecast",
    "Kernels",
    "LinearizedModel",
    "MonteCarloKernel",
    "NTKClassifier",
    "NTKConv1d",
    "NTKConv2d",
    "NTKConv3d",
    "NTKLinear",
    "NTKOperator",
    "NTKRegressor",
    "Sin",
    "TaylorModel",
    "__version__",
    "analytic_kernels",
    "analytic_nngp",
    "analytic_ntk",
    "empirical_nngp",
    "empirical_ntk",
    "explain",
    "forecast",
    "linearize",
    "metrics",
    "mlp_kernels",
    "monte_carlo_kernel",
    "ntk_param_groups",
    "ntk_parameterize",
    "predict",
    "standard_init_",
    "taylor_expand",
    "verify",
]
