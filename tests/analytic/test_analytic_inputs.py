"""Inputs at the edge of what is defined, and beyond it; and what a call leaves behind."""

# ruff: noqa: E501, NPY002  # one row a line; the global state of NumPy is meant
from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from covariance_oracle import kernels
from small_nets import Function, conv, conv1d, dense, frozen
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from torch_ntk import CNTK, MLP, analytic_kernels, analytic_nngp, analytic_ntk, mlp_kernels


def mlp(sigma_b: float = 0.1) -> nn.Module:
    return nn.Sequential(dense(4, 6, sigma_b=sigma_b), nn.ReLU(), dense(6, 1, sigma_b=sigma_b))


def cnn(gap: bool, sigma_b: float = 0.1, channels: int = 3) -> nn.Module:
    body = [conv(channels, 4, padding=1, sigma_b=sigma_b), nn.ReLU()]
    body += [conv(4, 4, padding=1, sigma_b=sigma_b), nn.ReLU()]
    end = [nn.AdaptiveAvgPool2d(1)] if gap else []
    return nn.Sequential(*body, *end, nn.Flatten())


@pytest.mark.parametrize("sigma_b", [0.0, 0.3])
@pytest.mark.parametrize("gap", [True, False])
def test_zero_images_and_black_borders(gap: bool, sigma_b: float) -> None:
    x = torch.randn(4, 3, 6, 5, dtype=torch.float64)
    x[0] = 0
    x[1, :, :3] = 0
    x[2, :, :, 3:] = 0
    net = cnn(gap, sigma_b)
    for other in (None, x[:2].clone()):
        got = analytic_kernels(net, x, other)
        for mine, wanted in zip(got, kernels(net, x, other), strict=True):
            assert bool(torch.isfinite(mine).all())
            torch.testing.assert_close(mine, wanted, rtol=1e-7, atol=1e-8)
    if sigma_b == 0:
        assert not analytic_ntk(net, x)[0].any()


