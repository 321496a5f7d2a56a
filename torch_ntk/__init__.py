"""The Neural Tangent Kernel for PyTorch.

Layers in the NTK parameterization (`NTKLinear`, …), kernels of real modules (`empirical_ntk`) and
of their infinite-width limits (`analytic_ntk`, `CNTK`), training in closed form (`predict`),
linearized networks (`linearize`), and Lightning callbacks that show whether training is lazy
(`torch_ntk.callbacks.NTKMonitor`).

Nothing is loaded before it is used: each public name and each folder is imported when it is first
looked up, so that `import torch_ntk` costs no more than `import torch`.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType
from typing import TYPE_CHECKING

from ._version import __version__ as __version__

if TYPE_CHECKING:
    from . import metrics as metrics
    from . import predict as predict
    from .analytic import CNTK as CNTK
    from .analytic import Kernels as Kernels
    from .analytic import analytic_explain as analytic_explain
    from .analytic import analytic_kernels as analytic_kernels
    from .analytic import analytic_nngp as analytic_nngp
    from .analytic import analytic_ntk as analytic_ntk
    from .analytic import mlp_kernels as mlp_kernels
    from .coordinates import CoordinateCheck as CoordinateCheck
    from .coordinates import coordinate_check as coordinate_check
    from .empirical import NTKOperator as NTKOperator
    from .empirical import ProbedKernel as ProbedKernel
    from .empirical import empirical_nngp as empirical_nngp
    from .empirical import empirical_ntk as empirical_ntk
    from .empirical import explain as explain
    from .empirical import verify as verify
    from .estimators import NTKClassifier as NTKClassifier
    from .estimators import NTKRegressor as NTKRegressor
    from .features import features_error as features_error
    from .features import ntk_features as ntk_features
    from .forecasting import Forecast as Forecast
    from .forecasting import forecast as forecast
    from .linearize import LinearizedModel as LinearizedModel
    from .linearize import TaylorModel as TaylorModel
    from .linearize import linearize as linearize
    from .linearize import taylor_expand as taylor_expand
    from .nn import MLP as MLP
    from .nn import NTKRNN as NTKRNN
    from .nn import RBF as RBF
    from .nn import ABReLU as ABReLU
    from .nn import Abs as Abs
    from .nn import Cos as Cos
    from .nn import Erf as Erf
    from .nn import Exp as Exp
    from .nn import Gabor as Gabor
    from .nn import Gaussian as Gaussian
    from .nn import Hermite as Hermite
    from .nn import Monomial as Monomial
    from .nn import NTKConv1d as NTKConv1d
    from .nn import NTKConv2d as NTKConv2d
    from .nn import NTKConv3d as NTKConv3d
    from .nn import NTKConvLocal2d as NTKConvLocal2d
    from .nn import NTKConvTranspose1d as NTKConvTranspose1d
    from .nn import NTKConvTranspose2d as NTKConvTranspose2d
    from .nn import NTKConvTranspose3d as NTKConvTranspose3d
    from .nn import NTKLinear as NTKLinear
    from .nn import NTKSelfAttention as NTKSelfAttention
    from .nn import Polynomial as Polynomial
    from .nn import RectifiedMonomial as RectifiedMonomial
    from .nn import Sin as Sin
    from .nn import Sinusoid as Sinusoid
    from .nn import ntk_param_groups as ntk_param_groups
    from .nn import ntk_parameterize as ntk_parameterize
    from .nn import standard_init_ as standard_init_
    from .sampling import MonteCarloKernel as MonteCarloKernel
    from .sampling import monte_carlo_kernel as monte_carlo_kernel

__all__ = [
    "CNTK",
    "MLP",
    "NTKRNN",
    "RBF",
    "ABReLU",
    "Abs",
    "CoordinateCheck",
    "Cos",
    "Erf",
    "Exp",
    "Forecast",
    "Gabor",
    "Gaussian",
    "Hermite",
    "Kernels",
    "LinearizedModel",
    "Monomial",
    "MonteCarloKernel",
    "NTKClassifier",
    "NTKConv1d",
    "NTKConv2d",
    "NTKConv3d",
    "NTKConvLocal2d",
    "NTKConvTranspose1d",
    "NTKConvTranspose2d",
    "NTKConvTranspose3d",
    "NTKLinear",
    "NTKOperator",
    "NTKRegressor",
    "NTKSelfAttention",
    "Polynomial",
    "ProbedKernel",
    "RectifiedMonomial",
    "Sin",
    "Sinusoid",
    "TaylorModel",
    "__version__",
    "analytic_explain",
    "analytic_kernels",
    "analytic_nngp",
    "analytic_ntk",
    "coordinate_check",
    "empirical_nngp",
    "empirical_ntk",
    "explain",
    "features_error",
    "forecast",
    "linearize",
    "metrics",
    "mlp_kernels",
    "monte_carlo_kernel",
    "ntk_features",
    "ntk_param_groups",
    "ntk_parameterize",
    "predict",
    "standard_init_",
    "taylor_expand",
    "verify",
]

_NAMES_OF = {
    "analytic": (
        "CNTK Kernels analytic_explain analytic_kernels analytic_nngp analytic_ntk mlp_kernels"
    ),
    "coordinates": "CoordinateCheck coordinate_check",
    "empirical": "NTKOperator ProbedKernel empirical_nngp empirical_ntk explain verify",
    "estimators": "NTKClassifier NTKRegressor",
    "features": "features_error ntk_features",
    "forecasting": "Forecast forecast",
    "linearize": "LinearizedModel TaylorModel linearize taylor_expand",
    "nn": "MLP ABReLU Abs Cos Erf Exp Gabor Gaussian Hermite Monomial Polynomial RBF "
    "RectifiedMonomial Sinusoid NTKConv1d NTKConv2d NTKConv3d NTKConvLocal2d NTKConvTranspose1d "
    "NTKConvTranspose2d NTKConvTranspose3d NTKLinear NTKRNN NTKSelfAttention Sin ntk_param_groups "
    "ntk_parameterize standard_init_",
    "sampling": "MonteCarloKernel monte_carlo_kernel",
}
_FOLDER_OF = {name: folder for folder, names in _NAMES_OF.items() for name in names.split()}


class _Package(ModuleType):
    """The module of this package, which imports names and folders when they are looked up.

    As methods of a class, `__getattr__` and `__dir__` are invisible to type checkers, which read
    the imports above and report a misspelled name.
    """

    def __getattr__(self, name: str) -> object:
        folder = _FOLDER_OF.get(name)
        if folder is not None:
            value = getattr(import_module(f"{__name__}.{folder}"), name)
            setattr(self, name, value)
            return value
        if name in _folders():
            return import_module(f"{__name__}.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __setattr__(self, name: str, value: object) -> None:
        # A folder that has been imported is set as an attribute by Python. `linearize` is also a
        # public function, and that is what `torch_ntk.linearize` is, whoever imports the folder.
        if not (name in _FOLDER_OF and isinstance(value, ModuleType)):
            super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *__all__, *_folders()})


def _folders() -> set[str]:
    return {found.name for found in iter_modules(__path__) if not found.name.startswith("_")}


sys.modules[__name__].__class__ = _Package
