"""Infinite-width kernels, training dynamics and metrics give on a GPU what they give on a CPU."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from kernel_nets import NETS
from oracles import relative_error
from torch import Tensor, nn
from traces import settings

from torch_ntk import (
    CNTK,
    MLP,
    NTKConv2d,
    NTKLinear,
    analytic_explain,
    analytic_kernels,
    empirical_ntk,
    forecast,
    metrics,
    mlp_kernels,
    monte_carlo_kernel,
    ntk_parameterize,
    predict,
)

SEED = 0


def numbers(*shape: int, seed: int = SEED) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


@functools.cache
def pooled() -> nn.Module:
    return nn.Sequential(
        NTKConv2d(3, 8, 3, padding=1, sigma_w=2**0.5),
        nn.ReLU(),
        nn.AvgPool2d(2),
        NTKConv2d(8, 8, 3, padding=1),
        nn.GELU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        NTKLinear(8, 2),
    )


@functools.cache
def quadrature() -> nn.Module:
    return nn.Sequential(
        NTKLinear(6, 8), nn.Tanh(), NTKLinear(8, 8), nn.LayerNorm(8), NTKLinear(8, 2)
    )


Run = Callable[[Tensor, Tensor], Any]
ANALYTIC: dict[str, tuple[Run, tuple[int, ...]]] = {
    "mlp": (lambda a, b: mlp_kernels(a, b, 3), (6,)),
    "lifted": (lambda a, b: analytic_kernels(quadrature().to(a.device), a, b), (6,)),
    "pooled": (lambda a, b: analytic_kernels(pooled(), a, b), (3, 6, 6)),
    "float32": (
        lambda a, b: analytic_kernels(pooled(), a.float(), b.float()),
        (3, 6, 6),
    ),
    "cntk": (lambda a, b: CNTK(3, pooling="gap")(a, b), (3, 6, 6)),
    "flat": (lambda a, b: CNTK(3)(a, b), (3, 6, 6)),
}


def flat(found: Any) -> list[Tensor]:
    """All the numbers of a result."""
    if found is None:
        return []
    if hasattr(found, "ntk"):
        found = (found.ntk, found.nngp)
    if isinstance(found, (tuple, list)):
        return [t for part in found for t in flat(part)]
    return [torch.as_tensor(found)]


@pytest.mark.parametrize("name", ANALYTIC)
def test_analytic_kernels(name: str, gpu: torch.device) -> None:
    run, sample = ANALYTIC[name]
    a, b = numbers(5, *sample), numbers(4, *sample, seed=1)
    expected, before = flat(run(a, b)), settings()
    found = flat(run(a.to(gpu), b.to(gpu)))
    assert settings() == before
    for kernel, other in zip(found, expected, strict=True):
        assert kernel.device == gpu
        assert relative_error(kernel, other) < (1e-5 if name == "float32" else 1e-10)


@pytest.mark.parametrize(("group", "name"), [(g, name) for g in NETS for name in NETS[g]])
def test_networks_in_triton_kernels(group: str, name: str, gpu: torch.device) -> None:
    net, size, _ = NETS[group][name]
    a, b = numbers(3, 2, *size), numbers(2, 2, *size, seed=1)
    b = torch.cat([b, a[:1]])  # a copy, which kernels have exactly
    expected = flat(analytic_kernels(net, a, b, training=True))
    loops = analytic_explain(net, a, b, training=True)
    net, a, b = copy.deepcopy(net).to(gpu), a.to(gpu), b.to(gpu)
    for dtype in (torch.float64, torch.float32):
        kernels = analytic_explain(net, a, b, dtype=dtype, training=True)
        for one, two in zip(loops.steps, kernels.steps, strict=True):
            in_kernel = "in a Triton kernel" in two.how
            assert in_kernel == (one.loop is not None) or one.positions == (1, 1), two
        found = flat(analytic_kernels(net, a, b, dtype=dtype, training=True))
        for kernel, other in zip(found, expected, strict=True):
            assert relative_error(kernel, other) < (1e-10 if dtype == torch.float64 else 1e-5)


def test_gradients_of_an_analytic_kernel(gpu: torch.device) -> None:
    found = []
    for device in ("cpu", gpu):
        x = numbers(4, 6).to(device).requires_grad_()
        analytic_kernels(quadrature(), x).ntk.square().sum().backward()
        found.append(x.grad)
    assert relative_error(found[1], found[0]) < 1e-9


N, OUT = 12, 3


def theta(device: Any) -> Tensor:
    torch.manual_seed(0)
    return empirical_ntk(MLP([6, 64, OUT]).double(), numbers(N + 4, 6)).to(device)


def targets(device: Any) -> Tensor:
    return numbers(N, OUT, seed=2).to(device)


def start(device: Any) -> tuple[Tensor, Tensor]:
    return 0.1 * numbers(N, OUT, seed=3).to(device), 0.1 * numbers(4, OUT, seed=4).to(device)


def _squared(outputs: Tensor, y: Tensor) -> Tensor:
    return 0.5 * (outputs - y).square().sum()


def flow_mse(d: Any) -> Any:
    k, (f, f_test) = theta(d), start(d)
    times = torch.tensor([0.0, 0.1, 1.0], dtype=torch.float64, device=d)
    return predict.gradient_flow_mse(k[:N, :N], targets(d))(times, f, f_test, k[N:, :N])


def descent_mse(d: Any) -> Any:
    k, (f, f_test) = theta(d), start(d)
    lr = 0.5 * predict.max_learning_rate(k[:N, :N])
    predictor = predict.gradient_descent_mse(k[:N, :N], targets(d), lr, momentum=0.5)
    return predictor(20, f, f_test, k[N:, :N])


def flow(d: Any) -> Any:
    k, (f, f_test) = theta(d), start(d)
    loss = functools.partial(F.cross_entropy, reduction="sum")
    predictor = predict.gradient_flow(loss, k[:N, :N], targets(d).argmax(1), num_outputs=OUT)
    return predictor(0.5, f, f_test, k[N:, :N])


def own_loss(d: Any) -> Any:
    k, (f, _) = theta(d), start(d)
    return predict.gradient_flow(_squared, k[:N, :N], targets(d))(0.5, f)


def ensemble(d: Any) -> Any:
    kernels = mlp_kernels(numbers(N, 6).to(d), depth=2)
    cross = mlp_kernels(numbers(4, 6, seed=5).to(d), numbers(N, 6).to(d), depth=2)
    own = mlp_kernels(numbers(4, 6, seed=5).to(d), depth=2)
    found = predict.ensemble_mse(kernels, targets(d))(1.0, cross, own)
    return found.mean, found.covariance


def process(d: Any) -> Any:
    k = mlp_kernels(numbers(N, 6).to(d), depth=2).nngp
    cross = mlp_kernels(numbers(4, 6, seed=5).to(d), numbers(N, 6).to(d), depth=2).nngp
    own = mlp_kernels(numbers(4, 6, seed=5).to(d), depth=2).nngp
    found = predict.gp_inference(k, targets(d), diag_reg=1e-3)(cross, own)
    return found.mean, found.covariance


def measures(d: Any) -> Any:
    k = theta(d)[:N, :N]
    moved = 1.1 * k + 0.01 * k.square()
    return (
        metrics.kernel_drift(moved, k),
        metrics.cka(moved, k),
        metrics.spectrum(k),
        metrics.lambda_min(k),
        metrics.lambda_max(k),
        metrics.condition_number(k),
        metrics.effective_rank(k),
        metrics.kernel_alignment(k, targets(d)),
    )


def forecasts(d: Any) -> Any:
    torch.manual_seed(0)
    model = MLP([6, 64, OUT]).double().to(d)
    found = forecast(
        model, numbers(N, 6).to(d), targets(d).argmax(1), loss="cross_entropy", lr=0.1, steps=20
    )
    return torch.as_tensor(found.loss)


DYNAMICS = [flow_mse, descent_mse, flow, own_loss, ensemble, process, measures, forecasts]


@pytest.mark.parametrize("run", DYNAMICS, ids=lambda f: f.__name__)
def test_dynamics_and_metrics(run: Callable[[Any], Any], gpu: torch.device) -> None:
    expected, before = flat(run("cpu")), settings()
    found = flat(run(gpu))
    assert settings() == before
    assert len(found) == len(expected) > 0
    for value, other in zip(found, expected, strict=True):
        assert relative_error(value, other) < 1e-6


def test_draws_of_networks_on_a_gpu(gpu: torch.device) -> None:
    x = numbers(3, 6).to(gpu)

    def make() -> nn.Module:
        return MLP([6, 512, 2], device=gpu, dtype=torch.float64)

    torch.cuda.manual_seed(5)
    before = settings()
    found = monte_carlo_kernel(make, x, n_samples=20)
    assert settings() == before
    assert found.mean.device == gpu
    again = monte_carlo_kernel(make, x, n_samples=20)
    assert relative_error(again.mean, found.mean) < 1e-12
    limit = analytic_kernels(make(), x).ntk
    assert bool(((found.mean - limit).abs() < 6 * found.standard_error + 0.02 * limit.abs()).all())


def test_layers_on_a_gpu(gpu: torch.device) -> None:
    layer = NTKLinear(6, 4, device=gpu)
    assert layer.weight.device == gpu
    net = ntk_parameterize(nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2)).to(gpu))
    assert {p.device for p in net.parameters()} == {gpu}
    x = torch.randn(3, 6, device=gpu)
    assert net(x).device == gpu
    with torch.autocast("cuda", torch.float16):
        out = layer(x)
    assert out.dtype == torch.float16
    assert relative_error(out.detach(), layer(x).detach()) < 1e-2
