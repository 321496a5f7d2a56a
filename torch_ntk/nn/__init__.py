"""Layers in NTK parameterization, further activations, and the conversion of networks."""

from __future__ import annotations

from ._activations import ABReLU as ABReLU
from ._activations import Abs as Abs
from ._activations import Cos as Cos
from ._activations import Erf as Erf
from ._activations import Sin as Sin
from ._attention import NTKSelfAttention as NTKSelfAttention
from ._conv import NTKConv1d as NTKConv1d
from ._conv import NTKConv2d as NTKConv2d
from ._conv import NTKConv3d as NTKConv3d
from ._conv_local import NTKConvLocal2d as NTKConvLocal2d
from ._conv_transpose import NTKConvTranspose1d as NTKConvTranspose1d
from ._conv_transpose import NTKConvTranspose2d as NTKConvTranspose2d
from ._conv_transpose import NTKConvTranspose3d as NTKConvTranspose3d
from ._exponentials import Exp as Exp
from ._exponentials import Gaussian as Gaussian
from ._init import standard_init_ as standard_init_
from ._linear import NTKLinear as NTKLinear
from ._mlp import MLP as MLP
from ._param_groups import ntk_param_groups as ntk_param_groups
from ._parameterize import ntk_parameterize as ntk_parameterize
from ._powers import Hermite as Hermite
from ._powers import Monomial as Monomial
from ._powers import Polynomial as Polynomial
from ._powers import RectifiedMonomial as RectifiedMonomial
from ._rnn import NTKRNN as NTKRNN
from ._waves import RBF as RBF
from ._waves import Gabor as Gabor
from ._waves import Sinusoid as Sinusoid

__all__ = [
    "MLP",
    "NTKRNN",
    "RBF",
    "ABReLU",
    "Abs",
    "Cos",
    "Erf",
    "Exp",
    "Gabor",
    "Gaussian",
    "Hermite",
    "Monomial",
    "NTKConv1d",
    "NTKConv2d",
    "NTKConv3d",
    "NTKConvLocal2d",
    "NTKConvTranspose1d",
    "NTKConvTranspose2d",
    "NTKConvTranspose3d",
    "NTKLinear",
    "NTKSelfAttention",
    "Polynomial",
    "RectifiedMonomial",
    "Sin",
    "Sinusoid",
    "ntk_param_groups",
    "ntk_parameterize",
    "standard_init_",
]
