"""The dual functions of activations, by which covariances change in networks of infinite width.

`dual_activation` finds the dual functions of an activation; a new closed form is a subclass of
`DualActivation`, made known by `register_dual`.
"""

from __future__ import annotations

from ._affine import DualAffine as DualAffine
from ._dual import DualActivation as DualActivation
from ._erf import DualErf as DualErf
from ._exp import DualExp as DualExp
from ._formula import Form as Form
from ._formula import Formula as Formula
from ._gabor import DualGabor as DualGabor
from ._gain import gain_dual as gain_dual
from ._gaussian import DualGaussian as DualGaussian
from ._gelu import DualGELU as DualGELU
from ._lookup import ActivationLike as ActivationLike
from ._lookup import dual_activation as dual_activation
from ._lookup import register_dual as register_dual
from ._polynomial import DualPolynomial as DualPolynomial
from ._polynomial import hermite_coefficients as hermite_coefficients
from ._quadrature import DualQuadrature as DualQuadrature
from ._rectified_power import DualRectifiedPower as DualRectifiedPower
from ._rectifier import DualRectifier as DualRectifier
from ._sine import DualCos as DualCos
from ._sine import DualSin as DualSin
from ._sinusoid import DualSinusoid as DualSinusoid
from ._square import DualSquare as DualSquare

__all__ = [
    "ActivationLike",
    "DualActivation",
    "DualAffine",
    "DualCos",
    "DualErf",
    "DualExp",
    "DualGELU",
    "DualGabor",
    "DualGaussian",
    "DualPolynomial",
    "DualQuadrature",
    "DualRectifiedPower",
    "DualRectifier",
    "DualSin",
    "DualSinusoid",
    "DualSquare",
    "Form",
    "Formula",
    "dual_activation",
    "gain_dual",
    "hermite_coefficients",
    "register_dual",
]
