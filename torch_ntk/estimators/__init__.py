"""Kernel regression and classification with Neural Tangent Kernels, as scikit-learn estimators.

`NTKRegressor` and `NTKClassifier` predict with infinitely wide networks after training. They take
any kernel of this package, the empirical kernel of a network, or a precomputed kernel.
"""

from ._classifier import NTKClassifier as NTKClassifier
from ._regressor import NTKRegressor as NTKRegressor

__all__ = ["NTKClassifier", "NTKRegressor"]
