"""Empirical kernels on a GPU: precision, memory, and what else a CPU cannot show."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from oracles import contract_full, jacobian_loop, jacobian_with_graph, relative_error
from torch import Tensor, nn
from traces import settings, snapshot

from torch_ntk import MLP, NTKOperator, empirical_ntk, explain, linearize, ntk_features
from torch_ntk.empirical import _repetition
from torch_ntk.empirical._cuda_graph import CudaGraph
from torch_ntk.empirical.operator._kernel_map import KernelMap
from torch_ntk.predict import gp_inference

METHODS = ["structured", "jacobian", "vector_product"]


def convolutional() -> nn.Module:
    """Wide enough that products in a reduced precision show."""
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(288, 64),
        nn.Tanh(),
        nn.Linear(64, 3),
    )


def recurrent() -> nn.Module:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.out = nn.GRU(48, 32, batch_first=True), nn.Linear(32, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.rnn(x.flatten(2))[0][:, -1])

    torch.manual_seed(3)
    return Net()


def images(n: int, seed: int = 0) -> Tensor:
    return torch.randn(n, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def tokens(n: int, seed: int = 0) -> Tensor:
    return torch.randn(n, 5, 6, 8, generator=torch.Generator().manual_seed(seed))


@functools.cache
def exact(make: Any, data: Any) -> Tensor:
    """The Jacobian on 64 samples in float64."""
    return jacobian_loop(make().double(), data(64).double())


@contextlib.contextmanager
def _backend(setting: Any, value: str) -> Iterator[None]:
    before = setting.fp32_precision
    setting.fp32_precision = value
    try:
        yield
    finally:
        setting.fp32_precision = before


@contextlib.contextmanager
def _high() -> Iterator[None]:
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision("highest")


REDUCED = {
    "as torch has it": contextlib.nullcontext,
    "matmul": lambda: _backend(torch.backends.cuda.matmul, "tf32"),
    "convolutions": lambda: _backend(torch.backends.cudnn.conv, "tf32"),
    "backend": lambda: _backend(torch.backends.cudnn, "tf32"),
    "everything": lambda: _backend(torch.backends, "tf32"),
    "high": _high,
    "autocast": lambda: torch.autocast("cuda", torch.float16),
}


@pytest.mark.parametrize("reduced", REDUCED)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("make", "data"), [(convolutional, images), (recurrent, tokens)])
def test_float32_is_not_reduced(
    make: Any, data: Any, method: str, reduced: str, gpu: torch.device
) -> None:
    """Tensor cores multiply float32 with ten bits, which the caller may allow for training."""
    model, x = make().to(gpu), data(64).to(gpu)
    outside = settings()
    with REDUCED[reduced]():
        before = settings()
        kernel = empirical_ntk(model, x, method=method)
        assert settings() == before
    if reduced != "high":  # which torch itself does not take back
        assert settings() == outside
    assert kernel.device == gpu
    jacobian = exact(make, data)
    assert relative_error(kernel, contract_full(jacobian, jacobian)) < 3e-6


@pytest.mark.parametrize(("make", "data"), [(convolutional, images), (recurrent, tokens)])
def test_reduced_precision_would_show(make: Any, data: Any, gpu: torch.device) -> None:
    """The test above can fail: with TF32 the same networks are off by more."""
    expected = make().double()(data(64).double())
    with _backend(torch.backends.cuda.matmul, "tf32"), _backend(torch.backends.cudnn.conv, "tf32"):
        found = make().to(gpu)(data(64).to(gpu))
    assert relative_error(found.detach(), expected.detach()) > 3e-5


def test_repeated_calls_replay_a_graph(gpu: torch.device) -> None:
    """With other parameters and samples they give what first calls give."""
    model, x = convolutional().to(gpu), images(8).to(gpu)
    for _ in range(4):
        empirical_ntk(model, x)
    known = next(iter(_repetition._of_modules[id(model)][1].values()))
    assert isinstance(known.recording, CudaGraph)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.1)
    others = images(8, 1).to(gpu)
    found = empirical_ntk(model, others)
    assert known.recording is not None  # what it gave was right
    _repetition._of_modules.clear()
    assert relative_error(found, empirical_ntk(model, others)) < 1e-6


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(half: torch.dtype, gpu: torch.device) -> None:
    model, x = convolutional().to(half), images(4).to(half)
    expected = empirical_ntk(model.double(), x.double())
    kernel = empirical_ntk(convolutional().to(half).to(gpu), x.to(gpu))
    assert kernel.dtype == half
    assert relative_error(kernel, expected) < torch.finfo(half).eps


class Noisy(nn.Module):
    """Draws from the generator of the GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(F.dropout(x, 0.5, training=True))


