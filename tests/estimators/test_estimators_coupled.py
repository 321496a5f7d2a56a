"""Estimators whose rows are one input, and networks that keep their training flags."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.base import clone
from torch import Tensor, nn

from torch_ntk.estimators import NTKClassifier, NTKRegressor

RNG = np.random.default_rng(3)
X, X_TEST = RNG.normal(size=(7, 3)), RNG.normal(size=(4, 3))
Y = RNG.normal(size=(7, 2))


def normalized() -> nn.Module:
    torch.manual_seed(4)
    return nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 2)).double()


class Mean(nn.Module):
    """The rows look at their mean, by which the network differs from batch to batch in eval."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.layer, self.last = nn.Linear(6, 5), nn.Linear(5, 2)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.layer(torch.cat([x, x.mean(0).expand_as(x)], 1))))


class Powers(nn.Linear):
    """It has other outputs in training, sample by sample."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) ** (3 if self.training else 2)


def powers() -> nn.Module:
    torch.manual_seed(4)
    return Powers(3, 2).double()


CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "batch norm": (normalized, {"coupled": True, "training": True}),
    "mean": (Mean, {"coupled": True}),
    "flags": (powers, {"training": True}),
}


def jacobian(net: nn.Module, x: np.ndarray[Any, Any]) -> Tensor:
    """`[N, O·P]`, by a backward pass of the whole batch for each row and output."""
    out = net(torch.tensor(x))
    rows = [torch.autograd.grad(f, list(net.parameters()), retain_graph=True) for f in out.view(-1)]
    flat = torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])
    return flat.view(len(x), -1)


@pytest.mark.parametrize("name", CASES)
def test_outputs_are_those_of_the_loop(name: str) -> None:
    make, options = CASES[name]
    net = make().train()
    state = {k: v.clone() for k, v in net.state_dict().items()}
    model = NTKRegressor(net, diag_reg=1e-2, **options)
    found = clone(model).fit(X, Y).predict(X_TEST)
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())
    j, j_test = jacobian(make().train(), X), jacobian(make().train(), X_TEST)
    kernel = j @ j.T / 2
    kernel += 1e-2 * kernel.diagonal().mean() * torch.eye(7).double()
    expected = j_test @ j.T / 2 @ torch.linalg.solve(kernel, torch.tensor(Y))
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-9, atol=1e-10)
    plain = NTKRegressor(make().eval(), diag_reg=1e-2, coupled="coupled" in options).fit(X, Y)
    if name != "mean":
        assert np.abs(plain.predict(X_TEST) - found).max() > 1e-2


@pytest.mark.parametrize("name", CASES)
def test_features_are_taken_of_all_rows_at_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch_ntk.estimators._base._BLOCK", 2)
    make, options = CASES[name]
    net = make().train()
    few = {"features": 8, "diag_reg": 1e-2, **options}
    found = NTKRegressor(net, **few).fit(X, Y).predict(X_TEST)
    monkeypatch.setattr("torch_ntk.estimators._base._BLOCK", 100)
    whole = NTKRegressor(net, **few).fit(X, Y).predict(X_TEST)
    np.testing.assert_allclose(found, whole, rtol=1e-9)


@pytest.mark.parametrize("flag", ["coupled", "training"])
@pytest.mark.parametrize("kernel", ["mlp", "analytic", "precomputed", lambda a, b=None: a @ a.T])
def test_flags_are_of_empirical_kernels(flag: str, kernel: Any) -> None:
    model = NTKClassifier(kernel, network=normalized(), **{flag: True})
    with pytest.raises(ValueError, match=f"`{flag}` must be False for a kernel that is not the"):
        model.fit(X, [0, 1, 0, 1, 0, 1, 0])
    with pytest.raises(TypeError, match=f"`{flag}` must be True or False"):
        clone(model).set_params(**{flag: "yes"}).fit(X, [0, 1, 0, 1, 0, 1, 0])


@pytest.mark.parametrize("kernel", ["mlp", "empirical", normalized(), lambda a, b=None: a @ a.T])
def test_how_layers_are_drawn_is_of_analytic_kernels(kernel: Any) -> None:
    model = NTKRegressor(kernel, network=normalized(), standard="torch")
    with pytest.raises(ValueError, match="`standard` must be None for a kernel that is not"):
        model.fit(X, Y)


def test_batch_norm_in_training_asks_for_coupled() -> None:
    with pytest.raises(ValueError, match="coupled=True"):
        NTKRegressor(normalized().train(), training=True).fit(X, Y)
