"""`ntk_features` against Jacobians by loops times the projection as a matrix."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from cases import CASES, Case
from oracles import relative_error
from torch import Tensor, nn

from torch_ntk import empirical_ntk, features_error, ntk_features
from torch_ntk.empirical.rules import ConvUse, LinearUse
from torch_ntk.features._dense import DenseProjection
from torch_ntk.features._projection import Projection, ProjectionSettings
from torch_ntk.features._sjlt import SparseProjection

CPU = torch.device("cpu")
KINDS = ("sjlt", "rademacher", "gaussian")
BY_NAME = {case.name: case for case in CASES}
# Weights of every rule: rows are units, rows are inputs, rows are looked up, groups, and mixed.
SOME = ("mlp", "conv_groups_dilation", "conv_transpose_maxpool", "tied_embedding", "lstm")


def projection(kind: str, name: str, shape: torch.Size, dim: int, joint: int) -> Projection:
    settings = ProjectionSettings(dim, 3, joint, CPU)
    if kind == "sjlt":
        return SparseProjection(name, shape, settings)
    normal = kind == "gaussian"
    return DenseProjection(name, shape, settings, normal=normal, kept=True)


def matrix(kind: str, model: nn.Module, dim: int, joint: int = 1) -> Tensor:
    """The projection of all parameters, `[joint, P, dim]`."""
    found = []
    for name, p in model.named_parameters():
        if p.requires_grad:
            entries = torch.eye(joint * p.numel(), dtype=torch.float64)
            basis = entries.view(joint * p.numel(), joint, p.numel())
            own = projection(kind, name.replace("_orig_mod.", ""), p.shape, dim, joint)
            found.append(own.of_jacobian(basis).view(joint, p.numel(), dim))
    return torch.cat(found, dim=1)


def expected(kind: str, output: str, case: Case, dim: int) -> Tensor:
    model = case.build()
    jacobian = case.jacobian(3)
    o = jacobian.shape[1]
    if output == "pseudo":
        jacobian = jacobian.sum(1, keepdim=True) / o**0.5
    if output == "mean":
        return torch.einsum("nop,opd->nd", jacobian, matrix(kind, model, dim, o)) / o**0.5
    found = jacobian @ matrix(kind, model, dim)[0]
    return found if output == "full" else found[:, 0]


def force(patch: pytest.MonkeyPatch, by_factors: bool) -> None:
    for kind in (SparseProjection, DenseProjection):
        patch.setattr(kind, "by_factors", lambda self, use, b: by_factors)


@pytest.mark.parametrize("case", [c for c in CASES if not c.slow], ids=lambda c: c.name)
def test_every_model(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    force(monkeypatch, True)
    found = ntk_features(case.build(), case.inputs(3), 4, output="full", seed=3, **case.options)
    assert relative_error(found, expected("sjlt", "full", case, 4)) < 1e-10


@pytest.mark.parametrize("by_factors", [True, False])
@pytest.mark.parametrize("output", ["mean", "pseudo", "full"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SOME)
def test_every_kind(
    name: str, kind: str, output: str, by_factors: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    force(monkeypatch, by_factors)
    case = BY_NAME[name]
    found = ntk_features(case.build(), case.inputs(3), 12, kind=kind, output=output, seed=3)
    assert relative_error(found, expected(kind, output, case, 12)) < 1e-10


def test_a_sparse_projection_is_one() -> None:
    own = SparseProjection("w", (7, 5), ProjectionSettings(32, 0, 2, CPU))
    found = own.of_jacobian(torch.eye(70, dtype=torch.float64).view(70, 2, 35))[:, 0]
    quarters = found.view(70, 4, 8)
    assert torch.equal((quarters != 0).sum(2), torch.ones(70, 4, dtype=torch.long))
    assert torch.equal(quarters.abs().sum(2), torch.full((70, 4), 0.5, dtype=torch.float64))
    assert len({tuple(row.tolist()) for row in found}) == 70


@pytest.mark.parametrize("kind", KINDS)
def test_unbiased_within_the_stated_error(kind: str) -> None:
    """The worst case, in which rows of a weight have the same gradient, among others."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)).double()
    x = torch.randn(5, 6, dtype=torch.float64)
    kernel, draws = empirical_ntk(net, x, output="mean"), 200
    phi = torch.stack(
        [ntk_features(net, x, 32, kind=kind, seed=s, check=False) for s in range(draws)]
    )
    found = phi @ phi.mT
    stated = torch.stack([features_error(f, kind=kind) for f in phi])
    norms = kernel.diagonal()
    constant = 3 if kind == "sjlt" else 4
    bound = (constant * (torch.outer(norms, norms) + kernel**2) / 32).sqrt()
    spread = found.std(0)
    assert bool(((found.mean(0) - kernel).abs() < 4 * spread / draws**0.5).all())
    assert bool((spread < 1.1 * bound).all())
    assert bool((spread > bound / 3).all())
    inside = ((found - kernel).abs() <= 2 * stated).double().mean()
    assert float(inside) > 0.95


