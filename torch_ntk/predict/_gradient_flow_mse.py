"""Squared error under gradient flow: the exponential solution."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ._predictor import MSEPredictor
from ._reduction import Reduction


@dataclass(frozen=True)
class FlowDynamics:
    """Gradient flow of (c/2)(f - y)²: the residual of a mode decays by the factor exp(-c λ t)."""

    rate: float

    def reach(self, times: Tensor) -> Tensor:
        """c·t: a mode decays by exp(-c·t·λ)."""
        return self.rate * times

    def evolve(self, values: Tensor, times: Tensor) -> tuple[Tensor, Tensor]:
        """The decay exp(-cλt) and the gain (1 - exp(-cλt))/λ, which is c·t at λ = 0."""
        reach = self.reach(times)[:, None]
        exponent = -reach * values
        gain = torch.where(values == 0.0, reach, -torch.expm1(exponent) / values)
        return torch.exp(exponent), gain


@torch.no_grad()
def gradient_flow_mse(
    k_train_train: Tensor,
    y: Tensor,
    *,
    reduction: Reduction = "sum",
    diag_reg: float = 0.0,
) -> MSEPredictor:
    """Gradient flow of squared error with a constant kernel: training with infinitely small steps.

    With θ̇ = -∂loss/∂θ the outputs obey ḟ = -c Θ (f - y), whose solution is

        f_train(t) = y + exp(-c Θ t) (f0 - y),
        f_test(t) = f0_test - Θ_st Θ⁻¹ (1 - exp(-c Θ t)) (f0 - y),

    with c = 1 for the loss ½ Σ‖f - y‖² (`"sum"`) and c = 1/(N·O) for the average of ½ (f - y)²
    over all entries (`"mean"`). The time is that of θ̇: k small steps of size lr take t = k·lr. In
    the limit, and with f0 = 0, f_test is kernel regression, Θ_st Θ⁻¹ y. One eigendecomposition
    serves all times. (Lee et al. 2019, "Wide Neural Networks of Any Depth Evolve as Linear Models
    Under Gradient Descent".)

    Args:
        k_train_train: Θ of the training samples, `[N, N]` (for every output alike) or
            `[N, N, O, O]`, indexed Θ[n, m, i, j].
        y: Targets, `[N]` or `[N, O]`, floating point; for labels use `one_hot`.
        reduction: `"sum"` or `"mean"`.
        diag_reg: Regularization ρ that is added to the diagonal of Θ, in units of the diagonal's
            mean (trace/N, or trace/(N·O) for a full kernel). On test samples this is the flow with
            a ridge penalty ½ρ‖θ - θ0‖². The outputs f_train include the regularization, as if each
            training sample had an additional parameter, and reach y. For the outputs of the network
            itself on the training samples, pass these as test samples, with their own kernel.

    Returns:
        A predictor `p(t, f0_train=None, f0_test=None, k_test_train=None) -> (f_train, f_test)`.

    Raises:
        TypeError: A tensor is not of real floating-point numbers, or `diag_reg` not a number.
        ValueError: Shapes do not fit; something is not finite; the kernel is not symmetric or not
            positive semi-definite beyond its precision; `reduction` or `diag_reg` is invalid.

    Example:
        >>> import torch
        >>> from torch_ntk.predict import gradient_flow_mse
        >>> k = torch.tensor([[2.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
        >>> p = gradient_flow_mse(k, torch.tensor([1.0, 1.0], dtype=torch.float64))
        >>> f_train, _ = p(1.0)
        >>> f_train  # 1 - exp(-2), 1 - exp(-1)
        tensor([0.8647, 0.6321], dtype=torch.float64)

        Linear regression is the special case f = x·θ, whose kernel is X Xᵀ. The limit is the
        least-squares solution:

        >>> x = torch.tensor([[1.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
        >>> y = torch.tensor([1.0, 3.0], dtype=torch.float64)
        >>> new = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
        >>> _, f_test = gradient_flow_mse(x @ x.T, y)(None, k_test_train=new @ x.T)
        >>> torch.allclose(f_test, new @ torch.linalg.lstsq(x, y).solution)
        True
    """
    return MSEPredictor.of(k_train_train, y, reduction, diag_reg, FlowDynamics)
