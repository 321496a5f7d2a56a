"""Values of neural-tangents for ordinary layers and for operations beyond the first set."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_nets import dense
from torch import Tensor, nn

from torch_ntk import (
    RBF,
    ABReLU,
    Exp,
    Gabor,
    Gaussian,
    Hermite,
    Monomial,
    NTKLinear,
    Polynomial,
    RectifiedMonomial,
    Sinusoid,
    analytic_kernels,
    analytic_nngp,
    mlp_kernels,
)

FOLDER = Path(__file__).resolve().parents[1] / "reference" / "lift"
SPECS: dict[str, Any] = json.loads((FOLDER / "cases.json").read_text())


def load(name: str) -> dict[str, Tensor]:
    """The arrays of a file as tensors."""
    with np.load(FOLDER / f"{name}.npz", allow_pickle=False) as file:
        return {key: torch.from_numpy(file[key]) for key in file.files}


def agrees(name: str, net: nn.Module, tolerance: float = 1e-10, **options: Any) -> None:
    """Compare both kernels of `net`, between x1 and x2 and of x1 with itself."""
    wanted = load(name)
    one = analytic_kernels(net, wanted["x1"], **options)
    two = analytic_kernels(net, wanted["x1"], wanted["x2"], **options)
    off = ~torch.eye(len(wanted["x1"]), dtype=torch.bool)
    for kernel in ("nngp", "ntk"):
        close = {"rtol": tolerance, "atol": 0.0}
        torch.testing.assert_close(getattr(two, kernel), wanted[f"{kernel}12"], **close)
        mine, theirs = getattr(one, kernel), wanted[f"{kernel}11"]
        torch.testing.assert_close(mine[off], theirs[off], **close)
        # There the reference takes the arccosine of a rounded 1: it is good to 1e-8, or has NaN.
        if bool(wanted["ntk11"].isfinite().all()):
            torch.testing.assert_close(mine, theirs, rtol=max(1e-7, tolerance), atol=0.0)


def ordinary(name: str) -> tuple[nn.Module, dict[str, tuple[float, float]]]:
    """The network of a case of ordinary layers, and their scales by name."""
    modules: list[nn.Module] = []
    scales: dict[str, tuple[float, float]] = {}
    shape = tuple(SPECS[name]["input_shape"])
    for kind, *options in SPECS[name]["spec"]:
        if kind == "std_linear":
            modules.append(nn.Linear(shape[0], options[0]))
        elif kind == "std_conv":
            modules.append(nn.Conv2d(shape[0], options[0], options[1], padding=options[1] // 2))
        elif kind == "gap":
            modules += [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        else:
            modules.append({"relu": nn.ReLU}[kind]())
        if kind.startswith("std_"):
            scales[str(len(modules) - 1)] = tuple(options[-2:])
        shape = tuple(nn.Sequential(*modules).double()(load(name)["x1"]).shape[1:])
    return nn.Sequential(*modules), scales


def test_dropout_during_training() -> None:
    net = nn.Sequential(
        *(dense(10, 3), nn.ReLU(), nn.Dropout(0.2), dense(3, 3), nn.ReLU(), dense(3, 2, 1.0)),
    )
    agrees("dropout_train", net, training=True)


@pytest.mark.parametrize("name", ["standard_mlp", "standard_cnn"])
def test_ordinary_networks(name: str) -> None:
    net, scales = ordinary(name)
    agrees(name, net, standard=scales)


ACTIVATIONS: dict[str, Any] = {
    "exp": Exp, "gaussian": Gaussian, "monomial": Monomial, "polynomial": Polynomial,
    "rectified_monomial": RectifiedMonomial, "hermite": Hermite, "abrelu": ABReLU,
    "sinusoid": Sinusoid, "gabor": Gabor,
}  # fmt: skip


CLOSED = {name for name in SPECS if name.startswith("act_")} - {"act_hermite3"}


@pytest.mark.parametrize("name", sorted(CLOSED))
def test_activations_in_closed_form(name: str) -> None:
    (_, *first), (kind, *options), (_, *last) = SPECS[name]["spec"]
    net = nn.Sequential(dense(10, 3, *first), ACTIVATIONS[kind](*options), dense(3, 2, *last))
    agrees(name, net)
    # Of a module that is not known, the same by quadrature.
    written = Written(net[1])
    agrees(name, nn.Sequential(net[0], written, net[2]), 1e-6)


class Written(nn.Module):
    """What a module of a user's does: the functions that another module calls."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._function = [module.forward]

    def forward(self, x: Tensor) -> Tensor:
        (function,) = self._function
        return function(x)


def test_random_features_have_the_gaussian_kernel() -> None:
    """exp(-γ |x - y|²/C) of the inputs themselves, after a layer of scale 1 without bias."""
    x, y = torch.randn(3, 6, dtype=torch.float64), torch.randn(4, 6, dtype=torch.float64)
    net = nn.Sequential(NTKLinear(6, 3, bias=False, dtype=torch.float64), RBF(0.7))
    wanted = torch.exp(-0.7 * torch.cdist(x, y).square() / 6)
    torch.testing.assert_close(analytic_nngp(net, x, y), wanted, rtol=1e-13, atol=0)
    by_name = mlp_kernels(x, y, 2, RBF(0.7), 1.0, 0.0).nngp
    torch.testing.assert_close(by_name, wanted, rtol=1e-13, atol=0)


def test_hermite_polynomials_of_inputs_of_variance_one() -> None:
    """The reference takes every variance for 1, so K is k³ there, and here of such inputs only."""
    wanted = load("act_hermite3")
    q1, q2 = (wanted[f"x{i}"].square().mean(1) for i in (1, 2))
    x1, x2 = (wanted[f"x{i}"] / q.sqrt()[:, None] for i, q in ((1, q1), (2, q2)))
    net = nn.Sequential(dense(10, 3, 1.0, 0.0), Hermite(3), dense(3, 2))
    found = analytic_kernels(net, x1, x2)
    units = (q1[:, None] * q2) ** 1.5
    for mine, theirs, shift in (
        (found.nngp, wanted["nngp12"], 0.01),
        (found.ntk, wanted["ntk12"], 0.01),
    ):
        torch.testing.assert_close((mine - shift) * units, theirs - shift, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("name", sorted({*CLOSED, "act_hermite3"}))
def test_gradients_in_inputs(name: str) -> None:
    (_, *first), (kind, *options), (_, *last) = SPECS[name]["spec"]
    net = nn.Sequential(dense(3, 3, *first), ACTIVATIONS[kind](*options), dense(3, 2, *last))
    x, y = (torch.randn(2, 3, dtype=torch.float64) for _ in "xy")
    assert torch.autograd.gradcheck(
        lambda t: torch.cat([*analytic_kernels(net, t), *analytic_kernels(net, t, y)]),
        x.requires_grad_(),
    )


def test_gradients_of_an_ordinary_network() -> None:
    net = nn.Sequential(nn.Linear(3, 5), nn.GELU(), nn.Linear(5, 2)).double()
    x = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: analytic_kernels(net, t, standard="torch").ntk, x)
