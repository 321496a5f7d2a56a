"""`NTKClassifier`: classification by an infinitely wide, trained network."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.base import ClassifierMixin  # type: ignore[import-untyped]
from sklearn.utils.multiclass import (  # type: ignore[import-untyped]
    check_classification_targets,
)
from sklearn.utils.validation import column_or_1d  # type: ignore[import-untyped]

from .._checks import value_error
from ..predict import one_hot
from ._base import KernelMachine
from ._solve import Array


class NTKClassifier(ClassifierMixin, KernelMachine):  # type: ignore[misc]
    r"""Classification by kernel regression on zero-centred one-hot targets.

    The targets of a sample of class c are y_c = 1 - 1/C and y_k = -1/C for other classes, as for
    networks of mean 0 that are trained on ½ Σ‖f - y‖². With K' = K(X, X) + diag_reg·(tr K / N)·1
    and training from f = 0,

        f_t(x) = K(x, X) K'⁻¹ (1 - exp(-K' t)) y,

    which is kernel ridge regression in the limit t → ∞. The predicted class is that of the largest
    output.

    There is no `predict_proba`, because outputs of a squared loss are not probabilities.
    Scikit-learn's `CalibratedClassifierCV(NTKClassifier(...))` estimates probabilities from
    `decision_function`.

    Args:
        kernel, network, forward_fn, standard, depth, activation, sigma_w, sigma_b: The kernel K,
            as in `NTKRegressor`.
        input_shape, diag_reg, time, features, seed, coupled, training: As in `NTKRegressor`.

    Attributes:
        classes_: The class labels, sorted.
        dual_coef_: α with f(x) = K(x, X) α, `[N, C]`.
        coef_: With `features`, in place of `dual_coef_`: w with f(x) = φ(x) w, `[features, C]`.
        input_shape_: The shape of one sample.
        n_features_in_: The number of features.

    Raises:
        TypeError, ValueError: In `fit`: as `NTKRegressor`; a label is missing, labels have several
            types, or there is only one class.

    References:
        Arora, Du, Hu, Li, Salakhutdinov, Wang, "On exact computation with an infinitely wide
        neural net" (2019).

    Example:
        >>> from sklearn.datasets import load_digits
        >>> from torch_ntk.estimators import NTKClassifier
        >>> x, y = load_digits(return_X_y=True)
        >>> model = NTKClassifier().fit(x[::4] / 16, y[::4])
        >>> bool(model.score(x[1::4] / 16, y[1::4]) > 0.95)
        True
    """

    def fit(self, X: Any, y: Any) -> NTKClassifier:
        """Solve for the coefficients.

        Args:
            X: The samples `[N, D]` or `[N, ...]`, an array or tensor.
            y: Class labels `[N]` of any type that scikit-learn supports.
        """
        if y is not None:
            _check_labels(y)
        rows, y = self._training_data(X, y)
        check_classification_targets(y)
        labels = column_or_1d(y, warn=True)
        self.classes_, index = np.unique(labels, return_inverse=True)
        count = len(self.classes_)
        if count < 2:
            raise value_error(
                "y",
                "labels of at least two classes",
                f"the one class {self.classes_[0]!r}",
                "There is nothing to tell apart.",
            )
        targets = one_hot(torch.as_tensor(index), count, zero_centered=True)
        self._solve(rows, targets.to(torch.float64).numpy())
        return self

    def decision_function(self, X: Any) -> Array:
        """Outputs f(x) `[M, C]`; for two classes the difference f_1 - f_0 `[M]`, trained to ±1."""
        outputs = self._outputs(X)
        return outputs[:, 1] - outputs[:, 0] if len(self.classes_) == 2 else outputs

    def predict(self, X: Any) -> Array:
        """The classes of the largest outputs, `[M]`."""
        scores = self.decision_function(X)
        best = (scores > 0).astype(np.intp) if scores.ndim == 1 else scores.argmax(axis=1)
        return np.asarray(self.classes_[best])


def _check_labels(y: Any) -> None:
    """Refuse labels that NumPy cannot sort: missing ones (None, NaN), or strings and numbers."""
    labels = [] if isinstance(y, torch.Tensor) else np.asarray(y, dtype=object).ravel().tolist()
    missing = [k for k, label in enumerate(labels) if label is None or label != label]
    if missing:
        raise value_error(
            "y",
            "a label for each sample",
            f"{len(missing)} missing of {len(labels)} (the first at index {missing[0]})",
            "Leave these samples out, or give them a class of their own.",
        )
    texts = sum(isinstance(label, str) for label in labels)
    if 0 < texts < len(labels):
        raise value_error(
            "y",
            "labels of one kind",
            f"{texts} strings among {len(labels)} labels",
            "Convert all of them to strings, with str(label) for example.",
        )
