"""The default device of PyTorch is of no consequence: tensors are on the device of the model."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from torch_ntk import (
    NTKOperator,
    empirical_nngp,
    empirical_ntk,
    linearize,
    ntk_features,
    verify,
)
from torch_ntk.monitor import Monitor

CALLS: dict[str, Callable[[nn.Module, Tensor], object]] = {
    "auto": lambda net, x: empirical_ntk(net, x, x[:2]),
    "jacobian": lambda net, x: empirical_ntk(net, x, method="jacobian"),
    "vector_product": lambda net, x: empirical_ntk(net, x, method="vector_product"),
    "probed": lambda net, x: empirical_ntk(net, x, output="probed", probes=2).kernel,
    "coupled": lambda net, x: empirical_ntk(net, x, coupled=True),
    "differentiable": lambda net, x: empirical_ntk(net, x, differentiable=True).sum().backward(),
    "nngp": lambda net, x: empirical_nngp(net, x),
    "product": lambda net, x: NTKOperator(net, x) @ x.new_ones(18),
    "eigenpairs": lambda net, x: NTKOperator(net, x).eigsh(2).values,
    "solution": lambda net, x: NTKOperator(net, x).solve(x[:, :3], diag_reg=0.1).x,
    "determinant": lambda net, x: NTKOperator(net, x).logdet(diag_reg=0.1),
    "density": lambda net, x: NTKOperator(net, x).spectral_density().density,
    "sjlt": lambda net, x: ntk_features(net, x, 16),
    "gaussian": lambda net, x: ntk_features(net, x, 16, kind="gaussian"),
    "linearize": lambda net, x: linearize(net)(x).detach(),
    "verify": lambda net, x: verify(net, x).is_right,
    "monitor": lambda net, x: Monitor((x, x[:, :3])).step(net) is not None,
}


@pytest.mark.parametrize("call", CALLS)
def test_another_default_device(call: str) -> None:
    """On the meta device, where no tensor has values, one that is made by oversight shows."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    x = torch.randn(6, 4, dtype=torch.float64)
    expected = CALLS[call](net, x)
    with torch.device("meta"):
        found = CALLS[call](net, x)
    if isinstance(expected, Tensor):
        assert isinstance(found, Tensor)
        assert torch.equal(found, expected)
    else:
        assert found == expected
