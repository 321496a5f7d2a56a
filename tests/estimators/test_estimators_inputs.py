"""What estimators refuse, and how they say it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from torch_ntk.estimators import NTKClassifier, NTKRegressor

RNG = np.random.default_rng(5)
X, Y = RNG.normal(size=(8, 4)), RNG.normal(size=8)


def rbf(x1: Tensor, x2: Tensor | None = None) -> Tensor:
    return torch.exp(-(torch.cdist(x1, x1 if x2 is None else x2) ** 2))


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"kernel": "rbf"}, ValueError, "`kernel` must be 'mlp', 'empirical'.*got 'rbf'"),
        ({"kernel": 3}, TypeError, "`kernel` must be 'mlp'"),
        ({"kernel": nn.Linear}, TypeError, "`kernel` must be 'mlp'"),
        ({"kernel": "empirical"}, TypeError, "`network` must be an nn.Module with parameters"),
        ({"kernel": "analytic", "network": nn.ReLU()}, TypeError, "`network` must be"),
        ({"depth": 0}, ValueError, "`depth` must be a positive integer"),
        ({"depth": 1.5}, TypeError, "`depth` must be a positive integer"),
        ({"diag_reg": -1.0}, ValueError, "`diag_reg` must be a finite number, at least 0"),
        ({"diag_reg": "1"}, TypeError, "`diag_reg` must be"),
        ({"time": -1.0}, ValueError, "`time` must be a finite number, at least 0"),
        ({"time": float("nan")}, ValueError, "`time` must be"),
        ({"input_shape": (1, 3)}, ValueError, "`input_shape` must be a shape of 4 numbers"),
        ({"input_shape": (-2, -2)}, ValueError, "`input_shape` must be a sequence of positive"),
        ({"input_shape": 4}, TypeError, "`input_shape` must be a sequence of integers"),
        ({"kernel": lambda a, b=None: a}, ValueError, "`kernel` must be a function that returns"),
        (
            {"kernel": lambda a, b=None: torch.full((8, 8), torch.nan)},
            ValueError,
            "`kernel` must be finite",
        ),
        (
            {"kernel": lambda a, b=None: torch.arange(64.0).reshape(8, 8)},
            ValueError,
            "`kernel` must be symmetric on the training samples",
        ),
        (
            {"kernel": lambda a, b=None: torch.zeros(8, 8)},
            ValueError,
            "`kernel` must be positive on the diagonal",
        ),
        (
            {"kernel": lambda a, b=None: torch.ones(8, 8), "diag_reg": 0.0},
            ValueError,
            "numerically positive definite.*eigenvalues from.*Raise diag_reg",
        ),
        (
            {"kernel": lambda a, b=None: torch.eye(8) - 0.9, "diag_reg": 1e-3},
            ValueError,
            "numerically positive definite",
        ),
        ({"kernel": "precomputed"}, ValueError, "`X` must be the square kernel"),
    ],
)
@pytest.mark.parametrize("kind", [NTKRegressor, NTKClassifier])
def test_refused_in_fit(
    kind: type, options: dict[str, Any], error: type[Exception], text: str
) -> None:
    model = kind(**options)
    with pytest.raises(error, match=text):
        model.fit(X, Y if kind is NTKRegressor else Y > 0)
    assert not hasattr(model, "dual_coef_")


def test_the_asymmetry_is_measured_against_the_kernel() -> None:
    kernel = rbf(torch.tensor(X))
    rounded = 1e9 * kernel.float().double()
    rounded[0, 1] *= 1.0 + 1e-7
    NTKRegressor("precomputed").fit(rounded, Y)
    rounded[0, 1] *= 1.1
    with pytest.raises(ValueError, match="`kernel` must be symmetric"):
        NTKRegressor("precomputed").fit(1e-18 * rounded, Y)


def test_repeated_samples_need_a_ridge() -> None:
    twice, targets = np.concatenate([X, X]), np.concatenate([Y, -Y])
    with pytest.raises(ValueError, match="remove repeated samples"):
        NTKRegressor(rbf, diag_reg=0.0).fit(twice, targets)
    # With one, targets that contradict each other are averaged.
    found = NTKRegressor(rbf, diag_reg=1e-6).fit(twice, targets).predict(X)
    assert np.abs(found).max() < 1e-8


def test_a_singular_kernel_that_cholesky_does_not_notice() -> None:
    """The second pivot is 2⁻⁵², all of it rounding."""
    kernel = np.array([[1.0, 1.0 - 2.0**-53], [1.0 - 2.0**-53, 1.0]])
    with pytest.raises(ValueError, match="numerically positive definite"):
        NTKRegressor("precomputed", diag_reg=0.0).fit(kernel, [1.0, -1.0])


def test_one_class() -> None:
    with pytest.raises(ValueError, match="at least two classes; got the one class"):
        NTKClassifier().fit(X, np.ones(8, dtype=int))


def test_continuous_labels() -> None:
    with pytest.raises(ValueError, match="Unknown label type: continuous"):
        NTKClassifier().fit(X, Y)


@pytest.mark.parametrize(
    ("y", "text"),
    [
        (["a", None, "b"], r"`y` must be a label for each sample; got 1 missing of 3 .*index 1\)"),
        ([1, 2, None], "`y` must be a label for each sample"),
        (np.array(["a", np.nan, "b"], dtype=object), "`y` must be a label for each sample"),
        (["a", 1, "b"], "`y` must be labels of one kind; got 2 strings among 3 labels"),
    ],
    ids=["none", "none-of-numbers", "nan", "mixed"],
)
def test_labels_that_cannot_be_sorted(y: Any, text: str) -> None:
    y = np.array(y, dtype=object)
    with pytest.raises(ValueError, match=text):
        NTKClassifier().fit(X[:3], y)
    with pytest.raises(ValueError, match=text):
        NTKClassifier().fit(X[:3], y.tolist())


def test_a_target_that_is_missing() -> None:
    with pytest.raises(ValueError, match=r"`y` must be finite; .* index \(1,\)\).*missing target"):
        NTKRegressor().fit(X[:3], [0.5, None, 1.0])


def test_another_number_of_features() -> None:
    with pytest.raises(ValueError, match="X has 3 features, but NTKRegressor is expecting 4"):
        NTKRegressor(rbf).fit(X, Y).predict(X[:, :3])


def test_not_fitted() -> None:
    with pytest.raises(ValueError, match="not fitted yet"):
        NTKRegressor().predict(X)


def test_images_of_another_shape() -> None:
    images = RNG.normal(size=(8, 1, 2, 4))
    with pytest.raises(ValueError, match="`X` must be samples of shape"):
        NTKRegressor().fit(images, Y).predict(images.reshape(8, 2, 1, 4))


class Reaches(nn.Module):
    """A layer that is reached by a method, or by a closure over the module."""

    def __init__(self, by_closure: bool) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.block = (lambda x: self.layer(x)) if by_closure else self.method

    def method(self, x: Tensor) -> Tensor:
        return self.layer(x)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.block(x))


@pytest.mark.parametrize("options", [{"kernel": "empirical"}, {}])
def test_a_network_that_is_trained_on_does_not_move_the_predictions(
    options: dict[str, Any],
) -> None:
    net = Reaches(by_closure=False)
    given = {"network": net, **options} if options else {"kernel": net}
    machine = NTKRegressor(**given).fit(X, Y)
    before = machine.predict(X)
    with torch.no_grad():
        net.layer.weight += 1
    np.testing.assert_array_equal(machine.predict(X), before)


@pytest.mark.parametrize("options", [{"kernel": "empirical"}, {}])
def test_a_network_whose_copy_computes_with_the_original_is_refused(
    options: dict[str, Any],
) -> None:
    net = Reaches(by_closure=True)
    given = {"network": net, **options} if options else {"kernel": net}
    name = "network" if options else "kernel"
    with pytest.raises(ValueError, match=f"`{name}` must be .*uses 'layer.weight' through another"):
        NTKRegressor(**given).fit(X, Y)