def test_full_errors_are_those_of_the_outputs_alone() -> None:
    case = BY_NAME["mlp"]
    phi = ntk_features(case.build(), case.inputs(4), 16, output="full")
    error = features_error(phi, phi[:2])
    assert error.shape == (4, 2, 3, 3)
    own = features_error(phi[:, 1], phi[:2, 2])
    assert torch.allclose(error[:, :, 1, 2], own, rtol=1e-12)


def test_parts_sum_to_the_whole() -> None:
    case = BY_NAME["conv_groups_dilation"]
    whole = ntk_features(case.build(), case.inputs(3), 16)
    for by in ("parameter", "module"):
        parts = ntk_features(case.build(), case.inputs(3), 16, by=by)
        assert set(parts) == set(empirical_ntk(case.build(), case.inputs(3), by=by))
        assert relative_error(torch.stack(list(parts.values())).sum(0), whole) < 1e-12


def test_chosen_parameters_keep_their_projection() -> None:
    case = BY_NAME["mlp"]
    parts = ntk_features(case.build(), case.inputs(3), 8, by="parameter")
    own = ntk_features(case.build(), case.inputs(3), 8, params=["2.*"])
    assert relative_error(own, parts["2.weight"] + parts["2.bias"]) < 1e-12


@pytest.mark.parametrize("by_factors", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_whatever_the_layout(
    kind: str, by_factors: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Patches of a convolution run over channels last on a CPU, and first elsewhere."""
    force(monkeypatch, by_factors)
    case = BY_NAME["conv_stride_same"]
    last = ntk_features(case.build(), case.inputs(3), 16, kind=kind)
    never = property(lambda use: False, lambda use, value: None)
    monkeypatch.setattr(ConvUse, "channels_last", never, raising=False)
    first = ntk_features(case.build(), case.inputs(3), 16, kind=kind)
    assert relative_error(first, last) < 1e-12


def test_the_same_in_another_process() -> None:
    code = (
        "import torch; from torch_ntk import ntk_features;"
        "net = torch.nn.Linear(9, 2, bias=False).double(); net.weight.data.fill_(1.0);"
        "x = torch.linspace(-1, 1, 9).double()[None];"
        f"print([ntk_features(net, x, 8, kind=kind).tolist() for kind in {tuple(KINDS)!r}])"
    )
    net = nn.Linear(9, 2, bias=False).double()
    x = torch.linspace(-1, 1, 9).double()[None]
    found = [ntk_features(net, x, 8, kind=kind).tolist() for kind in KINDS]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(found)


def test_a_projection_stays_what_it_is() -> None:
    """Features of an older release belong to those of this one."""
    own = SparseProjection("layer.weight", (3, 2), ProjectionSettings(8, 0, 1, CPU))
    found = own.of_jacobian(torch.eye(6, dtype=torch.float64).view(6, 1, 6))[:, 0]
    assert (2 * found).int().tolist() == [
        [0, -1, 0, 1, 0, -1, 0, 1],
        [-1, 0, 0, -1, 0, -1, 1, 0],
        [0, 1, 0, 1, 0, -1, -1, 0],
        [1, 0, 0, -1, 0, -1, 0, -1],
        [0, 1, -1, 0, 0, 1, -1, 0],
        [1, 0, 1, 0, 0, 1, 0, -1],
    ]


def test_wrong_rules_are_mended(monkeypatch: pytest.MonkeyPatch) -> None:
    case = BY_NAME["mlp"]
    right = ntk_features(case.build(), case.inputs(5), 16)
    features = LinearUse.features
    monkeypatch.setattr(LinearUse, "features", lambda self, source: 1.1 * features(self, source))
    assert relative_error(ntk_features(case.build(), case.inputs(5), 16), right) < 1e-10
    wrong = ntk_features(case.build(), case.inputs(5), 16, check=False)
    assert relative_error(wrong, right) > 1e-3
