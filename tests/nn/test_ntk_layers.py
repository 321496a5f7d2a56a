"""Every NTK layer against its `torch.nn` base, over a table of configurations."""

from __future__ import annotations

import copy
import io
import math
import pickle
import shutil
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap

from torch_ntk.nn import NTKConv1d, NTKConv2d, NTKConv3d, NTKLinear

SIGMA_W, SIGMA_B = 1.7, 0.3

BASES: dict[type, type] = {
    NTKLinear: nn.Linear,
    NTKConv1d: nn.Conv1d,
    NTKConv2d: nn.Conv2d,
    NTKConv3d: nn.Conv3d,
}

# kind, positional arguments, options, shape of one sample, fan-in
Case = tuple[type, tuple[Any, ...], dict[str, Any], tuple[int, ...], int]

CASES: dict[str, Case] = {
    "linear": (NTKLinear, (5, 3), {}, (5,), 5),
    "linear-no-bias": (NTKLinear, (5, 3), {"bias": False}, (5,), 5),
    "linear-sequence": (NTKLinear, (5, 3), {}, (2, 4, 5), 5),
    "linear-one": (NTKLinear, (1, 1), {}, (1,), 1),
    "conv1d": (NTKConv1d, (4, 6, 3), {}, (4, 9), 12),
    "conv1d-same-even": (NTKConv1d, (4, 6, 4), {"padding": "same", "dilation": 2}, (4, 9), 16),
    "conv1d-circular": (
        NTKConv1d,
        (4, 6, 3, 2, 2),
        {"padding_mode": "circular", "groups": 2},
        (4, 9),
        6,
    ),
    "conv2d": (NTKConv2d, (4, 6, 3), {"padding": 1}, (4, 6, 5), 36),
    "conv2d-no-bias": (NTKConv2d, (4, 6, (3, 2)), {"bias": False}, (4, 6, 5), 24),
    "conv2d-valid": (NTKConv2d, (4, 6, (1, 3)), {"padding": "valid"}, (4, 6, 5), 12),
    "conv2d-same": (NTKConv2d, (4, 6, (3, 2)), {"padding": "same"}, (4, 6, 5), 24),
    "conv2d-depthwise": (NTKConv2d, (4, 8, 3), {"groups": 4, "stride": (2, 1)}, (4, 6, 5), 9),
    "conv2d-dilated": (
        NTKConv2d,
        (4, 6, 2),
        {"dilation": (1, 2), "padding": (0, 1)},
        (4, 6, 5),
        16,
    ),
    "conv2d-reflect": (
        NTKConv2d,
        (4, 6, 3),
        {"padding": (2, 1), "padding_mode": "reflect"},
        (4, 6, 5),
        36,
    ),
    "conv2d-replicate": (
        NTKConv2d,
        (4, 6, 3),
        {"padding": "same", "padding_mode": "replicate"},
        (4, 6, 5),
        36,
    ),
    "conv2d-circular": (
        NTKConv2d,
        (4, 6, 3),
        {"padding": 1, "padding_mode": "circular", "stride": 2, "groups": 2},
        (4, 6, 5),
        18,
    ),
    "conv3d": (NTKConv3d, (2, 4, 2), {"padding": 1, "groups": 2}, (2, 4, 3, 3), 8),
    "conv3d-replicate": (
        NTKConv3d,
        (2, 4, (1, 3, 2)),
        {"padding": (0, 1, 1), "padding_mode": "replicate"},
        (2, 4, 3, 3),
        12,
    ),
}


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def case(request: pytest.FixtureRequest) -> Case:
    torch.manual_seed(0)
    return request.param


def build(case: Case, dtype: torch.dtype = torch.float64, **options: Any) -> nn.Module:
    kind, args, kwargs, _, _ = case
    scales = {"sigma_w": SIGMA_W, "sigma_b": SIGMA_B}
    return kind(*args, **{**kwargs, **scales, "dtype": dtype, **options})


