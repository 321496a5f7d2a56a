"""Every network of the table against covariances computed by hand."""

from __future__ import annotations

import pytest
import torch
from analytic_cases import NETS, Net
from covariance_oracle import kernels
from torch import Tensor

from torch_ntk import analytic_kernels

each_net = pytest.mark.parametrize("net", NETS, ids=lambda net: net.name)


def near(got: Tensor, wanted: Tensor, tolerance: float) -> None:
    """Within a tolerance relative to the largest entry."""
    error = (got - wanted).abs().max() / wanted.abs().max()
    assert error <= tolerance, f"relative error {error:.1e}"


@each_net
def test_two_sets(net: Net) -> None:
    model, x1, x2 = net.build(4), net.inputs(3), net.inputs(2, 1)
    got = analytic_kernels(model, x1, x2)
    nngp, ntk = kernels(model, x1, x2)
    near(got.nngp, nngp, net.tolerance)
    near(got.ntk, ntk, net.tolerance)


@each_net
def test_one_set(net: Net) -> None:
    """Off the diagonal; on it the arccosine of a rounded correlation is good to 1e-8 only."""
    model, x = net.build(4), net.inputs(3)
    got = analytic_kernels(model, x)
    off = ~torch.eye(3, dtype=torch.bool)
    for mine, wanted in zip(got, kernels(model, x), strict=True):
        assert torch.equal(mine, mine.T)
        near(mine[off], wanted[off], net.tolerance)
        near(mine, wanted, max(net.tolerance, 1e-7))
