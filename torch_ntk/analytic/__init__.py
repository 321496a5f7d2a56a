"""Kernels of infinitely wide networks, read from real modules.

`analytic_kernels`, `analytic_ntk` and `analytic_nngp` compute the kernels of a module's limit of
infinite width. `lift/` translates the module to a program, a sequence of operations on covariances
(`operations/`), and `engine/` evaluates the program.
"""

from ._api import Kernels as Kernels
from ._api import analytic_explain as analytic_explain
from ._api import analytic_kernels as analytic_kernels
from ._api import analytic_nngp as analytic_nngp
from ._api import analytic_ntk as analytic_ntk
from ._cntk import CNTK as CNTK
from ._explanation import AnalyticExplanation as AnalyticExplanation
from ._explanation import ExplainedStep as ExplainedStep
from ._mlp import mlp_kernels as mlp_kernels
from .lift import ORDINARY as ORDINARY
from .lift import Scheme as Scheme
from .lift import StandardLike as StandardLike

__all__ = [
    "CNTK",
    "ORDINARY",
    "AnalyticExplanation",
    "ExplainedStep",
    "Kernels",
    "Scheme",
    "StandardLike",
    "analytic_explain",
    "analytic_kernels",
    "analytic_nngp",
    "analytic_ntk",
    "mlp_kernels",
]