def test_random_numbers_of_the_gpu_are_noticed_and_given_back(gpu: torch.device) -> None:
    model, x = Noisy().to(gpu), torch.randn(3, 4, device=gpu)
    before = snapshot(model, x)
    with pytest.raises(ValueError, match="`model` must be deterministic in eval mode"):
        empirical_ntk(model, x)
    assert snapshot(model, x) == before


def test_inputs_and_model_on_different_devices(gpu: torch.device) -> None:
    with pytest.raises(ValueError, match=r"`x1` must be on the model's device cuda:0"):
        empirical_ntk(MLP([4, 3]).to(gpu), torch.randn(2, 4))
    with pytest.raises(ValueError, match=r"`x1` must be on the model's device cpu"):
        empirical_ntk(MLP([4, 3]), torch.randn(2, 4, device=gpu))
    half = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3).to(gpu))
    with pytest.raises(ValueError, match="`model` must be"):
        empirical_ntk(half, torch.randn(2, 4))


def peak(run: Any) -> int:
    """Bytes that a computation takes at most beyond what stands before it."""
    run()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    return torch.cuda.max_memory_allocated() - before


def large() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 64, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(64, 64, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64 * 64, 10),
    )


@pytest.mark.parametrize("method", ["structured", "jacobian"])
def test_memory_stays_within_what_is_allowed(method: str, gpu: torch.device) -> None:
    model, x = large().to(gpu), images(128).to(gpu)
    limit = 200 * 2**20
    free = empirical_ntk(model, x, output="mean", method=method)
    within = empirical_ntk(model, x, output="mean", method=method, max_memory=limit)
    assert relative_error(within, free) < 1e-5
    options: dict[str, Any] = {"output": "mean", "method": method}
    assert peak(lambda: empirical_ntk(model, x, **options, max_memory=limit)) < limit
    assert peak(lambda: empirical_ntk(model, x, **options)) > 1.5 * limit


def test_an_operator_stays_within_what_is_allowed(gpu: torch.device) -> None:
    model, x = large().to(gpu), images(128).to(gpu)
    v, limit = torch.randn(1280, 4, device=gpu), 200 * 2**20
    assert peak(lambda: NTKOperator(model, x, max_memory=limit) @ v) < limit


@pytest.mark.filterwarnings("ignore:Out of memory while computing a kernel")
@pytest.mark.parametrize("method", METHODS)
def test_a_share_of_the_gpu(method: str, gpu: torch.device) -> None:
    """A process that may use a part of the memory gets the same kernel in smaller blocks."""
    model, x = large().to(gpu), images(48).to(gpu)
    expected = empirical_ntk(model, x, output="mean")
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(gpu).total_memory
    held = torch.cuda.memory_reserved(gpu)
    torch.cuda.set_per_process_memory_fraction((held + 400 * 2**20) / total, gpu)
    try:
        kernel = empirical_ntk(model, x, output="mean", method=method)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, gpu)
    assert relative_error(kernel, expected) < 1e-5


def test_an_operator_and_its_spectrum(gpu: torch.device) -> None:
    model, x = convolutional().double().to(gpu), images(12).double().to(gpu)
    theta = NTKOperator(model, x)
    dense = theta.to_dense()
    assert dense.device == gpu
    values = torch.linalg.eigvalsh(dense)
    found = theta.eigsh(3)
    assert relative_error(found.values.sort().values, values[-3:]) < 1e-8
    estimate = theta.trace()
    total = float(values.sum())
    assert abs(estimate.estimate - total) < 1e-6 * total + 6 * estimate.standard_error
    v = np.random.default_rng(0).standard_normal(36)
    assert np.allclose(theta.to_scipy() @ v, dense.cpu().numpy() @ v)
    assert np.allclose(theta @ v, dense.cpu().numpy() @ v)


