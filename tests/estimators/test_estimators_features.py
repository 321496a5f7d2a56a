"""Estimators that solve with features of gradients in place of a kernel."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from torch_ntk import ntk_features
from torch_ntk.estimators import NTKClassifier, NTKRegressor

RNG = np.random.default_rng(3)
X, X_TEST = RNG.normal(size=(30, 4)), RNG.normal(size=(5, 4))
Y = RNG.normal(size=(30, 2))
LABELS = np.array(["a", "b", "c"])[np.arange(30) % 3]


def network() -> nn.Module:
    torch.manual_seed(4)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))


def product(x1: Tensor, x2: Tensor | None = None) -> Tensor:
    """The linear kernel of the same features."""
    phi = [
        ntk_features(network(), x, 20, seed=5, dtype=torch.float64)
        for x in (x1, x2)
        if x is not None
    ]
    return phi[0] @ phi[-1].T


@pytest.mark.parametrize("time", [None, 0.1])
@pytest.mark.parametrize("n", [8, 30])  # fewer and more than features
def test_the_same_as_with_the_kernel_of_the_features(
    n: int, time: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch_ntk.estimators._base._BLOCK", 7)
    options: dict[str, Any] = {"diag_reg": 1e-2, "time": time}
    of_kernel = NTKRegressor(product, **options).fit(X[:n], Y[:n])
    of_features = NTKRegressor(network(), features=20, seed=5, **options).fit(X[:n], Y[:n])
    assert of_features.coef_.shape == (20, 2)
    expected = of_kernel.predict(X_TEST)
    np.testing.assert_allclose(of_features.predict(X_TEST), expected, rtol=1e-9, atol=1e-10)


def test_a_classifier_is_cloned_pickled_and_piped() -> None:
    net = network()
    model = NTKClassifier("empirical", network=net, features=np.int64(20), diag_reg=1e-2)
    pipe = make_pipeline(StandardScaler(), clone(model)).fit(X, LABELS)
    kept = pickle.loads(pickle.dumps(pipe))
    expected = pipe.decision_function(X_TEST)
    assert expected.shape == (5, 3)
    assert pipe[-1].get_params()["features"] == 20
    with torch.no_grad():
        net[0].weight.add_(1.0)  # what was fitted stays
    np.testing.assert_array_equal(kept.decision_function(X_TEST), expected)
    other = clone(pipe).set_params(ntkclassifier__seed=1).fit(X, LABELS)
    assert np.abs(other.decision_function(X_TEST) - expected).max() > 1e-3


def test_the_last_fit_counts() -> None:
    model = NTKRegressor(network(), features=20, diag_reg=1e-2).fit(X, Y)
    model.set_params(features=None).fit(X, Y)
    expected = NTKRegressor(network(), diag_reg=1e-2).fit(X, Y).predict(X_TEST)
    np.testing.assert_array_equal(model.predict(X_TEST), expected)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"kernel": "mlp", "features": 8}, "`features` must be None for a kernel that is not"),
        ({"kernel": product, "features": 8}, "kernel=network or kernel='empirical'"),
        ({"features": 10_000}, "`features` must be at most the number of the network's parameters"),
        ({"features": 0}, "`features` must be a positive integer"),
        ({"features": 2.5}, "`features` must be a positive integer"),
        ({"features": True}, "`features` must be a positive integer"),
        ({"features": 8, "seed": -1}, "`seed`"),
    ],
)
def test_refusals(options: dict[str, Any], text: str) -> None:
    with pytest.raises((TypeError, ValueError)) as caught:
        NTKRegressor(**{"kernel": network(), **options}).fit(X, Y)
    assert text in str(caught.value)
