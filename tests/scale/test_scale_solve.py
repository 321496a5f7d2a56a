"""Linear systems, eigenpairs and predictions from stores, against dense linear algebra."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scale_kernels import samples
from sklearn.base import clone
from sklearn.datasets import load_digits
from torch import Tensor

pytest.importorskip("zarr")
pytest.importorskip("distributed")

from distributed import Client, LocalCluster

from torch_ntk import CNTK, NTKClassifier, NTKRegressor
from torch_ntk.predict import gradient_flow_mse
from torch_ntk.scale import KernelStore, compute_kernel

N, TILE = 41, 8


def radial(a: Tensor, b: Tensor) -> Tensor:
    """A kernel with quickly falling eigenvalues."""
    return torch.exp(-0.5 * torch.cdist(a.double(), b.double()).square())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stores")


@pytest.fixture(scope="module")
def store(folder: Path) -> KernelStore:
    return compute_kernel(radial, samples(N, 3), store=folder / "k", tile=TILE, progress=False)


@pytest.fixture(scope="module")
def test_store(folder: Path) -> KernelStore:
    x = samples(11, 3, seed=1)
    given = {"store": folder / "t", "tile": TILE, "progress": False}
    return compute_kernel(radial, x, samples(N, 3), **given)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    """Two workers in this process: what a cluster computes, without its start."""
    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, processes=False, dashboard_address=":0"
        ) as cluster,
        Client(cluster) as found,
    ):
        yield found


def shifted(store: KernelStore, diag_reg: float) -> Tensor:
    dense = radial(samples(N, 3), samples(N, 3))
    return dense + diag_reg * dense.diagonal().mean() * torch.eye(N, dtype=torch.float64)


@pytest.mark.parametrize("method", ["auto", "lapack", "dask", "iterative"])
@pytest.mark.parametrize("clustered", [False, True])
def test_solutions(
    store: KernelStore,
    method: Any,
    clustered: bool,
    client: Client,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    y = samples(N, 3, seed=2).double()
    diag_reg = 1.0 if clustered else 1e-3  # products of a cluster take long
    if method in ("dask", "iterative"):  # as if it did not fit in memory
        monkeypatch.setattr("torch_ntk.scale._product.budget", lambda device: 0)
        monkeypatch.setattr("torch_ntk.scale._factor.fits_in_memory", lambda store: False)
    found = store.solve(y, diag_reg, method=method, client=client if clustered else None)
    matrix = shifted(store, diag_reg)
    residual = ((matrix @ found.x - y).norm(dim=0) / y.norm(dim=0)).max()
    assert residual < 1.01e-8
    assert found.residual == pytest.approx(float(residual), rel=1e-2, abs=1e-13)
    assert (found.x - torch.linalg.solve(matrix, y)).abs().max() < 1e-5 * found.x.abs().max()
    assert (found.products == 0) == (method != "iterative")
    one = store.solve(y[:, 0].numpy(), 1e-3, method=method)
    assert one.x.shape == (N,)


@pytest.mark.parametrize("method", ["lapack", "dask"])
def test_a_kernel_without_a_factor_is_solved_iteratively(tmp_path: Path, method: Any) -> None:
    x = samples(12, 3)
    x[7] = x[2]
    store = compute_kernel(radial, x, store=tmp_path / "k", tile=5, progress=False)
    y = samples(12, seed=3).double()
    y[7] = y[2]
    found = store.solve(y, method=method)
    assert found.products > 0
    assert (radial(x, x) @ found.x - y).norm() < 1e-8 * y.norm()
    y[7] += 1
    with pytest.raises(RuntimeError, match=r"[rR]aise `diag_reg`"):
        store.solve(y, method=method)


@pytest.mark.parametrize("n", [8, 19, 40, N])
def test_the_kernel_of_the_first_samples(store: KernelStore, n: int) -> None:
    first, dense = store.leading(n), radial(samples(N, 3), samples(N, 3))
    assert first.complete
    assert first.shape == (n, n)
    for found in (first.to_dense(), torch.from_numpy(first.array.compute())):
        assert (found - dense[:n, :n]).abs().max() < 1e-12
    y = samples(n, 2, seed=2).double()
    exact = torch.linalg.solve(dense[:n, :n] + 1e-2 * torch.eye(n, dtype=torch.float64), y)
    for method in ("lapack", "dask", "iterative"):
        assert (first.solve(y, 1e-2, method=method).x - exact).abs().max() < 1e-5
    if n < N:
        mean = first.predict(y, store.array[n:, :n], diag_reg=1e-2).mean
        assert (mean - dense[n:, :n] @ exact).abs().max() < 1e-5
    assert pickle.loads(pickle.dumps(first)).shape == (n, n)


@pytest.mark.parametrize("which", ["LA", "SA"])
def test_eigenpairs(store: KernelStore, which: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = torch.linalg.eigvalsh(shifted(store, 0.0))
    expected = expected.flip(0)[:3] if which == "LA" else expected[:3]
    if which == "LA":
        monkeypatch.setattr("torch_ntk.scale._product.budget", lambda device: 0)
        monkeypatch.setattr("torch_ntk.scale._product._SMALL", 0)
    found = store.eigsh(3, which)
    assert (found.values - expected).abs().max() < 1e-10
    assert which == "SA" or found.residuals.max() < 1e-9


def test_the_limit(store: KernelStore, test_store: KernelStore) -> None:
    y = samples(N, 2, seed=2).double()
    cross = torch.from_numpy(oracle_of(radial, samples(11, 3, seed=1), samples(N, 3)))
    expected = cross @ torch.linalg.solve(shifted(store, 1e-3), y)
    for given in (test_store, cross, cross.numpy(), test_store.array):
        found = store.predict(y, given, diag_reg=1e-3)
        assert (found.mean - expected).abs().max() < 1e-6
        assert not found.remainder.any()
        assert found.residual < 1e-8
    one = store.predict(y[:, 1], test_store, float("inf"), diag_reg=1e-3)
    assert (one.mean - expected[:, 1]).abs().max() < 1e-6


def oracle_of(kernel: Callable[[Tensor, Tensor], Tensor], a: Tensor, b: Tensor) -> Any:
    return np.array([[float(kernel(u[None], v[None])) for v in b] for u in a])


@pytest.mark.parametrize("t", [0.0, 0.1, 3.0, 100.0])
def test_a_time_and_its_remainder(store: KernelStore, test_store: KernelStore, t: float) -> None:
    y = samples(N, 2, seed=2).double()
    cross = test_store.to_dense()
    flow = gradient_flow_mse(shifted(store, 0.0), y, diag_reg=1e-2)
    _, expected = flow(t, k_test_train=cross)
    assert expected is not None
    exact = store.predict(y, test_store, t, diag_reg=1e-2)
    assert (exact.mean - expected).abs().max() < 1e-9
    assert exact.remainder.max() < 1e-5
    sizes = []
    for k in (3, 10, 20):
        found = store.predict(y, test_store, t, diag_reg=1e-2, k=k, max_products=0)
        off = (found.mean - expected).abs()
        assert bool((off <= found.remainder + 1e-9).all())
        sizes.append(float(found.remainder.max()))
    assert sizes == sorted(sizes, reverse=True)
    for most in (1, 3, 10, 200):
        found = store.predict(y, test_store, t, diag_reg=1e-2, k=3, max_products=most)
        off = (found.mean - expected).abs()
        assert bool((off <= found.remainder + 1e-9).all())
        assert found.remainder.max() <= sizes[0] * (1 + 1e-9)
    assert found.remainder.max() < 1e-6  # and with it the error
    if t == 3.0:  # the bound says something
        found = store.predict(y, test_store, t, diag_reg=1e-2, k=10, max_products=0)
        assert found.remainder.mean() < 100 * (found.mean - expected).abs().mean()


def test_estimators_take_stores(folder: Path) -> None:
    x, y = load_digits(return_X_y=True)
    x, z = x[:120, None].reshape(-1, 1, 8, 8) / 16, x[120:180].reshape(-1, 1, 8, 8) / 16
    y, w = y[:120], y[120:180]
    kernel, given = CNTK(3), {"tile": 50, "progress": False}
    train = compute_kernel(kernel, x, store=folder / "digits", **given)  # type: ignore[arg-type]
    test = compute_kernel(kernel, z, x, store=folder / "test", **given)  # type: ignore[arg-type]
    for time in (None, 50.0):
        plain = NTKClassifier(kernel, time=time).fit(x, y)
        found = NTKClassifier(train, time=time).fit(x, y)
        off = np.abs(found.decision_function(test) - plain.decision_function(z)).max()
        assert off < 1e-6
        assert np.abs(found.decision_function(z) - plain.decision_function(z)).max() < 1e-6
        assert found.score(test, w) == plain.score(z, w) > 0.8
    assert clone(found).kernel is train
    outputs = NTKRegressor(train).fit(x, y.astype(float)).predict(test)
    assert np.abs(outputs - NTKRegressor(kernel).fit(x, y.astype(float)).predict(z)).max() < 1e-5
    reopened = NTKClassifier(KernelStore(train.path)).fit(x, y)
    assert (reopened.predict(test) == found.predict(test)).mean() > 0.9
    with pytest.raises(ValueError, match="`X` must be a store of the kernel between"):
        reopened.predict(z)
    with pytest.raises(ValueError, match="`X` must be the samples of the store"):
        NTKClassifier(train).fit(x + 1, y)
    with pytest.raises(ValueError, match="other training samples"):
        NTKClassifier(train).fit(x, y).predict(train)
    with pytest.raises(ValueError, match="`features` must be None"):
        NTKClassifier(train, features=5).fit(x, y)
    with pytest.raises(ValueError, match="`kernel` must be a store of one set of samples"):
        NTKClassifier(test).fit(z, w)


def test_what_does_not_fit_is_refused(
    store: KernelStore, test_store: KernelStore, folder: Path
) -> None:
    y = torch.ones(N, dtype=torch.float64)
    other = compute_kernel(
        radial, samples(5, 3), samples(N, 3, seed=9), store=folder / "o", tile=8, progress=False
    )
    cases: list[tuple[type[Exception], str, Callable[[], object]]] = [
        (ValueError, "None for solve", lambda: test_store.solve(y)),
        (ValueError, "at most 41", lambda: store.leading(42)),
        (ValueError, "other training samples", lambda: store.leading(9).predict(y[:9], test_store)),
        (ValueError, "None for eigsh", lambda: test_store.eigsh()),
        (ValueError, r"shape \[41\] or \[41, M\]", lambda: store.solve(y[:-1])),
        (TypeError, "one_hot", lambda: store.solve(y.long())),
        (ValueError, "one of 'auto', 'lapack'", lambda: store.solve(y, method="lu")),  # type: ignore[arg-type]
        (ValueError, "`diag_reg`", lambda: store.solve(y, -1.0)),
        (ValueError, "other training samples", lambda: store.predict(y, other)),
        (ValueError, r"a kernel \[M, 41\]", lambda: store.predict(y, torch.ones(3, 4))),
        (TypeError, "a KernelStore, a tensor", lambda: store.predict(y, "t.zarr")),
        (ValueError, "`t` must be", lambda: store.predict(y, test_store, -1.0)),
    ]
    for error, match, call in cases:
        with pytest.raises(error, match=match):
            call()
