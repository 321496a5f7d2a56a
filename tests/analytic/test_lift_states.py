"""However covariances are held and divided into blocks, the numbers are the same."""

from __future__ import annotations

import pytest
import torch
from analytic_cases import NETS, Net
from small_nets import conv, dense
from torch import Tensor, nn

from torch_ntk import CNTK, Erf, analytic_kernels

CHEAP = [n for n in NETS if n.tolerance <= 1e-10]


def _same(got: tuple[Tensor, ...], wanted: tuple[Tensor, ...], rtol: float = 1e-11) -> None:
    for a, b in zip(got, wanted, strict=True):
        scale = float(b.detach().abs().max())
        torch.testing.assert_close(a.detach(), b.detach(), rtol=0, atol=rtol * scale)


@pytest.mark.parametrize("net", CHEAP, ids=lambda net: net.name)
def test_little_memory_changes_nothing(net: Net) -> None:
    model, x1, x2 = net.build(4), net.inputs(5), net.inputs(3, 1)
    for other in (None, x2):
        whole = analytic_kernels(model, x1, other)
        blocks = analytic_kernels(model, x1, other, max_memory=1)
        _same(blocks, whole)
        if other is None:
            assert all(torch.equal(k, k.T) for k in blocks)


@pytest.mark.parametrize("net", CHEAP, ids=lambda net: net.name)
def test_one_set_is_exactly_symmetric_and_like_two_equal_sets(net: Net) -> None:
    model, x = net.build(4), net.inputs(4)
    one, two = analytic_kernels(model, x), analytic_kernels(model, x, x.clone())
    off = ~torch.eye(4, dtype=torch.bool)
    for a, b in zip(one, two, strict=True):
        assert torch.equal(a, a.T)
        torch.testing.assert_close(a, b, rtol=1e-7, atol=0)
        torch.testing.assert_close(a[off], b[off], rtol=1e-10, atol=1e-13)
    assert torch.equal(analytic_kernels(model, x, x).ntk, one.ntk)  # the same tensor: one set


@pytest.mark.parametrize("net", CHEAP, ids=lambda net: net.name)
def test_a_part_of_the_samples_gives_a_part_of_the_matrix(net: Net) -> None:
    model, x1, x2 = net.build(4), net.inputs(3), net.inputs(2, 1)
    whole = analytic_kernels(model, x1, x2)
    part = analytic_kernels(model, x1[1:2], x2)
    turned = analytic_kernels(model, x2, x1)
    _same(part, tuple(k[1:2] for k in whole))
    _same(turned, tuple(k.T for k in whole))


@pytest.mark.parametrize("pooling", ["flatten", "gap"])
def test_single_precision(pooling: str) -> None:
    x = torch.randn(3, 3, 6, 7)
    kernel = CNTK(4, pooling=pooling, dtype=torch.float32)(x)
    assert kernel.dtype == torch.float32
    exact = CNTK(4, pooling=pooling)(x)
    assert exact.dtype == torch.float64
    torch.testing.assert_close(kernel.double(), exact, rtol=1e-5, atol=0)


def test_single_precision_of_a_module_in_either_type() -> None:
    x = torch.randn(4, 5, dtype=torch.float64)
    for dtype in (torch.float32, torch.float64):
        net = nn.Sequential(dense(5, 8), Erf(), dense(8, 1)).to(dtype)
        for given in (x, x.float()):
            got = analytic_kernels(net, given, dtype=torch.float32)
            assert got.ntk.dtype == got.nngp.dtype == torch.float32
            exact = analytic_kernels(net, given)
            assert exact.ntk.dtype == torch.float64
            _same((got.ntk.double(),), (exact.ntk,), 1e-5)


@pytest.mark.parametrize("pooling", ["flatten", "gap"])
def test_many_samples_in_blocks(pooling: str) -> None:
    """More samples than a block has, so that blocks lie on, above and beside the diagonal."""
    x1, x2 = torch.randn(21, 1, 3, 4), torch.randn(18, 1, 3, 4)
    kernel = CNTK(3, pooling=pooling, sigma_b=0.1)
    small = CNTK(3, pooling=pooling, sigma_b=0.1, max_memory=20_000)
    for other in (None, x2):
        _same((small(x1, other),), (kernel(x1, other),))
    torch.testing.assert_close(kernel(x1, x2)[17:, 16:], kernel(x1[17:], x2[16:]))


def test_many_vectors_in_blocks() -> None:
    net, x = nn.Sequential(dense(3, 4), nn.ReLU(), dense(4, 1)), torch.randn(300, 3)
    whole = analytic_kernels(net, x)
    blocks = analytic_kernels(net, x, max_memory=50_000)
    _same(blocks, whole)
    assert torch.equal(blocks.ntk, blocks.ntk.T)
    _same(analytic_kernels(net, x[:7], x[290:]), tuple(k[:7, 290:] for k in whole))


def test_progress(capsys: pytest.CaptureFixture[str]) -> None:
    x = torch.randn(5, 1, 3, 3)
    CNTK(3, pooling="gap")(x)
    assert capsys.readouterr().err == ""
    CNTK(3, pooling="gap", progress=True)(x)
    assert "15/15" in capsys.readouterr().err
    analytic_kernels(nn.Sequential(conv(1, 2), nn.Flatten(), dense(2, 1)), x, x[:2], progress=True)
    assert "10/10" in capsys.readouterr().err
