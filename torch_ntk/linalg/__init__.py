"""Linear algebra of kernels: symmetric eigendecomposition with a numerical rank.

Everything is computed in float64. Eigenvalues that a kernel's precision cannot distinguish from 0
are reported as such.
"""

from ._eigen import SymmetricEigen as SymmetricEigen
from ._eigen import symmetric_eigen as symmetric_eigen
from ._floats import as_float64 as as_float64
from ._floats import float64_device as float64_device
from ._singular import SingularKernelWarning as SingularKernelWarning
from ._singular import warn_singular as warn_singular

__all__ = [
    "SingularKernelWarning",
    "SymmetricEigen",
    "as_float64",
    "float64_device",
    "symmetric_eigen",
    "warn_singular",
]
