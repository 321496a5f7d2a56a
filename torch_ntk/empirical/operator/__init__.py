"""The empirical kernel as a linear operator, whose matrix is not formed."""

from ._jacobian import JacobianOperator as JacobianOperator
from ._lanczos import Eigenpairs as Eigenpairs
from ._operator import NTKOperator as NTKOperator
from ._solve import Solution as Solution
from ._spectral_density import SpectralDensity as SpectralDensity
from ._stochastic_trace import TraceEstimate as TraceEstimate

__all__ = [
    "Eigenpairs",
    "JacobianOperator",
    "NTKOperator",
    "Solution",
    "SpectralDensity",
    "TraceEstimate",
]