@pytest.mark.parametrize("formed", [True, False])
def test_systems_and_quadratures(
    formed: bool, gpu: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The recurrences run on the CPU, and the answers are where the vectors were."""
    monkeypatch.setattr(KernelMap, "is_dense_cheaper", lambda self: formed)
    model, x = convolutional().double().to(gpu), images(15).double().to(gpu)
    theta, between = NTKOperator(model, x[:12]), NTKOperator(model, x[12:], x[:12])
    dense, cross = theta.to_dense(), between.to_dense()
    a = dense + 0.1 * dense.diagonal().mean() * torch.eye(36, dtype=torch.float64, device=gpu)
    y = torch.linspace(-1, 1, 36, dtype=torch.float64, device=gpu).view(12, 3)
    solution = theta.solve(y, 0.1)
    assert solution.x.device == gpu
    expected = torch.linalg.solve(a, y.flatten())
    assert relative_error(solution.x.flatten(), expected) < 1e-6
    generator = torch.Generator(gpu).manual_seed(1)
    found = theta.logdet(0.1, generator=generator)
    assert abs(found.estimate - float(torch.logdet(a))) < 5 * found.standard_error + 1e-6
    density = theta.spectral_density(generator=generator)
    assert float(torch.trapezoid(density.density, density.grid)) == pytest.approx(1.0, rel=1e-6)
    assert relative_error(theta.diagonal(), dense.diagonal()) < 1e-10
    j, v = theta.jacobian, y.flatten()
    assert relative_error(j @ (j.T @ v), dense @ v) < 1e-10
    posterior = gp_inference(theta, y, diag_reg=0.1)(between, NTKOperator(model, x[12:]))
    assert posterior.mean.device == gpu
    assert relative_error(posterior.mean.flatten(), cross @ expected) < 1e-6
    assert posterior.covariance is not None
    assert posterior.covariance.device == gpu


def test_parts_of_a_linearized_network(gpu: torch.device) -> None:
    model, x = convolutional().double().to(gpu), images(6).double().to(gpu)
    lin = linearize(model)
    assert relative_error(empirical_ntk(lin, x), empirical_ntk(model, x)) < 1e-10
    parts = empirical_ntk(model, x, by="module")
    j = jacobian_loop(convolutional().double(), images(6).double())
    assert relative_error(sum(parts.values()), contract_full(j, j)) < 1e-10
    assert "0.weight" in str(explain(model, x))


@pytest.mark.parametrize("method", METHODS)
def test_on_a_stream_of_the_caller(method: str, gpu: torch.device) -> None:
    model, x = convolutional().to(gpu), images(32).to(gpu)
    expected = empirical_ntk(model, x, method=method)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        kernel = empirical_ntk(model, x, method=method)
    stream.synchronize()
    assert relative_error(kernel, expected) < 1e-6


def test_gradients_of_a_kernel(gpu: torch.device) -> None:
    """There a backward pass runs in a thread of its own, in which the model is evaluated again."""
    model, own = convolutional().double().to(gpu), convolutional().double().to(gpu)
    x, y = (images(4).double().to(gpu).requires_grad_() for _ in range(2))
    j = jacobian_with_graph(own, y)
    kernel, expected = empirical_ntk(model, x, differentiable=True), contract_full(j, j)
    for k in (kernel, expected):
        k.square().sum().backward()
    for t, u in zip((x, *model.parameters()), (y, *own.parameters()), strict=True):
        if u.grad is not None:
            assert t.grad is not None
            assert float((t.grad - u.grad).abs().max()) < 1e-8 * float(u.grad.abs().max()) + 1e-12


@pytest.mark.parametrize("kind", ["sjlt", "rademacher", "gaussian"])
@pytest.mark.parametrize("output", ["mean", "full"])
@pytest.mark.parametrize(("make", "data"), [(convolutional, images), (recurrent, tokens)])
def test_features_are_those_of_the_cpu(
    make: Any, data: Any, output: Any, kind: Any, gpu: torch.device
) -> None:
    """Features of different machines belong together."""
    options = {"kind": kind, "output": output, "seed": 5}
    here = ntk_features(make().double(), data(5).double(), 64, **options)
    there = ntk_features(make().double().to(gpu), data(5).double().to(gpu), 64, **options)
    assert there.device == gpu
    assert relative_error(there, here) < 1e-6  # normal numbers are kept in float32
