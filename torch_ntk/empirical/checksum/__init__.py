"""Compare the factors of every block of samples with one plain backward pass.

Random weights u `[N, O]` of both signs are drawn in every call. The gradient of `Σ u·f` by a
backward pass of the user's own module with its own parameters must equal `Σ_{n,i} u[n, i] J[n, i]`.
This sum is cheap to compute from factors, whose cotangents are contracted with u first. Any error
(a wrong plan or batching rule, an outdated weight, samples that depend on each other) causes a
difference in some parameter with probability one.
"""

from ._block_check import CLOSE as CLOSE
from ._block_check import CLOSE_IN_DOUBLE as CLOSE_IN_DOUBLE
from ._block_check import BlockCheck as BlockCheck
from ._block_check import BlockForm as BlockForm
from ._block_check import MismatchError as MismatchError
from ._block_check import companion_of as companion_of
from ._block_check import compared_together as compared_together
from ._dependent_samples import depends_on_batch as depends_on_batch
from ._plain_jacobian import plain_jacobians as plain_jacobians
from ._signs import signs as signs

__all__ = [
    "CLOSE",
    "CLOSE_IN_DOUBLE",
    "BlockCheck",
    "BlockForm",
    "MismatchError",
    "companion_of",
    "compared_together",
    "depends_on_batch",
    "plain_jacobians",
    "signs",
]
