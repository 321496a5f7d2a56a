"""Kernels of finite networks at their current parameters."""

from ._api import empirical_ntk as empirical_ntk
from ._explain import Explanation as Explanation
from ._explain import explain as explain
from ._nngp import empirical_nngp as empirical_nngp
from ._verify import Verification as Verification
from ._verify import verify as verify
from .operator import Eigenpairs as Eigenpairs
from .operator import NTKOperator as NTKOperator
from .operator import TraceEstimate as TraceEstimate

__all__ = [
    "Eigenpairs",
    "Explanation",
    "NTKOperator",
    "TraceEstimate",
    "Verification",
    "empirical_nngp",
    "empirical_ntk",
    "explain",
    "verify",
]
