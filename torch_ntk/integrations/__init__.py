"""Kernels of this package in other libraries.

`torch_ntk.integrations.gpytorch` has a kernel for GPyTorch, which is imported with that module
only. `RowKernel` is what such adapters are made of: a kernel as a function of flat rows.
"""

from ._rows import RowKernel as RowKernel

__all__ = ["RowKernel"]