def batch(case: Case, n: int = 3, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(n, *case[3], dtype=dtype)


def standard_twin(case: Case, layer: nn.Module) -> nn.Module:
    """The base layer that holds the scaled weights: the same function, written without scales."""
    kind, args, kwargs, _, fan_in = case
    twin = BASES[kind](*args, **kwargs, dtype=layer.weight.dtype)
    with torch.no_grad():
        twin.weight.copy_(layer.weight * (SIGMA_W / math.sqrt(fan_in)))
        if layer.bias is not None:
            twin.bias.copy_(layer.bias * SIGMA_B)
    return twin


def close(a: Tensor, b: Tensor, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def test_output_and_gradients_are_those_of_the_formula(case: Case) -> None:
    layer = build(case)
    twin = standard_twin(case, layer)
    x = batch(case).requires_grad_()
    x_twin = x.detach().clone().requires_grad_()
    y, y_twin = layer(x), twin(x_twin)
    close(y, y_twin)
    cotangent = torch.randn_like(y)
    y.backward(cotangent)
    y_twin.backward(cotangent)
    close(x.grad, x_twin.grad)
    close(layer.weight.grad, twin.weight.grad * SIGMA_W / math.sqrt(case[4]))
    if layer.bias is not None:
        close(layer.bias.grad, twin.bias.grad * SIGMA_B)
    assert layer.fan_in == case[4]
    assert layer.weight_scale == pytest.approx(SIGMA_W / math.sqrt(case[4]), rel=1e-15)


def test_unbatched_input(case: Case) -> None:
    layer = build(case)
    x = batch(case)
    close(layer(x[1]), layer(x)[1])


def test_second_derivatives_and_forward_mode(case: Case) -> None:
    layer = build(case)
    x = batch(case, 1).requires_grad_()
    assert torch.autograd.gradcheck(layer, (x,), check_forward_ad=True)
    weights = dict(layer.named_parameters())
    assert torch.autograd.gradgradcheck(
        lambda w: functional_call(layer, {**weights, "weight": w}, (x.detach(),)).square().sum(),
        (layer.weight,),
    )


def test_vmap_of_jacobians(case: Case) -> None:
    layer = build(case)
    x = batch(case)
    weights = {name: p.detach() for name, p in layer.named_parameters()}

    def one(weights: dict[str, Tensor], sample: Tensor) -> Tensor:
        return functional_call(layer, weights, (sample.unsqueeze(0),)).squeeze(0)

    jacobian = vmap(jacrev(one), (None, 0))(weights, x)
    y = layer(x)
    for name, parameter in layer.named_parameters():
        (row,) = torch.autograd.grad(y[1].flatten()[-1], parameter, retain_graph=True)
        close(jacobian[name][1].flatten(0, -1 - parameter.dim())[-1], row)


def test_vmap_over_parameters(case: Case) -> None:
    layers = [build(case) for _ in range(3)]
    params, buffers = torch.func.stack_module_state(layers)
    x = batch(case)
    outputs = vmap(lambda p: functional_call(layers[0], (p, buffers), (x,)))(params)
    close(outputs, torch.stack([layer(x) for layer in layers]))


def test_same_state_dict_attributes_and_repr_as_the_base(case: Case) -> None:
    kind, args, kwargs, _, _ = case
    layer = build(case)
    base = BASES[kind](*args, **kwargs, dtype=torch.float64)
    assert isinstance(layer, BASES[kind])
    mine, theirs = layer.state_dict(), base.state_dict()
    assert list(mine) == list(theirs)
    assert [v.shape for v in mine.values()] == [v.shape for v in theirs.values()]
    layer.load_state_dict(theirs, strict=True)
    assert torch.equal(layer.weight, base.weight)
    plain = {name: value for name, value in vars(base).items() if not name.startswith("_")}
    assert all(getattr(layer, name) == value for name, value in plain.items())
    body = repr(base).removeprefix(BASES[kind].__name__).removesuffix(")")
    assert repr(layer) == f"{kind.__name__}{body}, sigma_w={SIGMA_W:g}, sigma_b={SIGMA_B:g})"


def test_weights_and_biases_are_standard_normal() -> None:
    torch.manual_seed(0)
    for layer in (NTKLinear(300, 200), NTKConv2d(40, 60, 5), NTKConv1d(100, 200, 3)):
        assert layer.weight.mean().item() == pytest.approx(0.0, abs=0.02)
        assert layer.weight.std().item() == pytest.approx(1.0, abs=0.02)
        # Five standard errors of the standard deviation of this many numbers.
        bound = 5 / math.sqrt(2 * layer.bias.numel())
        assert layer.bias.std().item() == pytest.approx(1.0, abs=bound)


def test_the_draw_does_not_depend_on_the_memory_format() -> None:
    layer = NTKConv2d(4, 6, 3)
    torch.manual_seed(1)
    layer.reset_parameters()
    expected = layer.weight.clone()
    layer.to(memory_format=torch.channels_last)
    torch.manual_seed(1)
    layer.reset_parameters()
    assert torch.equal(layer.weight, expected)
    assert layer.weight.is_contiguous(memory_format=torch.channels_last)


def test_channels_last_stays() -> None:
    layer = NTKConv2d(4, 6, 3, dtype=torch.float64).to(memory_format=torch.channels_last)
    x = torch.randn(2, 4, 7, 7, dtype=torch.float64)
    y = layer(x.to(memory_format=torch.channels_last))
    assert y.is_contiguous(memory_format=torch.channels_last)
    close(y, layer(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(case: Case, dtype: torch.dtype) -> None:
    layer = build(case).to(dtype)
    x = batch(case).to(dtype).requires_grad_()
    y = layer(x)
    assert y.dtype is dtype
    eps = torch.finfo(dtype).eps
    expected = copy.deepcopy(layer).double()(x.double())
    torch.testing.assert_close(y.double(), expected, rtol=8 * eps, atol=8 * eps)
    y.sum().backward()
    assert layer.weight.grad.dtype is dtype
    assert bool(layer.weight.grad.isfinite().all())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_gives_the_type_that_it_gives_the_base(case: Case, dtype: torch.dtype) -> None:
    layer = build(case, dtype=torch.float32)
    twin = standard_twin(case, layer)
    x = batch(case, dtype=torch.float32)
    with torch.autocast("cpu", dtype=dtype):
        y, y_twin = layer(x), twin(x)
    assert y.dtype is y_twin.dtype
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(y.float(), layer(x), rtol=8 * eps, atol=8 * eps)


@pytest.mark.parametrize("magnitude", [1e-5, 1.0, 3e3])
@pytest.mark.parametrize("autocast", [False, True])
def test_float16_neither_overflows_nor_underflows(magnitude: float, autocast: bool) -> None:
    """The unscaled sum passes 65504 for the large inputs, scaled small inputs lose their digits."""
    torch.manual_seed(0)
    layer = NTKLinear(4096, 16, sigma_b=0.0, dtype=torch.float64)
    x = (torch.randn(8, 4096) * magnitude).half()
    expected = layer(x.double())
    if autocast:
        with torch.autocast("cpu", dtype=torch.float16):
            y = layer.float()(x.float())
    else:
        y = layer.half()(x)
    assert y.dtype is torch.float16
    # Below 6e-5 float16 has fewer digits: its smallest step is 6e-8.
    error = (y.double() - expected).abs().max().item()
    assert error < max(6e-3 * magnitude, 1.2e-7)


def test_meta_device_then_to_empty(case: Case) -> None:
    layer = build(case, device="meta")
    assert layer(batch(case).to("meta")).device.type == "meta"
    layer.to_empty(device="cpu")
    torch.manual_seed(3)
    layer.reset_parameters()
    torch.manual_seed(3)
    assert torch.equal(layer.weight, build(case).weight)
    close(layer(batch(case)), layer(batch(case)) * 0 + layer(batch(case)), 1e9)
    assert torch.nn.utils.skip_init(case[0], *case[1], **case[2]).weight.device.type == "cpu"


def test_copies_and_pickles(case: Case) -> None:
    layer = build(case)
    x = batch(case)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(twin(x), layer(x))
        assert (twin.sigma_w, twin.sigma_b) == (SIGMA_W, SIGMA_B)
        assert twin.weight is not layer.weight
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    fresh = build(case)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(fresh(x), layer(x))


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiles_in_one_graph(case: Case, backend: str) -> None:
    torch.compiler.reset()
    layer = build(case)
    compiled = torch.compile(layer, backend=backend, fullgraph=True)
    x = batch(case)
    close(compiled(x), layer(x))
    layer.sigma_w = 0.5
    close(compiled(x), layer(x))


@pytest.mark.slow
@pytest.mark.skipif(
    not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="inductor needs a C++ compiler"
)
def test_compiles_with_inductor() -> None:
    torch.compiler.reset()
    net = nn.Sequential(
        NTKConv2d(2, 3, 3, padding=1, padding_mode="circular"), nn.Flatten(), NTKLinear(48, 2)
    ).double()
    x = torch.randn(3, 2, 4, 4, dtype=torch.float64)
    close(torch.compile(net, fullgraph=True)(x), net(x))


def test_exports(case: Case) -> None:
    layer = build(case)
    x = batch(case)
    close(torch.export.export(layer, (x,)).module()(x), layer(x))


def test_traces_symbolically(case: Case) -> None:
    layer = build(case)
    x = batch(case)
    close(torch.fx.symbolic_trace(layer)(x), layer(x))


def test_parametrizations_apply() -> None:
    layer = NTKLinear(4, 3, sigma_w=2.0, sigma_b=0.0, dtype=torch.float64)
    torch.nn.utils.parametrizations.weight_norm(layer)
    x = torch.randn(2, 4, dtype=torch.float64)
    close(layer(x), x @ layer.weight.T)


def test_changed_scales_take_effect() -> None:
    layer = NTKLinear(4, 3, sigma_w=1.0, sigma_b=0.0)
    x = torch.randn(2, 4)
    before = layer(x)
    layer.sigma_w = 2.0
    torch.testing.assert_close(layer(x), 2 * before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_no_inputs_leave_the_bias(dtype: torch.dtype) -> None:
    layer = NTKLinear(0, 3, sigma_b=0.5, dtype=dtype)
    assert torch.equal(layer(torch.zeros(2, 0, dtype=dtype)), (0.5 * layer.bias).expand(2, 3))
    assert NTKLinear(3, 0)(torch.zeros(2, 3)).shape == (2, 0)


def test_bias_without_scale_does_not_act() -> None:
    layer = NTKLinear(4, 3, sigma_b=0.0)
    assert torch.equal(layer(torch.zeros(2, 4)), torch.zeros(2, 3))
    layer(torch.ones(2, 4)).sum().backward()
    assert torch.equal(layer.bias.grad, torch.zeros(3))


LAYERS = {
    "linear": lambda **options: NTKLinear(4, 3, **options),
    "conv1d": lambda **options: NTKConv1d(4, 3, 2, **options),
    "conv2d": lambda **options: NTKConv2d(4, 3, 2, **options),
    "conv3d": lambda **options: NTKConv3d(4, 3, 2, **options),
}


@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS.keys())
@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"sigma_w": 0.0}, ValueError, r"`sigma_w` must be a finite number greater than 0; got 0"),
        ({"sigma_w": -1.0}, ValueError, r"`sigma_w` .* got -1\.0"),
        ({"sigma_w": math.nan}, ValueError, r"`sigma_w` .* got nan"),
        ({"sigma_w": math.inf}, ValueError, r"`sigma_w` .* got inf"),
        ({"sigma_w": "gain"}, TypeError, r"`sigma_w` .* got 'gain'"),
        ({"sigma_w": torch.tensor(1.0)}, TypeError, r"`sigma_w` .* tensor"),
        ({"sigma_b": -0.1}, ValueError, r"`sigma_b` must be a finite number, at least 0"),
        ({"sigma_b": math.inf}, ValueError, r"`sigma_b` .* got inf"),
        ({"sigma_b": None}, TypeError, r"`sigma_b` .* got None"),
        ({"bias": 1.4}, TypeError, r"`bias` must be True or False; got 1\.4"),
    ],
)
def test_refuses_bad_arguments(
    make: Any, options: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        make(**options)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ((-1, 3), ValueError, "`in_features` must be an integer, at least 0; got -1"),
        ((3, -1), ValueError, "`out_features`"),
        ((2.5, 3), TypeError, r"`in_features` .* got 2\.5"),
        ((True, 3), TypeError, "`in_features`"),
    ],
)
def test_refuses_bad_sizes(arguments: tuple[Any, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        NTKLinear(*arguments)
    with pytest.raises(error, match=words.replace("features", "channels")):
        NTKConv2d(*arguments, 3)


def test_refuses_what_the_base_refuses() -> None:
    with pytest.raises(ValueError, match="divisible by groups"):
        NTKConv2d(3, 4, 3, groups=2)
    with pytest.raises(ValueError, match="strided"):
        NTKConv1d(3, 4, 3, stride=2, padding="same")
