"""Linear systems and diagonals of operators, against dense float64 linear algebra."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from oracles import relative_error
from products_of_matrices import by_products, columns, decaying
from torch import Tensor, nn
from traces import settings, snapshot

from torch_ntk import MLP, NTKOperator
from torch_ntk.empirical.operator import _nystroem, _solve
from torch_ntk.empirical.operator._kernel_map import KernelMap
from torch_ntk.empirical.operator._nystroem import sketch
from torch_ntk.empirical.operator._solve import solve

OUTPUTS = ["full", "trace", "mean", "pseudo", "probed"]


def shifted(matrix: Tensor, diag_reg: float) -> Tensor:
    """`diag_reg` in units of the mean of the diagonal, as `torch_ntk.predict` has it."""
    unit = matrix.diagonal().mean()
    return matrix + diag_reg * unit * torch.eye(len(matrix), dtype=matrix.dtype)


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("diag_reg", [0.0, 1e-6, 1e-3, 1.0])
def test_solutions_and_residuals(diag_reg: float, dense: bool) -> None:
    matrix, y = decaying(120), columns(120, 3)
    y[:, 1] = 0.0
    a = shifted(matrix, diag_reg)
    found = solve(by_products(matrix, dense=dense), y, diag_reg, 1e-10, 2000)
    residuals = (a @ found.x - y).norm(dim=0) / y.norm(dim=0)
    assert found.residual == pytest.approx(float(residuals[[0, 2]].max()), rel=1e-3, abs=1e-12)
    assert found.residual <= 1e-10
    assert not found.x[:, 1].any()
    exact = torch.linalg.solve(a, y)
    assert relative_error(found.x, exact) < 1e-10 * float(torch.linalg.cond(a))


def test_products_are_counted_and_saved() -> None:
    matrix, y = decaying(200, power=1.5), columns(200, 2)
    count = 0
    product = by_products(matrix)

    def multiply(v: Tensor) -> Tensor:
        nonlocal count
        count += v.shape[1]
        return matrix @ v

    found = solve(_with(product, multiply), y, 1e-4, 1e-10, 2000)
    assert found.products == count
    plain = _plain_conjugate_gradients(shifted(matrix, 1e-4), y, 1e-10)
    assert found.products < 0.7 * plain


def _with(product: Any, multiply: Any) -> Any:
    return type(product)(
        product.size,
        product.dtype,
        product.device,
        multiply,
        product.to_dense,
        product.diagonal,
        product.is_dense_cheaper,
    )


def _plain_conjugate_gradients(a: Tensor, y: Tensor, tolerance: float) -> int:
    """How many products the textbook's method takes."""
    count = 0
    for b in y.T:
        x, r = torch.zeros_like(b), b.clone()
        p, rr = r.clone(), float(r @ r)
        while rr**0.5 > tolerance * float(b.norm()):
            image = a @ p
            step = rr / float(p @ image)
            x, r = x + step * p, r - step * image
            rr, before = float(r @ r), rr
            p = r + rr / before * p
            count += 1
    return count


@pytest.mark.parametrize("dense", [False, True])
def test_a_singular_matrix(dense: bool) -> None:
    """The solution of least norm where there is one, and else what was reached."""
    matrix, y = decaying(60, rank=20, power=1.0), columns(60, 2)
    product = by_products(matrix, dense=dense)
    inside = matrix @ y
    found = solve(product, inside, 0.0, 1e-9, 500)
    assert relative_error(found.x, torch.linalg.pinv(matrix, rtol=1e-10) @ inside) < 1e-7
    with pytest.raises(
        RuntimeError, match=r"residual.*reached (0\.\d|1 ).*Raise.*`diag_reg`.*singular"
    ):
        solve(product, y, 0.0, 1e-9, 500)
    zero = by_products(torch.zeros(30, 30, dtype=torch.float64))
    with pytest.raises(RuntimeError, match="reached 1 in"):
        solve(zero, y[:30], 0.0, None, 500)


def test_few_products() -> None:
    with pytest.raises(RuntimeError, match=r"reached .*not the tolerance 1e-10. Raise `max_prod"):
        solve(by_products(decaying(120)), columns(120, 1), 0.0, 1e-10, 3)


