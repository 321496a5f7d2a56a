"""Gradients of a kernel by parameters and inputs: `empirical_ntk(..., differentiable=True)`.

The kernel is computed as ever, without a graph. Its backward pass evaluates the network again,
block by block, and differentiates `⟨W, Θ⟩`, W being the derivative of the loss by the kernel.
"""

from ._check import check_gradient as check_gradient
from ._connected import Recipe as Recipe
from ._connected import connected as connected
from ._kernel_gradient import KernelGradient as KernelGradient
from ._sources import sources_of as sources_of

__all__ = ["KernelGradient", "Recipe", "check_gradient", "connected", "sources_of"]
