"""scikit-learn's own checks of an estimator."""

from __future__ import annotations

from typing import Any

from sklearn.utils.estimator_checks import parametrize_with_checks

from torch_ntk.estimators import NTKClassifier, NTKRegressor


def not_meant(estimator: Any) -> dict[str, str]:
    """One check passes a matrix of signed random numbers as the kernel, which is refused."""
    if estimator.kernel == "precomputed":
        return {"check_positive_only_tag_during_fit": "the matrix is not positive definite"}
    return {}


@parametrize_with_checks(
    [
        NTKRegressor(),
        NTKClassifier(),
        NTKRegressor(time=1e4),
        NTKClassifier(kernel="precomputed", diag_reg=10.0),
    ],
    expected_failed_checks=not_meant,
)
def test_scikit_learn_checks(estimator: Any, check: Any) -> None:
    check(estimator)