@pytest.mark.parametrize("dense", [False, True])
def test_float32(dense: bool) -> None:
    matrix, y = decaying(120), columns(120, 2)
    found = solve(by_products(matrix, torch.float32, dense), y, 1e-2, None, 500)
    assert torch.equal(found.x, found.x.float().double())
    a = shifted(matrix, 1e-2)
    assert float(((a @ found.x - y).norm(dim=0) / y.norm(dim=0)).max()) < 1.1e-3
    with pytest.raises(RuntimeError, match=r"dtype=torch.float64"):
        solve(by_products(matrix, torch.float32, dense), y, 0.0, 1e-7, 500)


def test_a_method_that_errs_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The residual is not that of a recurrence."""
    right = _solve._conjugate_gradients
    monkeypatch.setattr(_solve, "_conjugate_gradients", lambda *a: 0.0 * right(*a))
    with pytest.raises(RuntimeError, match="reached 1 in"):
        solve(by_products(decaying(60)), columns(60, 1), 1e-2, None, 500)
    # Half of the way each time: improved until it is right.
    monkeypatch.setattr(_solve, "_conjugate_gradients", lambda *a: 0.6 * right(*a))
    assert solve(by_products(decaying(60)), columns(60, 1), 1e-2, 1e-6, 500).residual <= 1e-6


def test_the_sketch_is_the_nystroem_approximation() -> None:
    matrix = decaying(100)
    found = sketch(by_products(matrix), 0.01, 1e-8, 1, torch.Generator().manual_seed(1))
    rank = len(found.values)
    assert found.products == rank
    gram = found.vectors.T @ found.vectors
    assert relative_error(gram, torch.eye(rank, dtype=torch.float64)) < 1e-10
    low = (found.vectors * found.values) @ found.vectors.T
    below = torch.linalg.eigvalsh(matrix - low)
    assert float(below[0]) > -1e-10  # from below, and exact in its range
    v = columns(100, 2)
    p = low + 0.01 * found.vectors @ found.vectors.T
    p = p + 0.5 * (torch.eye(100, dtype=torch.float64) - found.vectors @ found.vectors.T)
    assert relative_error(found.power(-1.0, 0.01, 0.5, v), torch.linalg.solve(p, v)) < 1e-10
    half = found.power(-0.5, 0.01, 0.5, found.power(-0.5, 0.01, 0.5, v))
    assert relative_error(half, found.power(-1.0, 0.01, 0.5, v)) < 1e-10
    whole = sketch(by_products(decaying(100, rank=5)), 0.0, 1e-8, 1, torch.Generator())
    assert len(whole.values) == 5
    assert relative_error(whole.values, torch.arange(1.0, 6.0).double() ** -2) < 1e-10


def test_sketches_fit_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_nystroem, "budget", lambda device: 4 * 8 * 100 * 12)
    assert sketch(by_products(decaying(100)), 0.0, 1e-8, 1, torch.Generator()).products == 12
    found = solve(by_products(decaying(100)), columns(100, 1), 1e-2, 1e-8, 500)
    assert found.residual <= 1e-8


def operator(output: str, **kwargs: Any) -> NTKOperator:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(20, 5, generator=generator, dtype=torch.float64)
    torch.manual_seed(3)
    return NTKOperator(MLP([5, 30, 3]).double(), x, output=output, probes=2, **kwargs)


@pytest.mark.parametrize("products", [True, False])
@pytest.mark.parametrize("output", OUTPUTS)
def test_operators(output: str, products: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    theta = operator(output)
    dense = theta.to_dense()
    if products:
        monkeypatch.setattr(KernelMap, "is_dense_cheaper", lambda self: False)
        monkeypatch.setattr(KernelMap, "dense", None)
    size = len(dense)
    for shape in [(size,), (size, 2), *([(20, 3)] if output == "full" else [])]:
        y = torch.linspace(-1, 1, torch.Size(shape).numel(), dtype=torch.float64).sin().view(shape)
        found = theta.solve(y, 1e-2, 1e-10)
        flat = y.reshape(size, -1) if shape != (20, 3) else y.reshape(size, 1)
        expected = torch.linalg.solve(shifted(dense, 1e-2), flat).view(shape)
        assert relative_error(found.x, expected) < 1e-6
        assert found.residual <= 1e-10
    assert (found.products > 0) == products


@pytest.mark.parametrize("output", OUTPUTS)
def test_diagonals(output: str) -> None:
    for theta in (operator(output), operator(output, batch_size=3)):
        dense = theta.to_dense()
        assert relative_error(theta.diagonal(), dense.diagonal()) < 1e-12
        exact = theta.trace("exact")
        assert exact.estimate == pytest.approx(float(dense.trace()), rel=1e-12)
        assert exact.standard_error == 0.0


@pytest.mark.parametrize("output", OUTPUTS)
def test_diagonals_of_coupled_batches(output: str) -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 3)).double()
    x = torch.randn(10, 3, dtype=torch.float64)
    theta = NTKOperator(net, x, output=output, coupled=True, training=True, probes=2)
    dense = theta.to_dense()
    assert relative_error(theta.diagonal(), dense.diagonal()) < 1e-12
    y = torch.linspace(-1, 1, len(dense), dtype=torch.float64)
    expected = torch.linalg.solve(shifted(dense, 0.1), y)
    assert relative_error(theta.solve(y, 0.1, 1e-10).x, expected) < 1e-7


def test_the_kernel_of_an_optimizer() -> None:
    net, x = MLP([5, 30, 3]).double(), torch.randn(20, 5, dtype=torch.float64)
    scales = {n: torch.rand_like(p) + 0.1 for n, p in net.named_parameters()}
    theta = NTKOperator(net, x, output="mean", precondition=scales)
    dense = theta.to_dense()
    assert relative_error(dense, NTKOperator(net, x, output="mean").to_dense()) > 0.1
    assert relative_error(theta.diagonal(), dense.diagonal()) < 1e-12
    y = torch.linspace(-1, 1, 20, dtype=torch.float64)
    expected = torch.linalg.solve(shifted(dense, 0.1), y)
    assert relative_error(theta.solve(y, 0.1, 1e-10).x, expected) < 1e-7


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.enable_grad])
def test_surroundings_change_nothing(mode: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(KernelMap, "is_dense_cheaper", lambda self: False)
    theta, y = operator("mean"), torch.linspace(-1, 1, 20, dtype=torch.float64)
    expected = theta.solve(y, 0.1).x
    with mode():
        found = theta.solve((y + 0).requires_grad_(mode is torch.enable_grad), 0.1).x
    assert torch.equal(found, expected)
    assert not found.requires_grad


def test_leaves_no_trace_and_is_the_same_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(KernelMap, "is_dense_cheaper", lambda self: False)
    net, x = MLP([5, 30, 3]).double(), torch.randn(20, 5, dtype=torch.float64)
    y = torch.ones(20, 3, dtype=torch.float64)
    before, surroundings = snapshot(net, x), settings()
    theta = NTKOperator(net, x)
    first = theta.solve(y, 1e-2)
    assert torch.equal(first.x, theta.solve(y, 1e-2).x)
    assert (snapshot(net, x), settings()) == (before, surroundings)
    assert bool((y == 1).all())


def test_what_is_refused() -> None:
    theta = operator("full")
    y = torch.ones(60, dtype=torch.float64)
    for bad, error, says in (
        ({"y": torch.ones(20).double()}, ValueError, r"`y` must be.*\[60\].*\[60, M\].*\[20, 3\]"),
        ({"y": [1.0] * 60}, TypeError, "`y` must be a torch.Tensor"),
        ({"y": torch.ones(60, dtype=torch.long)}, TypeError, "`y` must be a tensor of real"),
        ({"y": y * torch.nan}, ValueError, "`y` must be finite"),
        ({"diag_reg": -1.0}, ValueError, "`diag_reg`.*at least 0.*units of the diagonal's mean"),
        ({"tol": -1.0}, ValueError, "`tol`"),
        ({"max_products": 0}, ValueError, "`max_products`"),
    ):
        with pytest.raises(error, match=says):
            theta.solve(**{"y": y, **bad})  # type: ignore[arg-type]
    rectangular = NTKOperator(MLP([5, 8, 3]), torch.randn(3, 5), torch.randn(4, 5))
    with pytest.raises(ValueError, match=r"`x2` must be None for solve\(\)"):
        rectangular.solve(torch.ones(9))
    with pytest.raises(ValueError, match=r"`x2` must be None for diagonal\(\)"):
        rectangular.diagonal()
