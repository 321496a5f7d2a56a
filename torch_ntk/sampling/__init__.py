"""Kernels of finite networks averaged over random draws, with their standard errors."""

from ._monte_carlo import MonteCarloKernel as MonteCarloKernel
from ._monte_carlo import monte_carlo_kernel as monte_carlo_kernel

__all__ = [
    "MonteCarloKernel",
    "monte_carlo_kernel",
]
