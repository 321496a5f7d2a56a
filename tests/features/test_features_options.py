"""`ntk_features` with `precondition=`, `coupled=`, `training=`, beside a projection as a matrix."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import by_name
from coupled_cases import CASES, call, jacobian, made, normal
from oracles import jacobian_loop, relative_error
from preconditions import named, scales, times_root
from test_features_values import SOME, force, matrix
from torch import nn
from torch.utils.data import TensorDataset
from traces import snapshot

from torch_ntk import empirical_ntk, ntk_features
from torch_ntk.features._projection import seed_of

DIM = 12


@pytest.mark.parametrize("by_factors", [True, False])
@pytest.mark.parametrize("kind", ["uniform", "varied", "even"])
@pytest.mark.parametrize("name", [*SOME, "group_norm", "embedding_bag", "tied_weights"])
def test_gradients_are_multiplied_by_the_root(
    name: str, kind: str, by_factors: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    force(monkeypatch, by_factors)
    case = by_name(name)
    model, x = case.build(), case.inputs(3)
    p = scales(model, kind)
    j = times_root(jacobian_loop(model, x), p)
    before = snapshot(model, *p.values())
    for output in ("full", "mean", "pseudo"):
        found = ntk_features(model, x, DIM, output=output, seed=3, precondition=p)
        if output == "mean":
            o = j.shape[1]
            each = torch.einsum("nop,opd->nd", j, matrix("sjlt", model, DIM, o)) / o**0.5
        else:
            of = j if output == "full" else j.sum(1, keepdim=True) / j.shape[1] ** 0.5
            each = of @ matrix("sjlt", model, DIM)[0]
            each = each if output == "full" else each[:, 0]
        assert relative_error(found, each) < 1e-10
    assert snapshot(model, *p.values()) == before


def test_the_optimizer_itself_and_where_nothing_can_be_transformed() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2)).double()
    x, y = normal(5, 6), normal(5, 2, seed=1)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        (net(x) - y).square().mean().backward()
        optimizer.step()
    phi = ntk_features(net, x, 60, output="full", precondition=optimizer).flatten(0, 1)
    exact = empirical_ntk(net, x, precondition=optimizer).transpose(1, 2).reshape(10, 10)
    error = (phi @ phi.T - exact).norm() / exact.norm()
    assert error < 1.0  # 12 % of the norm for an entry; without P it is 1e3 times as large
    plain = ntk_features(net, x, 60, output="full").flatten(0, 1)
    assert (plain @ plain.T - exact).norm() > 0.9 * exact.norm()

    def untransformable(params: dict[str, Any], batch: Any) -> Any:
        if bool(batch.sum() > 1e9):
            raise AssertionError
        return torch.func.functional_call(net, params, batch)

    p = scales(net, "varied")
    found = ntk_features(
        untransformable, x, DIM, output="full", seed=3, precondition=p, params=named(net)
    )
    j = times_root(jacobian_loop(net, x), p)
    assert relative_error(found, j @ matrix("sjlt", net, DIM)[0]) < 1e-10


@pytest.mark.parametrize("name", CASES)
def test_rows_of_one_input(name: str) -> None:
    _, x, _, training = CASES[name]
    j, net = jacobian(name, x), made(name)
    before = snapshot(net)
    options: dict[str, Any] = {"coupled": True, "training": training}
    full = ntk_features(net, x, DIM, output="full", seed=3, **options)
    s = matrix("sjlt", net, DIM)[0]
    assert relative_error(full, j @ s) < 1e-10
    pseudo = ntk_features(net, x, DIM, output="pseudo", seed=3, **options)
    assert relative_error(pseudo, j.sum(1) @ s / j.shape[1] ** 0.5) < 1e-10
    mean = ntk_features(net, x, DIM, seed=3, **options)
    each = [
        ntk_features(net, x, DIM, output="full", seed=seed_of(f"3 output {i}"), **options)[:, i]
        for i in range(j.shape[1])
    ]
    assert relative_error(mean, sum(each[1:], each[0]) / j.shape[1] ** 0.5) < 1e-10
    assert snapshot(net) == before


def test_parts_of_rows_add_up() -> None:
    net, x = made("graph"), CASES["graph"][1]
    parts = ntk_features(net, x, DIM, coupled=True, by="module")
    assert set(parts) == {"first", "second"}
    whole = ntk_features(net, x, DIM, coupled=True)
    assert relative_error(parts["first"] + parts["second"], whole) < 1e-10


def test_flags_of_modules() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 1)).double()
    x = normal(6, 3)
    call(net, x)  # moves the statistics away from those of the batch
    kept = ntk_features(net, x, DIM, coupled=True, training=True)
    assert relative_error(kept, ntk_features(net, x, DIM, coupled=True)) > 1e-3


def test_bad_arguments() -> None:
    net, x = made("set"), CASES["set"][1]
    with pytest.raises(ValueError, match="`store` must be None for a coupled batch"):
        ntk_features(net, x, DIM, coupled=True, store="features.safetensors")
    with pytest.raises(TypeError, match="`x` must be the batch itself with coupled=True"):
        ntk_features(net, TensorDataset(x), DIM, coupled=True)
    with pytest.raises(ValueError, match="`batch_size` must be None with coupled=True"):
        ntk_features(net, x, DIM, coupled=True, batch_size=2)
    with pytest.raises(ValueError, match="`precondition` must be given for all parameters"):
        ntk_features(net, x, DIM, precondition={})
    with pytest.raises(ValueError, match="optimizer that has taken a step"):
        ntk_features(net, x, DIM, precondition=torch.optim.Adam(net.parameters()))
