"""Whether the steps of a training are small enough for the curvature of its loss."""

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

_DENSE = 512  # rows up to which all eigenvalues are computed
_MOST_ROWS = 4096  # rows up to which a kernel or a Hessian is formed


@dataclass(frozen=True)
class Training:
    """What moves the network that is observed.

    Attributes:
        module: What is in training, with its loss if that is a module.
        optimizers: Whose steps it takes.
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
    r"""lr·λ_max of the Gauss-Newton matrix Jᵀ H J of the loss, H its second derivative in f.

    Its non-zero eigenvalues are those of Θ^½ H Θ^½, Θ = J Jᵀ the kernel, and with H = S Sᵀ those
    of Sᵀ Θ S. Groups of parameters with learning rates of their own precondition it: then
    Θ = Σ_g (lr_g/lr) Θ_g with the largest rate lr. So does an optimizer: then Θ = J P Jᵀ, where
    rates count relative to the first group's. With more than 4,096 outputs in all, Θ is not formed
    but multiplied with.

    Args:
        rule: Learning rates, P and limit.
        loss: The loss, a mean over samples.
        f: Outputs `[N, O]`.
        y: Targets.
        kernel: Θ_g `[N, N, O, O]` by the parameters with the given names, with the rule's P.
        operator: The same, only to multiply with.

    Returns:
        `"stability"`, lr·λ_max of the preconditioned matrix; `"stability_limit"`, where steps
        begin to diverge, 2 without momentum; and with a single learning rate `"sharpness"`, λ_max.

    Raises:
        ValueError: There are too many outputs for this loss, or the targets do not go with it.
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
    rows = f.numel()
    if root is not None:

        def left(matrix: Tensor) -> Tensor:
            return root.transposed_times(matrix.reshape(*f.shape, rows)).reshape(rows, rows)

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
    def product(v: NDArray[np.float64]) -> NDArray[np.float64]:
        u = root.times(torch.as_tensor(v).to(f).reshape(*f.shape, 1)).reshape(-1)
        theta_u = torch.stack([share * (theta @ u) for share, theta in thetas]).sum(0)
        result = root.transposed_times(theta_u.reshape(*f.shape, 1))
        return result.reshape(-1).cpu().double().numpy()

    return _largest(product, f.numel(), 1e-6)


def _largest(
    product: Callable[[NDArray[np.float64]], NDArray[np.float64]], rows: int, tolerance: float
) -> float:
    from scipy.sparse.linalg import (  # type: ignore[import-untyped]  # slow to import
        ArpackNoConvergence,
        LinearOperator,
        eigsh,
    )

    # A start that is given: the default one would be drawn at random.
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
    """Whether the last measurement is the first one above the limit.

    Not for optimizers with a P, which follows the curvature: above their limit they go on (Cohen et
    al. 2022), and in their first steps P rests on few gradients.
    """
    if not all(type(unwrapped(o)) is torch.optim.SGD for o in optimizers):
        return False

    def is_above(row: Mapping[str, float]) -> bool:
        return "stability" in row and row["stability"] > row["stability_limit"]

    return bool(rows) and is_above(rows[-1]) and not any(map(is_above, rows[:-1]))


def edge_in_words(scalars: Mapping[str, float], step: int) -> str:
    """What a measurement above the limit means."""
    value, limit = scalars["stability"], scalars["stability_limit"]
    return (
        f"at step {step} lr times the largest curvature of the loss is {value:.3g}, above "
        f"{limit:.3g}, where gradient descent begins to oscillate. If the loss does not go down, "
        "lower the learning rate."
    )
