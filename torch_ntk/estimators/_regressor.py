"""`NTKRegressor`: regression by an infinitely wide trained network."""

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

    The limit is kernel ridge regression, solved by Cholesky's decomposition in float64; a finite
    `time` is early stopping, which regularizes the directions of small eigenvalues.

    Args:
        kernel: What K is:

            - `"mlp"`: the NTK of an infinitely wide MLP with `depth`, `activation`, `sigma_w` and
              `sigma_b`; see `torch_ntk.analytic.mlp_kernels`;
            - `"empirical"`, or a network (an `nn.Module` with parameters) in its place: the
              empirical NTK of `network`, averaged over its outputs;
            - `"analytic"`: the infinite-width NTK of `network`; see `torch_ntk.analytic_ntk`;
            - `"precomputed"`: X is the kernel itself, `[N, N]` in `fit` and `[M, N]` in `predict`;
            - a function of tensors `(x1, x2=None) -> [N1, N2]`: a `CNTK`, for example. It gets
              float64 on the CPU, and may move it and return what lies elsewhere;
            - a `torch_ntk.scale.KernelStore` of the training samples, which `fit` gets too, in the
              form in which they were given to `compute_kernel`. `predict` takes a store of the
              kernel between test and training samples, or samples, if the store is what
              `compute_kernel` has returned.
        network: For `"empirical"` and `"analytic"`. As in scikit-learn, `clone` copies it; and
            `fit` keeps a copy, so that training the network further does not change predictions.
        forward_fn: For `"empirical"`: `forward_fn(network, x)` returns the outputs of samples, as
            in `torch_ntk.empirical_ntk`. X reaches it in float64.
        standard: For `"analytic"`: how ordinary layers of `network` are drawn, `"torch"` by default
            of PyTorch; see `torch_ntk.analytic_kernels`.
        depth: Dense layers of `"mlp"`, so that 1 is a linear model.
        activation: Of `"mlp"`.
        sigma_w: Of `"mlp"`.
        sigma_b: Of `"mlp"`.
        input_shape: The shape of one sample where the kernel wants more than a row of features,
            `(1, 8, 8)` for 8×8 grey images. Not needed if X comes as `[N, C, P, Q]`.
        diag_reg: What is added to the diagonal of K(X, X), in units of its mean.
        time: How long to train by gradient flow on ½ Σ‖f - y‖²; None is the limit.
        features: For the empirical kernel of a network: solve with so many random features of its
            gradients (`torch_ntk.ntk_features`) in place of the kernel, for more samples than a
            kernel allows: a matrix `[features, features]` is all that is kept of them. The kernel
            is then estimated, with a relative error of about sqrt(3 / features).
        seed: Of the features.
        coupled: For the empirical kernel of a network: whether X is *one* input whose rows are the
            samples, as in `torch_ntk.empirical_ntk`. Outputs for a sample then depend on what
            else is in X, in `fit` and in `predict`, and so do scores of cross-validation.
        training: For the empirical kernel of a network: whether its modules keep their training
            flags; batch normalization with the statistics of X, then with `coupled`.

    Attributes:
        dual_coef_: α with f(x) = K(x, X) α, `[N, O]`.
        coef_: With `features` in its place w with f(x) = φ(x) w, `[features, O]`.
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
            X: Samples `[N, D]`, or `[N, ...]`; arrays or tensors.
            y: Targets `[N]` or `[N, O]`.
        """
        rows, y = self._training_data(X, y, multi_output=True, y_numeric=True)
        targets = np.asarray(y, dtype=np.float64)
        check_finite("y", torch.tensor(targets), "A missing target (None) is not a number.")
        self._one_output = targets.ndim == 1
        self._solve(rows, targets.reshape(len(rows), -1))
        return self

    def predict(self, X: Any) -> Array:
        """Outputs `[M]` or `[M, O]`, as the targets were."""
        outputs = self._outputs(X)
        return outputs[:, 0] if self._one_output else outputs

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags
