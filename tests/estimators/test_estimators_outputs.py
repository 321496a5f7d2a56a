"""Estimators over networks with several outputs, or that are called in a way of their own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.base import clone
from torch import Tensor, nn

from torch_ntk import empirical_ntk
from torch_ntk.estimators import NTKClassifier, NTKRegressor

RNG = np.random.default_rng(0)
X, Y, X_TEST = RNG.normal(size=(6, 3)), RNG.normal(size=6), RNG.normal(size=(4, 3))


class Tokens(nn.Module):
    """Of keywords alone, with three outputs of which none is called logits."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 4)
        self.head = nn.Linear(4, 2)

    def forward(self, *, ids: Tensor) -> dict[str, Tensor]:
        h = self.embedding(ids).mean(1)
        return {"hidden": h, "scores": self.head(torch.tanh(h))}


def scores(net: nn.Module, x: Tensor) -> Tensor:
    return net(ids=x.long())["scores"]


def ids(n: int) -> Any:
    return RNG.integers(5, size=(n, 6)).astype(float)


def expected(net: nn.Module, x: Any, y: Any, x_test: Any) -> Any:
    """Kernel ridge regression by the normal equations."""
    rows = [torch.tensor(a).long() for a in (x, x_test)]

    def kernel(a: Tensor, b: Tensor | None = None) -> Any:
        call = lambda net, x: net(ids=x)["scores"]  # noqa: E731
        return empirical_ntk(net, a, b, output="mean", forward_fn=call, dtype=torch.float64).numpy()

    train = kernel(rows[0])
    train += 1e-6 * np.trace(train) / len(train) * np.eye(len(train))
    return kernel(rows[1], rows[0]) @ np.linalg.solve(train, y)


def test_outputs_are_chosen_by_a_function() -> None:
    net, x, x_test = Tokens(), ids(6), ids(4)
    fitted = NTKRegressor(net, forward_fn=scores).fit(x, Y)
    wanted = expected(net, x, Y, x_test)
    net.head.weight.data += 1.0  # predictions stay those of the network that was fitted
    assert np.allclose(fitted.predict(x_test), wanted, rtol=1e-8)


def test_a_clone_takes_the_function_along() -> None:
    x = ids(6)
    machine = NTKClassifier("empirical", network=Tokens(), forward_fn=scores)
    labels = [0, 1, 0, 1, 1, 0]
    assert (clone(machine).fit(x, labels).predict(x) == machine.fit(x, labels).predict(x)).all()


def test_a_network_may_return_logits_among_others() -> None:
    class Logits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 8), nn.Linear(8, 1)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            h = torch.tanh(self.a(x))
            return {"hidden": h, "logits": self.b(h)}

    net = Logits()
    plain = NTKRegressor(nn.Sequential(net.a, nn.Tanh(), net.b)).fit(X, Y)
    assert np.allclose(NTKRegressor(net).fit(X, Y).predict(X_TEST), plain.predict(X_TEST))


def test_a_function_that_uses_the_original_network_is_refused() -> None:
    net = Tokens()
    with pytest.raises(ValueError, match=r"'(embedding|head)\.weight' through another reference"):
        NTKRegressor(net, forward_fn=lambda model, x: scores(net, x)).fit(ids(6), Y)
