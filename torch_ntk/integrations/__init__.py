"""Kernels and monitors of this package in other libraries.

`torch_ntk.integrations.gpytorch` has a kernel for GPyTorch, and
`torch_ntk.integrations.transformers` a callback for the Trainer of transformers. Only these modules
import the libraries. `RowKernel`, a kernel as a function of flat rows, is the base for adapters of
kernels to other libraries.
"""

from ._rows import RowKernel as RowKernel

__all__ = ["RowKernel"]
