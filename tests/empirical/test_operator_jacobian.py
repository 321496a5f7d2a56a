"""`.jacobian` of an operator, against loops of backward passes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from cases import by_name
from oracles import jacobian_loop, relative_error
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector
from traces import snapshot

from torch_ntk import MLP, NTKOperator
from torch_ntk.empirical.operator import _products


def columns(size: int, count: int = 2) -> Tensor:
    return torch.linspace(-1, 1, size * count, dtype=torch.float64).view(-1, count).cos()


@pytest.mark.parametrize("name", ["mlp", "gradient_stopped_by_no_grad", "embedding_bag_max"])
def test_products(name: str) -> None:
    """One model for each way of multiplying."""
    case = by_name(name)
    model, x = case.build(), case.inputs(4)
    j = jacobian_loop(case.build(), x).flatten(0, 1)
    before = snapshot(model, x)
    found = NTKOperator(model, x).jacobian
    assert found.shape == j.shape
    assert found.T.shape == j.T.shape
    w, v = columns(j.shape[1]), columns(j.shape[0])
    assert relative_error(found @ w, j @ w) < 1e-10
    assert relative_error(found @ w[:, 0], j @ w[:, 0]) < 1e-10
    assert relative_error(found.T @ v, j.T @ v) < 1e-10
    assert relative_error(found.T @ v[:, 1], j.T @ v[:, 1]) < 1e-10
    assert relative_error(found.T.T @ w, j @ w) < 1e-10
    assert snapshot(model, x) == before


def test_the_order_of_the_parameters() -> None:
    net, x = MLP([5, 8, 3]).double(), torch.randn(4, 5, dtype=torch.float64)
    j = NTKOperator(net, x).jacobian
    gradient = j.T @ torch.ones(12, dtype=torch.float64)
    net(x).sum().backward()
    own = {n: p.grad for n, p in net.named_parameters() if p.grad is not None}
    assert relative_error(gradient, parameters_to_vector(own.values())) < 1e-12
    named = j.by_name(gradient)
    assert list(named) == list(own)
    assert all(relative_error(named[n], g) < 1e-12 for n, g in own.items())
    assert torch.equal(j @ named, j @ gradient)
    assert {n: p.shape for n, p in net.named_parameters()} == j.parameters
    some = NTKOperator(net, x, params=["*.bias"]).jacobian
    assert relative_error(some.T @ torch.ones(12).double(), gradient_of(own, "bias")) < 1e-12


def gradient_of(own: dict[str, Tensor], ending: str) -> Tensor:
    return torch.cat([g.flatten() for n, g in own.items() if n.endswith(ending)])


def test_other_outputs_and_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = MLP([5, 8, 3]).double(), torch.randn(7, 5, dtype=torch.float64)
    twin = MLP([5, 8, 3]).double()
    twin.load_state_dict(net.state_dict())
    j = jacobian_loop(twin, x)
    pseudo = NTKOperator(net, x, output="pseudo").jacobian
    w = columns(j.shape[2])
    assert relative_error(pseudo @ w, j.sum(1) @ w / 3**0.5) < 1e-10
    sides = NTKOperator(net, x[:3], x[3:])
    assert relative_error(sides.jacobian @ w, j[:3].flatten(0, 1) @ w) < 1e-10
    assert relative_error(sides.T.jacobian @ w, j[3:].flatten(0, 1) @ w) < 1e-10
    monkeypatch.setattr(_products, "_CPU_BYTES", 3000)  # one vector and a few samples at once
    assert relative_error(sides.jacobian @ w, j[:3].flatten(0, 1) @ w) < 1e-10
    assert relative_error(sides.jacobian.T @ columns(9), j[:3].flatten(0, 1).T @ columns(9)) < 1e-10


def test_arrays_and_scipy() -> None:
    from scipy.sparse.linalg import svds  # type: ignore[import-untyped]

    theta = NTKOperator(MLP([5, 8, 3]).double(), torch.randn(4, 5, dtype=torch.float64))
    j = theta.jacobian
    v = np.linspace(-1, 1, 12)
    assert isinstance(j.T @ v, np.ndarray)
    np.testing.assert_allclose(j @ (j.T @ v), theta @ v, rtol=1e-10)
    largest = float(theta.eigsh(1).values) ** 0.5
    start = np.ones(12)
    found = svds(j.to_scipy(), k=1, v0=start, return_singular_vectors=False)
    assert found[0] == pytest.approx(largest, rel=1e-8)


def test_what_is_refused() -> None:
    net, x = MLP([5, 8, 3]).double(), torch.randn(4, 5, dtype=torch.float64)
    j = NTKOperator(net, x).jacobian
    zeros = {n: torch.zeros_like(p) for n, p in net.named_parameters()}
    first = next(iter(zeros))
    for bad, error, says in (
        (torch.ones(12).double(), ValueError, r"`v` must be a vector \[75\]"),
        (torch.ones(75), TypeError, "`v` must be a tensor of torch.float64"),
        ({first: zeros[first]}, ValueError, "`v` must be a mapping with the names.*without"),
        ({**zeros, "c": zeros[first]}, ValueError, r"one with \['c'\] besides"),
        ({**zeros, first: torch.zeros(2)}, ValueError, rf"`v\['{first}'\]` must be of shape"),
    ):
        with pytest.raises(error, match=says):
            j @ bad
    with pytest.raises(TypeError, match="for the transpose"):
        j.T @ zeros
    with pytest.raises(ValueError, match=r"`vector` must be of shape \[75\]"):
        j.by_name(torch.ones(12))
    for output in ("trace", "mean", "probed"):
        with pytest.raises(ValueError, match=r"`output` must be 'full' or 'pseudo'.*output='full'"):
            _ = NTKOperator(net, x, output=output, probes=2).jacobian


def test_a_coupled_batch() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2)).double()
    x = torch.randn(5, 3, dtype=torch.float64)
    j = NTKOperator(net, x, coupled=True, training=True).jacobian
    rows = []
    for f in net(x).flatten():
        grads = torch.autograd.grad(f, list(net.parameters()), retain_graph=True)
        rows.append(torch.cat([g.flatten() for g in grads]))
    w = columns(j.shape[1])
    assert relative_error(j @ w, torch.stack(rows) @ w) < 1e-10
