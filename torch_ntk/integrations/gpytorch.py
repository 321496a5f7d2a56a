"""Infinite-width kernels for Gaussian processes in GPyTorch.

`NTKKernel` goes wherever a `gpytorch.kernels.Kernel` goes. GPyTorch is an optional dependency,
`pip install torch_ntk[gpytorch]`, and imported with this module only.
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
        # While it is imported GPyTorch uses parts of PyTorch that are deprecated, which a user of
        # either cannot change.
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
    that of training the last layer only. With `which="ntk"` the posterior mean is what training
    all layers by gradient flow from f = 0 ends at (with noise: regularized); its covariance is
    not that of trained networks, see `torch_ntk.predict.ensemble_mse` for that one.

    The kernel has no hyperparameters of its own. Put it into `gpytorch.kernels.ScaleKernel` to
    learn its scale; the likelihood learns the noise. Since training then changes nothing in the
    matrix itself, the last one is kept, and a step costs no new kernel. It is differentiable in
    its inputs, so features before it can be learned.

    Args:
        kernel: A network of NTK layers, whose limit of infinite width is taken, a `CNTK` (both are
            copied), or a function such as `functools.partial(mlp_kernels, depth=4)`; see
            `torch_ntk.integrations.RowKernel`.
        input_shape: The shape of one sample, since GPyTorch's inputs are rows `[..., N, d]`.
        which: `"ntk"` or `"nngp"`.
        standard: How ordinary layers of a network are drawn; see `torch_ntk.analytic_kernels`.
        cache: Whether to keep the last matrix between the same inputs; None does it for networks
            and `CNTK`, but not for functions, which might change. Not where gradients are wanted.
        active_dims: Columns of the inputs that are used; None is all.

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
            # What is kept of it must stay right, whatever becomes of the caller's network.
            kernel, _ = faithful_copy(kernel, "kernel")
        rows = RowKernel(kernel, input_shape=input_shape, which=which, standard=standard)
        if cache is not None and not isinstance(cache, bool):
            raise type_error("cache", "True, False or None", cache)
        super().__init__(active_dims=active_dims)
        # Not a submodule: the weights of a network that is lifted are not this one's parameters,
        # and an optimizer must not get them.
        self.__dict__["rows"] = rows
        self.cache = rows.is_analytic if cache is None else cache
        self._kept: tuple[Tensor, Tensor | None, Tensor] | None = None

    @property
    def is_stationary(self) -> bool:
        """No: it depends on norms and angles, not on differences."""
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
                "A network sees all features together; use active_dims for some of them.",
            )
        if x1.ndim == x2.ndim == 2:
            return self._one(x1, x2, diag)
        # Batches as GPyTorch broadcasts them: everything but the last two axes.
        batch = np.broadcast_shapes(x1.shape[:-2], x2.shape[:-2])
        firsts = x1.expand(*batch, *x1.shape[-2:]).reshape(-1, *x1.shape[-2:])
        seconds = x2.expand(*batch, *x2.shape[-2:]).reshape(-1, *x2.shape[-2:])
        found = torch.stack([self._one(a, b, diag) for a, b in zip(firsts, seconds, strict=True)])
        return found.reshape(*batch, *found.shape[1:])

    def _one(self, x1: Tensor, x2: Tensor, diag: bool) -> Tensor:
        rows: RowKernel = self.rows
        tracked = torch.is_grad_enabled() and (x1.requires_grad or x2.requires_grad)
        # Equal but separate inputs have derivatives of their own.
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
