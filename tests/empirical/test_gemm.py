"""Both routes to a product of matrices, and when the choice between them is made."""

from __future__ import annotations

import pytest
import torch

from torch_ntk import MLP, empirical_ntk
from torch_ntk.empirical import _gemm


@pytest.fixture
def unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing has been measured before, nor is anything remembered afterwards."""
    monkeypatch.setattr(_gemm, "_measured", set())
    monkeypatch.setattr(_gemm, "_is_faster", _gemm.functools.cache(_gemm._is_faster.__wrapped__))


def by_convolution(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Every product takes the convolution; returns the sizes of those that did."""
    taken: list[int] = []
    real = _gemm._by_convolution

    def count(a, b):
        taken.append(a.shape[0] * b.shape[0] * a.shape[1])
        return real(a, b)

    monkeypatch.setattr(_gemm, "_is_faster", lambda threads: True)
    monkeypatch.setattr(_gemm, "_SMALL", 0)
    monkeypatch.setattr(_gemm, "_WORTH", 1)
    monkeypatch.setattr(_gemm, "_by_convolution", count)
    return taken


@pytest.mark.parametrize(("m", "k", "n"), [(1, 1, 1), (3, 5, 2), (64, 300, 33)])
def test_both_routes_are_the_same_product(m: int, k: int, n: int, monkeypatch) -> None:
    generator = torch.Generator().manual_seed(0)
    wide = torch.randn(m, k + 3, generator=generator)
    a, b = wide[:, 1 : k + 1], torch.randn(n, k, generator=generator)  # rows that do not touch
    start = torch.randn(m, n + 2, generator=generator)
    for force in (False, True):
        taken = by_convolution(monkeypatch) if force else []
        into = start.clone()
        torch.testing.assert_close(_gemm.times_transposed(a, b), a @ b.T)
        _gemm.add_times_transposed_(into[:, 1 : n + 1], a, b)
        torch.testing.assert_close(into[:, 1 : n + 1], start[:, 1 : n + 1] + a @ b.T)
        assert torch.equal(into[:, 0], start[:, 0])
        assert bool(taken) is force


@pytest.mark.parametrize("output", ["full", "mean", "diagonal"])
def test_a_kernel_by_convolutions(output: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = MLP([20, 32, 3]), torch.randn(9, 20)
    expected = empirical_ntk(model, x, output=output, method="structured")
    taken = by_convolution(monkeypatch)
    torch.testing.assert_close(
        empirical_ntk(model, x, output=output, method="structured"), expected, rtol=1e-4, atol=1e-4
    )
    # The stack of matrices of a diagonal kernel is multiplied as one.
    assert bool(taken) is (output != "diagonal")


def test_only_large_products_of_single_precision_on_a_cpu_choose(
    unmeasured: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed: list[object] = []
    monkeypatch.setattr(_gemm, "_seconds", lambda run: float(timed.append(run) or len(timed)))
    monkeypatch.setattr(_gemm, "_SHAPE", (8, 16, 8))
    large = torch.ones(512, 1000)
    huge = torch.ones(512, 2048)
    _gemm._takes_convolution(large, large)
    assert not timed  # one product of that size is not worth it
    assert not _gemm._takes_convolution(huge.double(), huge.double())
    assert not _gemm._takes_convolution(huge.to("meta"), huge.to("meta"))
    assert not timed
    assert _gemm._takes_convolution(huge, huge)  # the first of the two takes 1, the other 2
    assert len(timed) == 2
    assert _gemm._takes_convolution(large, large)  # now it is known
    assert not _gemm._takes_convolution(large[:2], large[:2])
    assert len(timed) == 2
    torch.use_deterministic_algorithms(True)
    try:
        assert not _gemm._takes_convolution(huge, huge)
    finally:
        torch.use_deterministic_algorithms(False)


def test_a_slower_or_inexact_convolution_is_not_taken(
    unmeasured: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_gemm, "_SHAPE", (8, 16, 8))
    monkeypatch.setattr(_gemm, "_seconds", lambda run: 1.0)
    assert not _gemm._is_faster(1)  # no more than equal
    times = iter([1.0, 2.0, 1.0, 2.0])
    monkeypatch.setattr(_gemm, "_seconds", lambda run: next(times))
    assert _gemm._is_faster(2)
    real = _gemm._by_convolution
    monkeypatch.setattr(
        _gemm, "_by_convolution", lambda a, b: real(a.bfloat16().float(), b.bfloat16().float())
    )
    assert not _gemm._is_faster(3)


def test_the_measurement_leaves_random_numbers_alone(unmeasured: None) -> None:
    before = torch.get_rng_state()
    assert isinstance(_gemm._is_faster(torch.get_num_threads()), bool)
    assert torch.equal(before, torch.get_rng_state())