@pytest.mark.parametrize(
    ("dtype", "factor"),
    [(torch.float32, 1e-15), (torch.float32, 1e10), (torch.float64, 1e-120), (torch.float64, 1e80)],
)
@pytest.mark.parametrize("gap", [True, False])
def test_the_scale_of_the_inputs_is_no_matter(dtype: torch.dtype, factor: float, gap: bool) -> None:
    """Without biases the kernel is homogeneous, also where products of variances underflow."""
    x = torch.randn(3, 3, 2, 3, dtype=dtype)
    kernel = CNTK(4, pooling="gap" if gap else "flatten", dtype=dtype)
    small = kernel(x * factor) / factor / factor
    torch.testing.assert_close(small, kernel(x), rtol=50 * torch.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize("value", [-5, 0, "5", "-1GB", "2GG"])
def test_a_limit_is_a_size(value: int | str) -> None:
    for call in (lambda **k: analytic_ntk(mlp(), torch.ones(2, 4), **k), lambda **k: CNTK(3, **k)):
        with pytest.raises(ValueError, match=r"`max_memory` must be .*'2GB' or '512MiB'"):
            call(max_memory=value)


class Largest(TorchFunctionMode):
    """The size in bytes of the largest tensor that torch's functions return within it."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = function(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.bytes = max(self.bytes, result.numel() * result.element_size())
        return result


@pytest.mark.parametrize(
    ("limit", "size"), [("400KB", 400_000), ("0.4 MiB", 419_430), (850_000, 850_000)]
)
def test_a_limit_in_words_is_followed(limit: int | str, size: int) -> None:
    x = torch.randn(50, 3, 6, 5)
    net = nn.Sequential(conv(3, 4), nn.ReLU(), nn.AvgPool2d(2, 1), conv(4, 4, 2), nn.ReLU())
    with Largest() as whole:
        wanted = analytic_ntk(net, x)
    with Largest() as blocks:
        got = analytic_ntk(net, x, max_memory=limit)
    assert blocks.bytes < size < whole.bytes
    torch.testing.assert_close(got, wanted, rtol=1e-12, atol=0)
    assert torch.equal(analytic_ntk(net, x, max_memory="2GB"), wanted)
    rows = x.flatten(1)
    assert torch.equal(mlp_kernels(rows, max_memory="2GB").ntk, mlp_kernels(rows).ntk)
    assert torch.equal(CNTK(3, max_memory="2 GiB")(x), CNTK(3)(x))


@pytest.mark.parametrize(("name", "value"), [("max_memory", 5.0), ("progress", "False")])
def test_options_have_a_type(name: str, value: object) -> None:
    for call in (lambda **k: mlp_kernels(torch.ones(2, 4), **k), lambda **k: CNTK(3, **k)):
        with pytest.raises(TypeError, match=name):
            call(**{name: value})


def test_the_name_of_false_is_not_false() -> None:
    with pytest.raises(TypeError, match=r"`trained_ends` must be True or False; got 'False'"):
        CNTK(3, trained_ends="False")  # type: ignore[arg-type]


def test_a_zero_vector() -> None:
    x = torch.tensor([[0.0] * 4, [1.0] * 4], dtype=torch.float64)
    got = analytic_kernels(mlp(0.0), x)
    assert not got.ntk[0].any()
    assert not got.nngp[0].any()
    assert got.ntk[1, 1] > 0
    one = mlp_kernels(x, sigma_b=0.2, depth=4, activation="tanh")
    assert bool(torch.isfinite(one.ntk).all())
    assert one.ntk[0, 0] > 0


def test_one_sample_and_one_pixel() -> None:
    x = torch.randn(1, 3, 1, 1, dtype=torch.float64)
    for gap in (True, False):
        net = cnn(gap)
        torch.testing.assert_close(analytic_ntk(net, x), kernels(net, x)[1], rtol=1e-7, atol=0)
    for pooling in ("flatten", "gap"):
        for padding in ("zeros", "circular"):
            assert CNTK(4, pooling=pooling, padding=padding)(x).shape == (1, 1)
    assert analytic_ntk(mlp(), torch.randn(1, 4)).shape == (1, 1)


@pytest.mark.parametrize("shape", [(1, 1, 7), (1, 8, 1), (2, 3, 9), (1, 2, 2)])
@pytest.mark.parametrize("gap", [True, False])
def test_images_that_are_not_square(shape: tuple[int, ...], gap: bool) -> None:
    x1, x2 = (torch.randn(n, *shape, dtype=torch.float64) for n in (3, 2))
    net = cnn(gap, channels=shape[0])
    got = analytic_kernels(net, x1, x2)
    for mine, wanted in zip(got, kernels(net, x1, x2), strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-10, atol=1e-13)


def test_very_small_and_very_large_inputs() -> None:
    x = torch.randn(3, 4, dtype=torch.float64)
    plain = analytic_ntk(mlp(0.0), x)
    for factor in (1e-50, 1e100):
        scaled = analytic_ntk(mlp(0.0), factor * x)
        torch.testing.assert_close(scaled / factor**2, plain, rtol=1e-10, atol=0)


X = torch.randn(3, 4)
IMAGES = torch.randn(2, 3, 4, 4)

BAD: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "float16": (lambda: analytic_ntk(mlp(), X.half()), TypeError, r"`x1` must be of float32 or float64.*\.float\(\)"),
    "bfloat16": (lambda: analytic_ntk(mlp(), X, X.bfloat16()), TypeError, r"`x2`.*half precision"),
    "integers": (lambda: analytic_ntk(mlp(), X.long()), TypeError, r"`x1` must be real floating-point.*\.double\(\)"),
    "complex": (lambda: analytic_ntk(mlp(), X.to(torch.complex64)), TypeError, "`x1` must be real"),
    "bool": (lambda: analytic_ntk(mlp(), X > 0), TypeError, "`x1` must be real"),
    "NaN": (lambda: analytic_ntk(mlp(), X.clone().index_fill_(0, torch.tensor(1), torch.nan)), ValueError, r"`x1` must be finite; got 4 NaN.*\(1, 0\)"),
    "infinite": (lambda: analytic_ntk(mlp(), X, X / 0), ValueError, "`x2` must be finite"),
    "a list": (lambda: analytic_ntk(mlp(), [[1.0]]), TypeError, r"`x1`.*as_tensor"),
    "no batch axis": (lambda: analytic_ntk(mlp(), X[0]), ValueError, r"`x1` must be a batch.*x\[None\]"),
    "no samples": (lambda: analytic_ntk(mlp(), X[:0]), ValueError, "at least one sample"),
    "no samples in x2": (lambda: analytic_ntk(mlp(), X, X[:0]), ValueError, "`x2` must be of at least one"),
    "unlike shapes": (lambda: analytic_ntk(mlp(), X, X[:, :3]), ValueError, r"`x2` must be of samples of shape \(4,\)"),
    "unlike images": (lambda: CNTK(3)(IMAGES, IMAGES[..., :3]), ValueError, "`x2` must be of samples of shape"),
    "meta device": (lambda: analytic_ntk(mlp(), X.to("meta")), TypeError, "`x1`.*meta"),
    "sparse": (lambda: analytic_ntk(mlp(), X.to_sparse()), TypeError, r"`x1`.*to_dense"),
    "features": (lambda: analytic_ntk(mlp(), X[:, :3]), ValueError, r"NTKLinear\(4, 6\) on 3 features"),
    "vectors for images": (lambda: analytic_ntk(cnn(True), X), ValueError, "NTKConv2d.*axes of positions"),
    "dtype": (lambda: analytic_ntk(mlp(), X, dtype=torch.float16), ValueError, "`dtype` must be torch.float64 or torch.float32"),
    "dtype by name": (lambda: analytic_ntk(mlp(), X, dtype="float32"), TypeError, "`dtype`"),
    "CNTK of vectors": (lambda: CNTK(3)(X), ValueError, r"`x1` must be images.*x\[:, None\]"),
    "CNTK depth": (lambda: CNTK(1), ValueError, "`depth` must be at least 2"),
    "CNTK depth 2.5": (lambda: CNTK(2.5), TypeError, "`depth`"),
    "CNTK pooling": (lambda: CNTK(3, pooling="max"), ValueError, "`pooling` must be one of 'flatten', 'gap'"),
    "CNTK padding": (lambda: CNTK(3, padding="same"), ValueError, "`padding`"),
    "CNTK scaling": (lambda: CNTK(3, scaling="sum"), ValueError, "`scaling`"),
    "CNTK arora": (lambda: CNTK(3, scaling="arora", sigma_b=0.1), ValueError, "`sigma_b` must be 0 with"),
    "CNTK activation": (lambda: CNTK(3, activation="nothing"), ValueError, "`activation` must be one of"),
    "CNTK softmax": (lambda: CNTK(3, activation=nn.Softmax(-1)), ValueError, "`activation`"),
    "CNTK sigma_w": (lambda: CNTK(3, sigma_w=0.0), ValueError, "`sigma_w`"),
    "CNTK sigma_b": (lambda: CNTK(3, sigma_b=-1.0), ValueError, "`sigma_b`"),
    "CNTK kernel": (lambda: CNTK(3, kernel_size=0), ValueError, "`kernel_size`"),
    "CNTK images": (lambda: CNTK(4, padding="valid")(IMAGES), ValueError, r"4×4 positions.*after convolution 2 of 3.*'zeros'"),
    "depth": (lambda: mlp_kernels(X, depth=0), ValueError, "`depth`"),
    "sigma": (lambda: mlp_kernels(X, sigma_w=float("nan")), ValueError, "`sigma_w`"),
    "activation": (lambda: mlp_kernels(X, activation=torch.cumsum), (TypeError, ValueError), "`activation`"),
    "NaN weights": (lambda: analytic_ntk(_nan(), X), ValueError, "`model`.*NaN"),
}  # fmt: skip


def _nan() -> nn.Module:
    net = mlp()
    with torch.no_grad():
        net[0].weight[0, 0] = torch.nan
    return net


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name: str) -> None:
    call, error, says = BAD[name]
    with pytest.raises(error, match=rf"(?s){says}"):
        call()


def _state(net: nn.Module) -> tuple[object, ...]:
    return (
        [m.training for m in net.modules()],
        [p.requires_grad for p in net.parameters()],
        {k: v.clone() for k, v in net.state_dict().items()},
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.get_rng_state(),
        np.random.get_state()[1].tolist(),
        random.getstate(),
        torch.get_num_threads(),
    )


def _unchanged(before: tuple[object, ...], net: nn.Module) -> None:
    for a, b in zip(before, _state(net), strict=True):
        if isinstance(a, dict):
            assert all(torch.equal(a[k], b[k]) for k in a)
        elif isinstance(a, Tensor):
            assert torch.equal(a, b)
        else:
            assert a == b


class Noisy(nn.Module):
    """A forward that moves the generators, counts its calls, and may fail."""

    def __init__(self, fail: bool) -> None:
        super().__init__()
        self.calls, self.fail = 0, fail

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        torch.rand(1), np.random.rand(), random.random()
        if self.fail:
            raise RuntimeError("nothing works")
        return x


@pytest.mark.parametrize("fails", ["no", "in tracing", "by refusal"])
@pytest.mark.parametrize("context", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_nothing_is_left_behind(context: Callable[[], object], fails: str) -> None:
    tanh, drop = Function(torch.tanh), nn.Dropout(0.5)
    net = nn.Sequential(dense(4, 6), tanh, drop, Noisy(fails == "in tracing"), dense(6, 2))
    if fails == "by refusal":
        net.append(nn.BatchNorm1d(2, dtype=torch.float64))
    net.train()
    tanh.eval()
    net[0].bias.requires_grad_(False)
    with context():
        x = torch.randn(3, 4)
        before, copy = _state(net), x.clone()
        if fails == "no":
            analytic_kernels(net, x)
            analytic_kernels(net, x, x[:2])
        else:
            with pytest.raises((TypeError, ValueError)):
                analytic_kernels(net, x)
        _unchanged(before, net)
        assert torch.equal(x, copy)
    assert net[3].calls == 0
    assert all(p.grad is None for p in net.parameters())


@pytest.mark.parametrize("first", [nn.ReLU(inplace=True), Function(lambda x: x.mul_(2).sin_())])
def test_what_works_in_place_on_the_inputs_leaves_them(first: nn.Module) -> None:
    x = torch.randn(3, 4, dtype=torch.float64)
    copy = x.clone()
    got = analytic_ntk(nn.Sequential(first, dense(4, 2)), x)
    assert torch.equal(x, copy)
    plain = torch.relu(x) if isinstance(first, nn.ReLU) else torch.sin(2 * x)
    torch.testing.assert_close(got, analytic_ntk(dense(4, 2), plain))


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_contexts_change_no_number(context: Callable[[], object]) -> None:
    for net, x in ((mlp(), X), (cnn(True), IMAGES), (cnn(False), IMAGES)):
        plain = analytic_kernels(net, x)
        with context():
            inside = analytic_kernels(net, x.clone())
            wanting = analytic_kernels(net, x.clone().requires_grad_())
        for a, b, c in zip(plain, inside, wanting, strict=True):
            assert torch.equal(a, b)
            torch.testing.assert_close(a, c, rtol=1e-12, atol=0)
            assert not b.requires_grad
            assert not c.requires_grad


def test_dropout_is_that_of_eval_mode() -> None:
    parts = (dense(4, 6), nn.ReLU(), dense(6, 1))
    with_dropout = nn.Sequential(parts[0], nn.Dropout(0.9), parts[1], nn.AlphaDropout(), parts[2])
    got = analytic_ntk(with_dropout.train(), X)
    assert torch.equal(got, analytic_ntk(nn.Sequential(*parts), X))
    image = nn.Sequential(conv(3, 4), nn.Dropout2d(), nn.ReLU(), nn.Flatten()).train()
    assert torch.equal(analytic_nngp(image, IMAGES), analytic_nngp(image.eval(), IMAGES))
    assert torch.equal(
        analytic_ntk(nn.Sequential(conv1d(3, 4), nn.Dropout1d()), IMAGES.flatten(2)),
        analytic_ntk(conv1d(3, 4), IMAGES.flatten(2)),
    )


def test_widths_and_weights_do_not_matter() -> None:
    one, two = MLP([4, 3, 3, 1], nn.Tanh()), MLP([4, 50, 7, 2], nn.Tanh())
    torch.testing.assert_close(analytic_ntk(one, X), analytic_ntk(two.double(), X))


def test_frozen_parameters_are_no_part_of_the_tangent_kernel() -> None:
    net = frozen(mlp())
    got = analytic_kernels(net, X)
    assert not got.ntk.any()
    assert got.ntk.shape == (3, 3)
    assert torch.equal(got.nngp, analytic_nngp(mlp(), X))
