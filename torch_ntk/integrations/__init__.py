"""Kernels and monitors of this package in other libraries.

`torch_ntk.integrations.gpytorch` has a kernel for GPyTorch and
`torch_ntk.integrations.transformers` a callback for the Trainer of transformers; the libraries
are imported with these modules only. `RowKernel` is what adapters of kernels are made of: a kernel
as a function of flat rows.
"""

from ._rows import RowKernel as RowKernel

__all__ = ["RowKernel"]
