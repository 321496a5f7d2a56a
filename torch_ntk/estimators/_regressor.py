"""`NTKRegressor`: regression by an infinitely wide, trained network."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.base import RegressorMixin  # type: ignore[import-untyped]

from .._checks import check_finite
from ._base import KernelMachine
from ._solve import Array


class NTKRegressor(RegressorMixin, KernelMachine):  # type: ignore[misc]
    r"""Kernel regression: the mean of infinitely wide networks trained on ½ Σ‖f - y‖².

    With K' = K(X, X) + diag_reg·(tr K / N)·1 and training by gradient flow from f = 0,

        f_t(x) = K(x, X) K'⁻¹ (1 - exp(-K' t)) y,    f_∞(x) = K(x, X) K'⁻¹ y.

    The limit is kernel ridge regression, which is solved by a Cholesky factorization in float64. A
    finite `time` is early stopping, which regularizes the directions of small eigenvalues.

    Args:
        kernel: The kernel K:

            - `"mlp"`: the NTK of an infinitely wide MLP with `depth`, `activation`, `sigma_w` and
              `sigma_b`; see `torch_ntk.analytic.mlp_kernels`;
            - `"empirical"`, or a network (an `nn.Module` with parameters) in its place: the
              empirical NTK of `network`, averaged over its outputs;
            - `"analytic"`: the infinite-width NTK of `network`; see `torch_ntk.analytic_ntk`;
            - `"precomputed"`: X is the kernel itself, `[N, N]` in `fit` and `[M, N]` in `predict`;
            - a function of tensors `(x1, x2=None) -> [N1, N2]`: a `CNTK`, for example. It gets
              float64 tensors on the CPU, and may return a tensor on another device;
            - a `torch_ntk.scale.KernelStore` of the training samples. `fit` needs the samples too,
              in the form in which they were passed to `compute_kernel`. `predict` takes a store of
              the kernel between test and training samples; or test samples, if the training store
              was returned by `compute_kernel`.
        network: The network for `"empirical"` and `"analytic"`. `clone` of scikit-learn copies it,
            and `fit` keeps a copy, so that training the network further does not change
            predictions.
        forward_fn: For `"empirical"`: `forward_fn(network, x)` returns the outputs of samples, as
            in `torch_ntk.empirical_ntk`. Its samples are in float64.
        standard: For `"analytic"`: how ordinary layers of `network` are drawn, for example
            `"torch"` for PyTorch's default; see `torch_ntk.analytic_kernels`.
        depth: The number of dense layers of `"mlp"`; 1 is a linear model.
        activation: The activation of `"mlp"`.
        sigma_w: The scale of the weights of `"mlp"`.
        sigma_b: The scale of the biases of `"mlp"`.
        input_shape: The shape of one sample where the kernel wants more than a row of features,
            `(1, 8, 8)` for 8×8 grey images. It is not needed if X has the shape `[N, C, P, Q]`.
        diag_reg: Regularization of the diagonal of K(X, X), in units of its mean.
        time: The time of training by gradient flow on ½ Σ‖f - y‖²; None means the limit.
        features: For the empirical kernel of a network: solve with so many random features of its
            gradients (`torch_ntk.ntk_features`) instead of the kernel. This allows more samples,
            because only a matrix `[features, features]` is kept in memory. The kernel is then
            estimated, with a relative error of about sqrt(3 / features).
        seed: The seed of the features.
        coupled: For the empirical kernel of a network: whether X is *one* input whose rows are the
            samples, as in `torch_ntk.empirical_ntk`. Outputs for a sample then depend on what
            else is in X, in `fit` and in `predict`, and so do scores of cross-validation.
        training: For the empirical kernel of a network: whether its modules keep their training
            flags. Batch normalization with the statistics of X also needs `coupled`.

    Attributes:
        dual_coef_: α with f(x) = K(x, X) α, `[N, O]`.
        coef_: With `features`, in place of `dual_coef_`: w with f(x) = φ(x) w, `[features, O]`.
        input_shape_: The shape of one sample.
        n_features_in_: The number of features.

    Raises:
        TypeError, ValueError: In `fit`: a parameter is wrong; the kernel is not symmetric, not
            finite, or with `diag_reg` not positive definite.

    References:
        Jacot, Gabriel, Hongler, "Neural Tangent Kernel" (2018). Lee et al., "Wide neural networks
        of any depth evolve as linear models under gradient descent" (2019).

    Example:
        >>> import numpy as np
        >>> from torch_ntk.estimators import NTKRegressor
        >>> x = np.linspace(-1.0, 1.0, 9)[:, None]
        >>> model = NTKRegressor(sigma_b=1.0).fit(x, np.abs(x[:, 0]))
        >>> bool(abs(model.predict(np.array([[0.5]]))[0] - 0.5) < 1e-3)
        True
    """

    def fit(self, X: Any, y: Any) -> NTKRegressor:
        """Solve for the coefficients.

        Args:
            X: The samples `[N, D]` or `[N, ...]`, an array or tensor.
            y: The targets `[N]` or `[N, O]`.
        """
        rows, y = self._training_data(X, y, multi_output=True, y_numeric=True)
        targets = np.asarray(y, dtype=np.float64)
        check_finite("y", torch.tensor(targets), "A missing target (None) is not a number.")
        self._one_output = targets.ndim == 1
        self._solve(rows, targets.reshape(len(rows), -1))
        return self

    def predict(self, X: Any) -> Array:
        """The outputs `[M]` or `[M, O]`, as the targets."""
        outputs = self._outputs(X)
        return outputs[:, 0] if self._one_output else outputs

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags
