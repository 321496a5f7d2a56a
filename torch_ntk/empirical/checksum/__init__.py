"""Compare what is known of a block of samples with one plain backward pass, on every call.

For random weights u `[N, O]` of either sign, drawn anew each time, the gradient of `Σ u·f` by a
backward pass of the user's own module with its own parameters is `Σ_{n,i} u[n, i] J[n, i]`, which
costs little to assemble from factors: the cotangents are contracted with u first, then with the
features. Whatever is wrong, a plan, a batching rule, a weight that is kept from before, samples
that depend on each other, shows as a difference, parameter by parameter, with probability one.
"""

from ._block_check import CLOSE as CLOSE
from ._block_check import CLOSE_IN_DOUBLE as CLOSE_IN_DOUBLE
from ._block_check import BlockCheck as BlockCheck
from ._block_check import MismatchError as MismatchError
from ._block_check import companion_of as companion_of
from ._block_check import compared_together as compared_together
from ._block_check import depends_on_batch as depends_on_batch
from ._plain_jacobian import plain_jacobians as plain_jacobians
from ._signs import signs as signs

__all__ = [
    "CLOSE",
    "CLOSE_IN_DOUBLE",
    "BlockCheck",
    "MismatchError",
    "companion_of",
    "compared_together",
    "depends_on_batch",
    "plain_jacobians",
    "signs",
]
