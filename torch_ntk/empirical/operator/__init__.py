"""The empirical kernel as a linear operator that is never formed."""

from ._lanczos import Eigenpairs as Eigenpairs
from ._operator import NTKOperator as NTKOperator
from ._stochastic_trace import TraceEstimate as TraceEstimate

__all__ = ["Eigenpairs", "NTKOperator", "TraceEstimate"]
