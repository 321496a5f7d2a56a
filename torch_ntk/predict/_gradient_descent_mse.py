"""Squared error under gradient descent with finite steps and momentum, in closed form."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from .._checks import check_finite_number, value_error
from ._heavy_ball import decay_and_gain
from ._max_learning_rate import check_momentum
from ._predictor import MSEPredictor
from ._reduction import Reduction


@dataclass(frozen=True)
class DescentDynamics:
    """Gradient descent with momentum on (c/2)(f - y)²."""

    rate: float
    learning_rate: float
    momentum: float

    def reach(self, times: Tensor) -> Tensor:
        """The time of gradient flow, times c, to which these steps amount for a slow mode."""
        return self.rate * self.learning_rate / (1.0 - self.momentum) * times

    def evolve(self, values: Tensor, times: Tensor) -> tuple[Tensor, Tensor]:
        """The decay ρ_k and the gain (1 - ρ_k)/λ after k steps."""
        step = self.rate * self.learning_rate
        decay, gain = decay_and_gain(step * values, times, self.momentum)
        return decay, step * gain


@torch.no_grad()
def gradient_descent_mse(
    k_train_train: Tensor,
    y: Tensor,
    lr: float,
    momentum: float = 0.0,
    *,
    reduction: Reduction = "sum",
    diag_reg: float = 0.0,
) -> MSEPredictor:
    """Gradient descent with finite steps on squared error with a constant kernel.

    It predicts exactly what `torch.optim.SGD(params, lr, momentum)` does to a linear model in full
    batches: v ← μ v + ∂loss/∂θ, θ ← θ - lr·v, with v = ∂loss/∂θ in the first step. In each
    eigenmode of Θ the residual obeys r_{k+1} = (1 + μ - x) r_k - μ r_{k-1} with x = lr·c·λ, which
    is solved in closed form: the cost does not depend on the number of steps. With a step above
    `max_learning_rate` the predicted outputs diverge, and their limit is refused. Without momentum
    the solution is f_train(k) = y + (1 - lr c Θ)^k (f0 - y).

    Args:
        k_train_train: Θ of the training samples, `[N, N]` (for every output alike) or
            `[N, N, O, O]`, indexed Θ[n, m, i, j].
        y: Targets, `[N]` or `[N, O]`, floating point; for labels use `one_hot`.
        lr: The step size, positive.
        momentum: The heavy-ball momentum μ in [0, 1), without dampening and not Nesterov's.
        reduction: `"sum"` for the loss ½ Σ‖f - y‖², `"mean"` for the average of ½ (f - y)² over
            all N·O entries. `torch.nn.MSELoss` has no factor ½: train with half of it, or pass
            twice the step.
        diag_reg: Regularization of the diagonal of Θ in units of the diagonal's mean; see
            `gradient_flow_mse`.

    Returns:
        A predictor `p(t, f0_train=None, f0_test=None, k_test_train=None) -> (f_train, f_test)`,
        t a whole number of steps, a tensor of them, or `None` or infinity for the limit.

    Raises:
        TypeError: A tensor is not of real floating-point numbers, or a number has another type.
        ValueError: As `gradient_flow_mse`; or `lr` is not positive, or `momentum` not in [0, 1).

    Example:
        Linear regression, two steps of `torch.optim.SGD`:

        >>> import torch
        >>> from torch_ntk.predict import gradient_descent_mse
        >>> x = torch.tensor([[1.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
        >>> y = torch.tensor([1.0, 3.0], dtype=torch.float64)
        >>> w = torch.zeros(2, dtype=torch.float64, requires_grad=True)
        >>> sgd = torch.optim.SGD([w], lr=0.3, momentum=0.5)
        >>> for _ in range(2):
        ...     sgd.zero_grad()
        ...     (0.5 * (x @ w - y).square().sum()).backward()
        ...     sgd.step()
        >>> f_train, _ = gradient_descent_mse(x @ x.T, y, lr=0.3, momentum=0.5)(2)
        >>> torch.allclose(f_train, (x @ w).detach(), rtol=1e-12)
        True
    """
    learning_rate = check_learning_rate(lr)
    mu = check_momentum(momentum)
    dynamics = partial(DescentDynamics, learning_rate=learning_rate, momentum=mu)
    return MSEPredictor.of(k_train_train, y, reduction, diag_reg, dynamics, learning_rate, mu)


def check_learning_rate(value: object) -> float:
    """Return `lr` if it is a positive finite number, else raise `TypeError` or `ValueError`."""
    lr = check_finite_number("lr", value)
    if lr <= 0.0:
        raise value_error(
            "lr", "positive", f"{lr:g}", "max_learning_rate(k) is the largest stable one."
        )
    return lr
