"""lr·λ_max of a loss, from which follows whether the steps of a training are stable."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer

from ..._checks import UndefinedError
from ..._optimizers import unwrapped
from ...empirical import NTKOperator
from ._hessian import HessianRoot, hessian, root_of_hessian
from ._step_rule import StepRule
from ._training_loss import LossFunction

_DENSE = 512  # the largest number of rows for which all eigenvalues are computed
_MOST_ROWS = 4096  # the largest number of rows for which a kernel or a Hessian is formed


@dataclass(frozen=True)
class Training:
    """The training of the network that is measured.

    Attributes:
        module: The module in training, which contains the loss if that is a module; or None.
        optimizers: The optimizers of the training.
    """

    module: nn.Module | None = None
    optimizers: Sequence[Optimizer] = ()


def stability(
    rule: StepRule,
    loss: LossFunction,
    f: Tensor,
    y: Tensor,
    kernel: Callable[[Sequence[str]], Tensor],
    operator: Callable[[Sequence[str]], NTKOperator],
) -> dict[str, float]:
    r"""lr·λ_max of the Gauss-Newton matrix Jᵀ H J of the loss.

    H is the second derivative of the loss by the outputs. The non-zero eigenvalues of Jᵀ H J are
    those of Θ^½ H Θ^½ with the kernel Θ = J Jᵀ, and with H = S Sᵀ those of Sᵀ Θ S. If groups of
    parameters have different learning rates, the matrix is preconditioned by these:
    Θ = Σ_g (lr_g/lr) Θ_g with the largest rate lr. For an optimizer with a P, Θ = J P Jᵀ, where P
    contains the rates relative to that of the first group. If there are more than 4,096 outputs in
    all, Θ is not formed but multiplied with vectors.

    Args:
        rule: The learning rates, the optimizer with P, and the limit.
        loss: The loss, which is a mean over samples.
        f: The outputs `[N, O]`.
        y: The targets.
        kernel: A function that returns Θ_g `[N, N, O, O]` for the parameters of the given names,
            with the rule's P.
        operator: A function that returns Θ_g as an operator for the parameters of the given names.

    Returns:
        `"stability"`, which is lr·λ_max of the preconditioned matrix; `"stability_limit"`, above
        which steps diverge (2 without momentum); and `"sharpness"`, which is λ_max, if there is
        only one learning rate.

    Raises:
        ValueError: There are too many outputs for this loss, or the targets do not fit it.
    """
    moving = rule.parts()
    root = root_of_hessian(loss, f, y)
    rows = f.numel()
    if rows > _MOST_ROWS:
        if root is None:
            raise UndefinedError(
                f"the probe has {rows} outputs in all; with this loss the curvature is computed "
                f"for up to {_MOST_ROWS}. Use a smaller probe."
            )
        found = _by_products([(share, operator(names)) for share, names in moving], root, f)
    else:
        theta = torch.stack([share * kernel(names) for share, names in moving]).sum(0)
        found = _by_matrix(theta.permute(0, 2, 1, 3).reshape(rows, rows), root, loss, f, y)
    values = {"stability": rule.lr * found, "stability_limit": rule.limit}
    return {**values, "sharpness": found} if len(rule.groups()) == 1 else values


def _by_matrix(
    theta: Tensor, root: HessianRoot | None, loss: LossFunction, f: Tensor, y: Tensor
) -> float:
    """The largest eigenvalue of Sᵀ Θ S or Θ^½ H Θ^½, given Θ as a matrix `[N·O, N·O]`."""
    rows = f.numel()
    if root is not None:

        def left(matrix: Tensor) -> Tensor:
            vectors = matrix.reshape(*f.shape, rows)
            return root.times(vectors, transposed=True).reshape(rows, rows)

        matrix = left(left(theta).mT)
    else:
        values, vectors = torch.linalg.eigh(theta.cpu().double())
        half = vectors * values.clamp_min(0.0).sqrt()
        matrix = half.mT @ hessian(loss, f, y).to(half) @ half
    symmetric = (0.5 * (matrix + matrix.mT)).cpu().double()
    if not bool(symmetric.isfinite().all()):
        raise UndefinedError("the loss's curvature is not finite on the probe.")
    if rows <= _DENSE:
        return float(torch.linalg.eigvalsh(symmetric)[-1])
    array = symmetric.numpy()
    return _largest(lambda v: array @ v, rows, 1e-10)


def _by_products(
    thetas: Sequence[tuple[float, NTKOperator]], root: HessianRoot, f: Tensor
) -> float:
    """The largest eigenvalue of Sᵀ Θ S, where Θ is a weighted sum of operators."""

    def product(v: NDArray[np.float64]) -> NDArray[np.float64]:
        u = root.times(torch.as_tensor(v).to(f).reshape(*f.shape, 1)).reshape(-1)
        theta_u = torch.stack([share * (theta @ u) for share, theta in thetas]).sum(0)
        result = root.times(theta_u.reshape(*f.shape, 1), transposed=True)
        return result.reshape(-1).cpu().double().numpy()

    return _largest(product, f.numel(), 1e-6)


def _largest(
    product: Callable[[NDArray[np.float64]], NDArray[np.float64]], rows: int, tolerance: float
) -> float:
    """The largest eigenvalue of a symmetric matrix, by the Lanczos method.

    `product` multiplies it by a vector `[rows]`; `tolerance` is the relative error.
    """
    from scipy.sparse.linalg import (  # type: ignore[import-untyped]  # slow to import
        ArpackNoConvergence,
        LinearOperator,
        eigsh,
    )

    # A fixed start vector makes the result reproducible; the default one is random.
    start = np.random.default_rng(0).standard_normal(rows)
    matrix = LinearOperator((rows, rows), matvec=product, dtype=np.float64)
    try:
        (value,) = eigsh(
            matrix, k=1, which="LA", v0=start, tol=tolerance, return_eigenvectors=False
        )
    except ArpackNoConvergence as error:
        raise UndefinedError("the largest eigenvalue of the curvature was not found.") from error
    return float(value)


def passes_the_edge(rows: Sequence[Mapping[str, float]], optimizers: Sequence[Optimizer]) -> bool:
    """Whether the last row of the history is the first one above the stability limit.

    This is False for optimizers with a P, which follows the curvature: they do not diverge above
    their limit (Cohen et al. 2022), and in their first steps P is computed from few gradients.
    """
    if not all(type(unwrapped(o)) is torch.optim.SGD for o in optimizers):
        return False

    def is_above(row: Mapping[str, float]) -> bool:
        return "stability" in row and row["stability"] > row["stability_limit"]

    return bool(rows) and is_above(rows[-1]) and not any(map(is_above, rows[:-1]))


def edge_in_words(scalars: Mapping[str, float], step: int) -> str:
    """A sentence for the user about a measurement above the stability limit."""
    value, limit = scalars["stability"], scalars["stability_limit"]
    return (
        f"at step {step} lr times the largest curvature of the loss is {value:.3g}, above "
        f"{limit:.3g}, where gradient descent begins to oscillate. If the loss does not go down, "
        "lower the learning rate."
    )
