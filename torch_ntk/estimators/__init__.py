"""Kernel regression and classification with Neural Tangent Kernels, as scikit-learn estimators.

`NTKRegressor` and `NTKClassifier` are the networks of infinite width after training: with any
kernel of this package, with the empirical kernel of a network, or with a kernel computed before.
"""

from ._classifier import NTKClassifier as NTKClassifier
from ._regressor import NTKRegressor as NTKRegressor

__all__ = ["NTKClassifier", "NTKRegressor"]
