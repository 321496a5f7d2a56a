"""Values of neural-tangents for ordinary layers and for operations beyond the first set."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from torch_ntk import analytic_kernels

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
        # There the reference takes the arccosine of a rounded 1, which is good to 1e-8.
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


@pytest.mark.parametrize("name", ["standard_mlp", "standard_cnn"])
def test_ordinary_networks(name: str) -> None:
    net, scales = ordinary(name)
    agrees(name, net, standard=scales)
