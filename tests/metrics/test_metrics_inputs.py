"""What holds for every metric: what it refuses, and that it leaves no trace."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import torch_ntk.metrics as metrics
from torch_ntk import linalg
from torch_ntk.metrics import _kernels

TARGETS = torch.tensor([1.0, -1.0, 2.0], dtype=torch.float64)
OTHER = torch.tensor([[3.0, 1.0, 0.0], [1.0, 2.0, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)

# Every function of one kernel, as the function of that kernel alone.
OF_A_KERNEL: dict[str, Callable[[Tensor], object]] = {
    "spectrum": metrics.spectrum,
    "spectral_summary": metrics.spectral_summary,
    "lambda_min": metrics.lambda_min,
    "lambda_max": metrics.lambda_max,
    "noise_floor": metrics.noise_floor,
    "condition_number": metrics.condition_number,
    "effective_rank": metrics.effective_rank,
    "numerical_rank": metrics.numerical_rank,
    "kernel_alignment": lambda kernel: metrics.kernel_alignment(kernel, TARGETS),
    "cka": lambda kernel: metrics.cka(kernel, OTHER),
}
OF_ANY: dict[str, Callable[[Tensor], object]] = {
    **OF_A_KERNEL,
    "kernel_distance": lambda kernel: metrics.kernel_distance(kernel, OTHER),
    "kernel_drift": lambda kernel: metrics.kernel_drift(kernel, OTHER),
    "param_drift": lambda kernel: metrics.param_drift([kernel], [OTHER]),
    "linearization_gap": lambda kernel: metrics.linearization_gap(kernel, OTHER, 2.0 * OTHER),
}
of_a_kernel = pytest.mark.parametrize("name", OF_A_KERNEL)
of_any = pytest.mark.parametrize("name", OF_ANY)


def test_the_tables_cover_every_public_function() -> None:
    assert set(OF_ANY) | {"SpectralSummary"} == set(metrics.__all__)


@of_any
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_not_finite(name: str, bad: float) -> None:
    kernel = OTHER.clone()
    kernel[1, 0] = kernel[0, 1] = bad
    nans = 2 if math.isnan(bad) else 0
    text = rf"must be finite; got {nans} NaN and {2 - nans} infinite of 9 .*index \(0, 1\)"
    with pytest.raises(ValueError, match=text):
        OF_ANY[name](kernel)


@of_a_kernel
@pytest.mark.parametrize(
    "shape", [(), (3,), (3, 4), (3, 4, 2), (3, 3, 2, 1), (3, 2, 3, 2), (3, 3, 1, 1, 1)]
)
def test_no_kernel_by_its_shape(name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"must be a kernel of shape \[N, N\], \[N, N, O\] or"):
        OF_A_KERNEL[name](torch.ones(shape))


@of_a_kernel
@pytest.mark.parametrize("shape", [(0, 0), (0, 0, 2), (3, 3, 0), (3, 3, 0, 0)])
def test_empty(name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="must be non-empty"):
        OF_A_KERNEL[name](torch.ones(shape))


@of_any
@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex128])
def test_wrong_dtype(name: str, dtype: torch.dtype) -> None:
    with pytest.raises(TypeError, match="must be a tensor of real floating-point numbers"):
        OF_ANY[name](torch.eye(3).to(dtype))


@of_any
def test_not_a_dense_tensor(name: str) -> None:
    with pytest.raises(TypeError, match=r"must be a torch\.Tensor"):
        OF_ANY[name](OTHER.numpy())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="must be a dense tensor"):
        OF_ANY[name](OTHER.to_sparse())
    with pytest.raises(TypeError, match="must be a tensor with data"):
        OF_ANY[name](OTHER.to("meta"))


def values(result: object) -> list[Tensor]:
    if isinstance(result, metrics.SpectralSummary):
        return [result.eigenvalues, torch.tensor(result.effective_rank, dtype=torch.float64)]
    assert isinstance(result, Tensor)
    return [result]


@of_any
def test_no_trace_is_left(name: str) -> None:
    kernel = torch.tensor([[2.0, 0.5, 0.0], [0.5, 1.0, 0.0], [0.0, 0.0, 4.0]], dtype=torch.float64)
    expected = values(OF_ANY[name](kernel))
    leaf = kernel.clone().requires_grad_()
    version, targets, other = leaf._version, TARGETS.clone(), OTHER.clone()
    state = torch.get_rng_state()
    for result, value in zip(values(OF_ANY[name](leaf)), expected, strict=True):
        assert torch.equal(result, value)
        assert not result.requires_grad
    for result, value in zip(values(OF_ANY[name](leaf * 1.0)), expected, strict=True):
        assert torch.equal(result, value)
        assert not result.requires_grad
    assert leaf.grad is None
    assert leaf._version == version
    assert torch.equal(leaf, kernel)
    assert torch.equal(TARGETS, targets)
    assert torch.equal(OTHER, other)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.is_grad_enabled()


@of_any
def test_results_do_not_depend_on_the_caller_s_modes(name: str) -> None:
    kernel = torch.tensor([[2.0, 0.5, 0.0], [0.5, 1.0, 0.0], [0.0, 0.0, 4.0]], dtype=torch.float64)
    expected = values(OF_ANY[name](kernel))
    with torch.inference_mode():
        made_inside = kernel.clone()
        inside = values(OF_ANY[name](made_inside))
    outside = values(OF_ANY[name](made_inside))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        autocast = values(OF_ANY[name](kernel))
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float16)
    try:
        narrow = values(OF_ANY[name](kernel))
    finally:
        torch.set_default_dtype(default)
    strided = values(OF_ANY[name](kernel.repeat_interleave(2, 1)[:, ::2]))
    for results in (inside, outside, autocast, narrow, strided):
        for result, value in zip(results, expected, strict=True):
            torch.testing.assert_close(result, value, rtol=1e-14, atol=0.0)
            assert not result.requires_grad


@of_any
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_narrow_dtypes_give_the_float64_result(name: str, dtype: torch.dtype) -> None:
    exact = torch.tensor([[2.0, 0.5, 0.0], [0.5, 1.0, 0.0], [0.0, 0.0, 4.0]], dtype=torch.float64)
    results = values(OF_ANY[name](exact.to(dtype)))
    if name == "noise_floor":  # the one that depends on the precision, by definition
        assert results[0].item() == pytest.approx(
            3 * torch.finfo(dtype).eps * 4.0, rel=1e-12, abs=0.0
        )
        return
    for result, value in zip(results, values(OF_ANY[name](exact)), strict=True):
        torch.testing.assert_close(result, value, rtol=1e-14, atol=0.0)


def test_devices_must_agree() -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda", 0)
    _kernels.check_same_device("theta_t", cpu, "theta_0", cpu)
    text = r"`theta_t` must be on the device of `theta_0`, cuda:0; got a tensor on cpu\. .*'cuda:0'"
    with pytest.raises(ValueError, match=text):
        _kernels.check_same_device("theta_t", cpu, "theta_0", cuda)


def test_float64_work_leaves_a_device_that_has_none() -> None:
    assert linalg.float64_device(torch.device("mps")) == torch.device("cpu")
    for device in ("cpu", "cuda:1"):
        assert linalg.float64_device(torch.device(device)) == torch.device(device)
