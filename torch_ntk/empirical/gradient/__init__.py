"""Gradients of a kernel: `empirical_ntk(..., differentiable=True)`.

The kernel is computed without a graph, as always. Its backward pass evaluates the network again,
block by block, and differentiates `⟨W, Θ⟩` with respect to parameters and inputs, where W is the
derivative of the loss with respect to the kernel.
"""

from ._check import check_gradient as check_gradient
from ._connected import Recipe as Recipe
from ._connected import connected as connected
from ._kernel_gradient import KernelGradient as KernelGradient
from ._sources import sources_of as sources_of

__all__ = ["KernelGradient", "Recipe", "check_gradient", "connected", "sources_of"]
