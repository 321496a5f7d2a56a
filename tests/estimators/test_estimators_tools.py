"""Pipelines, searches and cross-validation."""

from __future__ import annotations

import pickle

import numpy as np
import torch
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from torch_ntk.estimators import NTKClassifier, NTKRegressor


class Rbf:
    """A kernel with a parameter that searches can set."""

    def __init__(self, gamma: float = 1.0) -> None:
        self.gamma = gamma

    def get_params(self, deep: bool = True) -> dict[str, float]:
        return {"gamma": self.gamma}

    def set_params(self, **params: float) -> Rbf:
        for name, value in params.items():
            setattr(self, name, value)
        return self

    def __call__(self, x1: Tensor, x2: Tensor | None = None) -> Tensor:
        return torch.exp(-self.gamma * torch.cdist(x1, x1 if x2 is None else x2) ** 2)


def digits(n: int = 240) -> tuple[np.ndarray, np.ndarray]:
    x, y = load_digits(return_X_y=True)
    return x[:n] / 16, y[:n]


def test_search_over_a_pipeline() -> None:
    x, y = digits()
    machine = make_pipeline(StandardScaler(), NTKClassifier())
    grid = {
        "ntkclassifier__depth": np.arange(1, 3),
        "ntkclassifier__diag_reg": np.array([1e-6, 1e2]),
        "ntkclassifier__time": [None, 1.0],
    }
    search = GridSearchCV(machine, grid, cv=3).fit(x, y)
    assert search.best_score_ > 0.85
    assert len(set(search.cv_results_["mean_test_score"])) > 1


def test_search_over_the_parameters_of_a_kernel() -> None:
    x, y = digits()
    search = GridSearchCV(NTKClassifier(Rbf()), {"kernel__gamma": [1e-3, 0.1, 1e3]}, cv=3)
    assert search.fit(x, y).best_params_ == {"kernel__gamma": 0.1}


def test_cross_validation_cuts_a_precomputed_kernel_in_both_axes() -> None:
    x, y = digits()
    kernel = Rbf(0.1)
    direct = cross_val_score(NTKClassifier(kernel), x, y, cv=4)
    before = cross_val_score(
        NTKClassifier("precomputed"), kernel(torch.as_tensor(x)).numpy(), y, cv=4
    )
    assert np.array_equal(direct, before)
    assert direct.mean() > 0.85


def test_a_fitted_estimator_can_be_kept() -> None:
    x, y = digits(60)
    model = NTKRegressor(Rbf(0.1)).fit(x, y)
    again = pickle.loads(pickle.dumps(model))
    assert np.array_equal(again.predict(x), model.predict(x))


def test_probabilities_by_calibration() -> None:
    x, y = digits(240)
    model = CalibratedClassifierCV(NTKClassifier(Rbf(0.1)), cv=3).fit(x[:200], y[:200])
    found = model.predict_proba(x[200:])
    assert found.shape == (40, 10)
    assert np.allclose(found.sum(1), 1.0)
    assert (model.classes_[found.argmax(1)] == y[200:]).mean() > 0.8
