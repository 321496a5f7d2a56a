"""The largest step with which gradient descent on squared error converges."""

from __future__ import annotations

import torch
from torch import Tensor

from .._checks import check_finite_number, check_positive_int, value_error
from ._layout import check_train_kernel
from ._modes import read_modes
from ._reduction import Reduction, rate_of


@torch.no_grad()
def max_learning_rate(
    k: Tensor,
    *,
    reduction: Reduction = "sum",
    momentum: float = 0.0,
    num_outputs: int | None = None,
) -> float:
    """The largest stable step of gradient descent on squared error: 2 (1 + μ) / (c λ_max).

    Smaller steps converge and larger ones diverge. c is 1 for ½ Σ‖f - y‖² (`"sum"`), and 1/(N·O)
    for the average of ½ (f - y)² over all entries (`"mean"`). Without momentum, a step multiplies
    the residual in the mode of the largest eigenvalue by 1 - lr c λ_max. With heavy-ball momentum μ
    both roots of z² - (1 + μ - lr c λ) z + μ lie inside the unit circle up to this step.

    Args:
        k: The kernel of the training samples, `[N, N]` or `[N, N, O, O]`.
        reduction: `"sum"` or `"mean"`.
        momentum: μ in [0, 1), as in `torch.optim.SGD`.
        num_outputs: The number of outputs O, which `"mean"` needs with a kernel `[N, N]`; by
            default 1. A full kernel has its own O.

    Returns:
        The step; infinity for the zero kernel.

    Raises:
        TypeError: `k` is not a dense tensor of real floating-point numbers, or `momentum` or
            `num_outputs` is not a number.
        ValueError: `k` has another shape, is not finite, not symmetric, or not positive
            semi-definite beyond its precision; `momentum` or `reduction` is invalid, or
            `num_outputs` contradicts a full kernel.

    Example:
        >>> import torch
        >>> from torch_ntk.predict import max_learning_rate
        >>> max_learning_rate(torch.diag(torch.tensor([4.0, 1.0])))
        0.5
        >>> max_learning_rate(torch.diag(torch.tensor([4.0, 1.0])), reduction="mean", num_outputs=3)
        3.0
    """
    mu = check_momentum(momentum)
    kernel = check_train_kernel("k", k)
    outputs = kernel.shape[2] if kernel.ndim == 4 else 1
    if num_outputs is not None:
        given = check_positive_int("num_outputs", num_outputs)
        if kernel.ndim == 4 and given != outputs:
            raise value_error(
                "num_outputs", f"{outputs}, as the kernel has", given, "Leave it out."
            )
        outputs = given
    modes = read_modes("k", kernel, (kernel.shape[0], outputs), "k", 0.0)
    return modes.stable_step(rate_of(reduction, modes.layout.entries), mu)


def check_momentum(value: object) -> float:
    """Return `momentum` if it is a number in [0, 1), else raise `TypeError` or `ValueError`."""
    momentum = check_finite_number("momentum", value)
    if not 0.0 <= momentum < 1.0:
        raise value_error(
            "momentum",
            "in [0, 1)",
            f"{momentum:g}",
            "With 1 or more, training never converges.",
        )
    return momentum
