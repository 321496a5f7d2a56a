"""Infinite-width kernels for Gaussian processes in GPyTorch.

`NTKKernel` can be used wherever a `gpytorch.kernels.Kernel` can. GPyTorch is an optional
dependency, `pip install torch_ntk[gpytorch]`, and only this module imports it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .._checks import type_error, value_error
from .._functional import faithful_copy
from ..analytic import StandardLike
from ._rows import RowKernel, Which

try:
    with warnings.catch_warnings():
        # On import GPyTorch uses deprecated parts of PyTorch, which users cannot change.
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        import gpytorch  # type: ignore[import-untyped]
except ImportError as error:
    raise ImportError(
        "torch_ntk.integrations.gpytorch needs GPyTorch, which could not be imported "
        f"({error}). Install it with `pip install torch_ntk[gpytorch]`."
    ) from error

__all__ = ["NTKKernel"]


class NTKKernel(gpytorch.kernels.Kernel):  # type: ignore[misc]
    r"""A kernel of an infinitely wide network as a covariance function of GPyTorch.

    With `which="nngp"` the prior is that of random networks of infinite width, and the posterior
    that of training only the last layer. With `which="ntk"` the posterior mean is the limit of
    training all layers by gradient flow from f = 0 (regularized, if there is noise). Its covariance
    is not that of trained networks; for that see `torch_ntk.predict.ensemble_mse`.

    The kernel has no hyperparameters. Put it into `gpytorch.kernels.ScaleKernel` to learn a scale;
    the likelihood learns the noise. Because this does not change the kernel's matrix, the last
    matrix is kept, and a training step computes no new kernel. The kernel is differentiable with
    respect to its inputs, so that features before it can be learned.

    Args:
        kernel: A network of NTK layers, for its infinite-width kernel; a `CNTK` (both are copied);
            or a function such as `functools.partial(mlp_kernels, depth=4)`. See
            `torch_ntk.integrations.RowKernel`.
        input_shape: The shape of one sample, since GPyTorch's inputs are rows `[..., N, d]`.
        which: `"ntk"` or `"nngp"`.
        standard: How ordinary layers of a network are drawn; see `torch_ntk.analytic_kernels`.
        cache: Whether to keep the last matrix and reuse it for the same inputs. None does so for
            networks and `CNTK`, but not for functions, which might change. A matrix whose gradients
            are recorded is never kept.
        active_dims: The columns of the inputs that are used; None uses all.

    Shape:
        `[..., N1, d]` and `[..., N2, d]` to `[..., N1, N2]`, in the inputs' dtype. Batches are
        evaluated one after the other. The kernels themselves are computed in float64.

    Raises:
        TypeError, ValueError: As `RowKernel`; `last_dim_is_batch` is refused.

    References:
        Lee et al., "Deep neural networks as Gaussian processes" (2018); He, Lakshminarayanan, Teh,
        "Bayesian deep ensembles via the neural tangent kernel" (2020).

    Example:
        >>> import torch
        >>> from torch_ntk import mlp_kernels
        >>> from torch_ntk.integrations.gpytorch import NTKKernel
        >>> covariance = gpytorch.kernels.ScaleKernel(NTKKernel(mlp_kernels, which="nngp"))
        >>> covariance(torch.eye(3)).to_dense().shape
        torch.Size([3, 3])
    """

    def __init__(
        self,
        kernel: nn.Module | Callable[..., Any],
        *,
        input_shape: Sequence[int] | None = None,
        which: Which = "ntk",
        standard: StandardLike = None,
        cache: bool | None = None,
        active_dims: tuple[int, ...] | None = None,
    ) -> None:
        if isinstance(kernel, nn.Module):
            # A cached matrix must stay right, even if the caller's network is changed.
            kernel, _ = faithful_copy(kernel, "kernel")
        rows = RowKernel(kernel, input_shape=input_shape, which=which, standard=standard)
        if cache is not None and not isinstance(cache, bool):
            raise type_error("cache", "True, False or None", cache)
        super().__init__(active_dims=active_dims)
        # Not a submodule, because the network's weights are not parameters of this kernel and must
        # not be passed to an optimizer.
        self.__dict__["rows"] = rows
        self.cache = rows.is_analytic if cache is None else cache
        self._kept: tuple[Tensor, Tensor | None, Tensor] | None = None

    @property
    def is_stationary(self) -> bool:
        """False, because the kernel depends on norms and angles instead of differences."""
        return False

    def forward(
        self,
        x1: Tensor,
        x2: Tensor,
        diag: bool = False,
        last_dim_is_batch: bool = False,
        **params: Any,
    ) -> Tensor:
        """The matrix `[..., N1, N2]`, or with `diag` its diagonal `[..., N]`."""
        if last_dim_is_batch:
            raise value_error(
                "last_dim_is_batch",
                "False",
                True,
                "A network takes all features together; use active_dims to select some of them.",
            )
        if x1.ndim == x2.ndim == 2:
            return self._one(x1, x2, diag)
        # Like GPyTorch, broadcast all axes except for the last two.
        batch = np.broadcast_shapes(x1.shape[:-2], x2.shape[:-2])
        firsts = x1.expand(*batch, *x1.shape[-2:]).reshape(-1, *x1.shape[-2:])
        seconds = x2.expand(*batch, *x2.shape[-2:]).reshape(-1, *x2.shape[-2:])
        found = torch.stack([self._one(a, b, diag) for a, b in zip(firsts, seconds, strict=True)])
        return found.reshape(*batch, *found.shape[1:])

    def _one(self, x1: Tensor, x2: Tensor, diag: bool) -> Tensor:
        rows: RowKernel = self.rows
        tracked = torch.is_grad_enabled() and (x1.requires_grad or x2.requires_grad)
        # Equal but separate inputs have separate derivatives.
        same = x1 is x2 or (not tracked and _equal(x1, x2))
        other = None if same else x2
        if diag:
            return rows.diagonal(x1, other)
        if tracked or not self.cache:
            return rows(x1, other)
        if self._kept is None or not _same(self._kept, x1, other):
            second = None if other is None else other.clone()
            self._kept = (x1.clone(), second, rows(x1, other))
        return self._kept[2].clone()


def _same(kept: tuple[Tensor, Tensor | None, Tensor], x1: Tensor, x2: Tensor | None) -> bool:
    first, second, _ = kept
    if (second is None) != (x2 is None) or not _equal(first, x1):
        return False
    return second is None or x2 is None or _equal(second, x2)


def _equal(a: Tensor, b: Tensor) -> bool:
    alike = a.shape == b.shape and a.dtype == b.dtype and a.device == b.device
    return alike and bool(torch.equal(a, b))
