"""Kernels of finite networks at their current parameters.

The steps of a call of `empirical_ntk`, each with its folder or file:

1. `_empirical_ntk` checks the arguments, and `_computation` makes a pure function of the model.
2. `inspect` runs the user's own module once on one sample, to find shapes, costs and randomness.
   Meanwhile the recorder of `structured` records the uses of the parameters.
3. `_job` holds the arguments of every method; `methods` has one function for each method.
4. `structured` makes a plan from the uses and computes all cotangents in one batched backward pass;
   `rules` define how a weight's derivative follows from the input and the cotangent of its call.
5. `checksum` compares the factors of each block with a plain backward pass of the module itself.
6. `contract` multiplies factors, block of rows by block of columns; `_outputs` orders the result.

Repeated calls execute only the operations that `_recorder` has recorded; see `_repetition`.
`operator` multiplies by the kernel without forming it. `_verify`, `_explain` and `_nngp` are
separate functions.
"""

from ._empirical_ntk import empirical_ntk as empirical_ntk
from ._explain import Explanation as Explanation
from ._explain import explain as explain
from ._nngp import empirical_nngp as empirical_nngp
from ._probed import ProbedKernel as ProbedKernel
from ._verify import Verification as Verification
from ._verify import verify as verify
from .operator import Eigenpairs as Eigenpairs
from .operator import JacobianOperator as JacobianOperator
from .operator import NTKOperator as NTKOperator
from .operator import Solution as Solution
from .operator import SpectralDensity as SpectralDensity
from .operator import TraceEstimate as TraceEstimate

__all__ = [
    "Eigenpairs",
    "Explanation",
    "JacobianOperator",
    "NTKOperator",
    "ProbedKernel",
    "Solution",
    "SpectralDensity",
    "TraceEstimate",
    "Verification",
    "empirical_nngp",
    "empirical_ntk",
    "explain",
    "verify",
]
