"""Coefficients, outputs and time against the formula, for every kind of kernel."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from scipy.linalg import expm  # type: ignore[import-untyped]
from sklearn.base import clone
from sklearn.datasets import load_digits
from torch import Tensor, nn

from torch_ntk import MLP, NTKLinear, empirical_ntk
from torch_ntk.analytic import CNTK, analytic_ntk, mlp_kernels
from torch_ntk.estimators import NTKClassifier, NTKRegressor

RNG = np.random.default_rng(3)
X, X_TEST = RNG.normal(size=(12, 4)), RNG.normal(size=(5, 4))
Y = RNG.normal(size=(12, 2))


def rbf(x1: Tensor, x2: Tensor | None = None) -> Tensor:
    return torch.exp(-0.5 * torch.cdist(x1, x1 if x2 is None else x2) ** 2)


def network() -> nn.Module:
    torch.manual_seed(4)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))


def wide() -> nn.Module:
    return nn.Sequential(NTKLinear(4, 5), nn.ReLU(), NTKLinear(5, 2))


def as_array(kernel: Any, a: Any, b: Any) -> Any:
    first = torch.as_tensor(a, dtype=torch.float64)
    second = None if a is b else torch.as_tensor(b, dtype=torch.float64)
    return kernel(first, second).double().numpy()


KINDS: dict[str, tuple[dict[str, Any], Any]] = {
    "mlp": (
        {"depth": 2, "activation": "relu", "sigma_w": 1.3, "sigma_b": 0.4},
        lambda a, b: mlp_kernels(a, b, 2, "relu", 1.3, 0.4).ntk,
    ),
    "callable": ({"kernel": rbf}, rbf),
    "network": (
        {"kernel": network()},
        lambda a, b: empirical_ntk(network(), a, b, output="mean", dtype=torch.float64),
    ),
    "empirical": (
        {"kernel": "empirical", "network": network().double()},
        lambda a, b: empirical_ntk(network().double(), a, b, output="mean"),
    ),
    "analytic": ({"kernel": "analytic", "network": wide()}, partial(analytic_ntk, wide())),
    "ordinary": (
        {"kernel": "analytic", "network": network(), "standard": "torch"},
        partial(analytic_ntk, network(), standard="torch"),
    ),
    "partial": ({"kernel": partial(analytic_ntk, wide())}, partial(analytic_ntk, wide())),
}


@pytest.mark.parametrize("time", [None, 0.7, float("inf")])
@pytest.mark.parametrize("name", KINDS)
def test_the_formula(name: str, time: float | None) -> None:
    """f_t(x) = K(x, X) K'⁻¹ (1 - exp(-K' t)) y, the exponential by SciPy's `expm`."""
    options, kernel = KINDS[name]
    model = NTKRegressor(**options, diag_reg=0.05, time=time).fit(X, Y)
    k = as_array(kernel, X, X)
    ridged = k + 0.05 * np.trace(k) / len(k) * np.eye(len(k))
    learned = np.eye(len(k))
    if time not in (None, float("inf")):
        learned = learned - expm(-ridged * time)
    expected = as_array(kernel, X_TEST, X) @ np.linalg.solve(ridged, learned @ Y)
    assert np.allclose(model.predict(X_TEST), expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("kind", [NTKRegressor, NTKClassifier])
def test_precomputed_is_the_same(kind: type) -> None:
    y = Y[:, 0] if kind is NTKRegressor else (Y[:, 0] > 0) + 2 * (Y[:, 1] > 1)
    direct = kind(rbf).fit(X, y)
    before = kind("precomputed").fit(as_array(rbf, X, X), y)
    k_test = as_array(rbf, X_TEST, X)
    assert np.array_equal(direct.predict(X_TEST), before.predict(k_test))
    assert before.__sklearn_tags__().input_tags.pairwise
    assert not direct.__sklearn_tags__().input_tags.pairwise


def test_classes_and_scores() -> None:
    """Zero-centred targets: the outputs of all classes add up to 0."""
    labels = np.array(["b", "a", "c"])[np.argsort(Y[:, :1].repeat(3, 1) + X[:, :3], 1)[:, 0]]
    model = NTKClassifier(rbf, diag_reg=0.0).fit(X, labels)
    scores = model.decision_function(X)
    assert scores.shape == (12, 3)
    assert np.allclose(scores.sum(1), 0.0, atol=1e-12)
    expected = (labels[:, None] == model.classes_) - 1 / 3
    assert np.allclose(scores, expected, atol=1e-8)
    assert (model.predict(X) == labels).all()
    assert not hasattr(model, "predict_proba")


def test_two_classes_have_one_score() -> None:
    labels = np.where(X[:, 0] > 0, 7, 3)
    model = NTKClassifier(rbf, diag_reg=0.0).fit(X, labels)
    assert np.allclose(model.decision_function(X), np.where(labels == 7, 1.0, -1.0), atol=1e-8)
    assert list(model.classes_) == [3, 7]


def test_early_stopping_approaches_the_limit() -> None:
    limit = NTKRegressor(rbf).fit(X, Y).predict(X_TEST)
    gaps = [
        np.abs(NTKRegressor(rbf, time=t).fit(X, Y).predict(X_TEST) - limit).max()
        for t in (0.0, 1.0, 10.0, 1e4)
    ]
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[-1] < 1e-6
    assert np.abs(NTKRegressor(rbf, time=0.0).fit(X, Y).predict(X_TEST)).max() == 0.0


@pytest.mark.parametrize("form", ["rows", "images", "tensors"])
def test_images(form: str) -> None:
    """Rows with `input_shape`, arrays of images and tensors come to the same."""
    x, y = load_digits(return_X_y=True)
    x, y = x[:60].astype(np.float64) / 16, y[:60]
    kernel = CNTK(2)
    expected = kernel(torch.as_tensor(x).reshape(-1, 1, 8, 8))
    reference = NTKClassifier("precomputed").fit(expected[:40, :40].numpy(), y[:40])
    data: Any = x if form == "rows" else x.reshape(-1, 1, 8, 8)
    data = torch.as_tensor(data) if form == "tensors" else data
    target: Any = torch.as_tensor(y) if form == "tensors" else y
    shape = (1, 8, 8) if form == "rows" else None
    model = NTKClassifier(kernel, input_shape=shape).fit(data[:40], target[:40])
    found = model.decision_function(data[40:])
    assert np.allclose(found, reference.decision_function(expected[40:, :40].numpy()), atol=1e-7)
    assert model.input_shape_ == (1, 8, 8)


def test_a_clone_of_a_network_is_its_own() -> None:
    net = MLP([4, 6, 1])
    model = NTKRegressor(kernel="empirical", network=net)
    copied = clone(model)
    assert copied.network is not net
    before = model.fit(X, Y).predict(X_TEST)
    with torch.no_grad():
        next(net.parameters()).zero_()
    assert np.array_equal(copied.fit(X, Y).predict(X_TEST), before)


@pytest.mark.parametrize("name", ["network", "empirical", "mlp"])
def test_a_fitted_machine_stays_as_it_is(name: str) -> None:
    """Training the network further, or setting a parameter, waits for the next fit."""
    options = dict(KINDS[name][0])
    net = network().double()
    if name != "mlp":
        options["kernel" if name == "network" else "network"] = net
    model = NTKRegressor(**options).fit(X, Y)
    before = model.predict(X_TEST)
    with torch.no_grad():
        next(net.parameters()).zero_()
    model.set_params(depth=5)
    assert np.array_equal(model.predict(X_TEST), before)
    assert not np.allclose(model.fit(X, Y).predict(X_TEST), before)
