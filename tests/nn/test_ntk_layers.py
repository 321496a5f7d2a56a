"""Every NTK layer against its `torch.nn` base, over a table of configurations."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from ntk_layer_cases import (
    BASES,
    CASES,
    SIGMA_B,
    SIGMA_W,
    Case,
    batch,
    build,
    close,
    standard_twin,
)
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap
from torch.overrides import TorchFunctionMode

from torch_ntk.nn import NTKConv1d, NTKConv2d, NTKConvTranspose2d, NTKLinear


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def layer_case(request: pytest.FixtureRequest) -> Case:
    torch.manual_seed(0)
    return request.param


def test_output_and_gradients_are_those_of_the_formula(layer_case: Case) -> None:
    layer = build(layer_case)
    twin = standard_twin(layer_case, layer)
    x = batch(layer_case).requires_grad_()
    x_twin = x.detach().clone().requires_grad_()
    y, y_twin = layer(x), twin(x_twin)
    close(y, y_twin)
    cotangent = torch.randn_like(y)
    y.backward(cotangent)
    y_twin.backward(cotangent)
    close(x.grad, x_twin.grad)
    close(layer.weight.grad, twin.weight.grad * SIGMA_W / math.sqrt(layer_case[4]))
    if layer.bias is not None:
        close(layer.bias.grad, twin.bias.grad * SIGMA_B)
    assert layer.fan_in == layer_case[4]
    assert layer.weight_scale == pytest.approx(SIGMA_W / math.sqrt(layer_case[4]), rel=1e-15)


def test_unbatched_input(layer_case: Case) -> None:
    layer = build(layer_case)
    x = batch(layer_case)
    close(layer(x[1]), layer(x)[1])


# PyTorch scripts its own decompositions when forward mode is first used.
@pytest.mark.filterwarnings("ignore:`torch.jit.script:FutureWarning")
def test_second_derivatives_and_forward_mode(layer_case: Case) -> None:
    layer = build(layer_case)
    x = batch(layer_case, 1).requires_grad_()
    assert torch.autograd.gradcheck(layer, (x,), check_forward_ad=True, fast_mode=True)
    weights = dict(layer.named_parameters())
    assert torch.autograd.gradgradcheck(
        lambda w: functional_call(layer, {**weights, "weight": w}, (x.detach(),)).square().sum(),
        (layer.weight,),
        fast_mode=True,
    )


def test_vmap_of_jacobians(layer_case: Case) -> None:
    layer = build(layer_case)
    x = batch(layer_case)
    weights = {name: p.detach() for name, p in layer.named_parameters()}

    def one(weights: dict[str, Tensor], sample: Tensor) -> Tensor:
        return functional_call(layer, weights, (sample.unsqueeze(0),)).squeeze(0)

    jacobian = vmap(jacrev(one), (None, 0))(weights, x)
    y = layer(x)
    for name, parameter in layer.named_parameters():
        (row,) = torch.autograd.grad(y[1].flatten()[-1], parameter, retain_graph=True)
        close(jacobian[name][1].flatten(0, -1 - parameter.dim())[-1], row)


def test_vmap_over_parameters(layer_case: Case) -> None:
    layers = [build(layer_case) for _ in range(3)]
    params, buffers = torch.func.stack_module_state(layers)
    x = batch(layer_case)
    outputs = vmap(lambda p: functional_call(layers[0], (p, buffers), (x,)))(params)
    close(outputs, torch.stack([layer(x) for layer in layers]))


def test_same_state_dict_attributes_and_repr_as_the_base(layer_case: Case) -> None:
    kind, args, kwargs, _, _ = layer_case
    layer = build(layer_case)
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
    layers = (NTKLinear(300, 200), NTKConv2d(40, 60, 5), NTKConv1d(100, 200, 3))
    for layer in (*layers, NTKConvTranspose2d(40, 60, 5)):
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
def test_half_precision(layer_case: Case, dtype: torch.dtype) -> None:
    layer = build(layer_case).to(dtype)
    x = batch(layer_case).to(dtype).requires_grad_()
    y = layer(x)
    assert y.dtype is dtype
    eps = torch.finfo(dtype).eps
    expected = copy.deepcopy(layer).double()(x.double())
    torch.testing.assert_close(y.double(), expected, rtol=8 * eps, atol=8 * eps)
    y.sum().backward()
    assert layer.weight.grad.dtype is dtype
    assert bool(layer.weight.grad.isfinite().all())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_gives_the_type_that_it_gives_the_base(
    layer_case: Case, dtype: torch.dtype
) -> None:
    layer = build(layer_case, dtype=torch.float32)
    twin = standard_twin(layer_case, layer)
    x = batch(layer_case, dtype=torch.float32)
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


def test_changed_scales_take_effect() -> None:
    layer = NTKLinear(4, 3, sigma_w=1.0, sigma_b=0.0)
    x = torch.randn(2, 4)
    before = layer(x)
    layer.sigma_w = 2.0
    torch.testing.assert_close(layer(x), 2 * before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_no_inputs_leave_the_bias(dtype: torch.dtype) -> None:
    layer = NTKLinear(1, 3, sigma_b=0.5, dtype=dtype)
    layer.weight, layer.in_features = nn.Parameter(layer.weight[:, :0].detach()), 0
    assert torch.equal(layer(torch.zeros(2, 0, dtype=dtype)), (0.5 * layer.bias).expand(2, 3))
    assert NTKLinear(3, 0)(torch.zeros(2, 3)).shape == (2, 0)


def test_the_parameter_itself_is_multiplied() -> None:
    """So a use of the weight can be told by its identity."""

    class Seen(TorchFunctionMode):
        def __init__(self) -> None:
            super().__init__()
            self.weights: list[Tensor] = []

        def __torch_function__(self, func, types, args=(), kwargs=None):
            if func is F.linear:
                self.weights.append(args[1])
            return func(*args, **(kwargs or {}))

    layer = NTKLinear(4, 3)
    with Seen() as seen:
        layer(torch.zeros(2, 4))
    assert len(seen.weights) == 1
    assert seen.weights[0] is layer.weight


def test_bias_without_scale_does_not_act() -> None:
    layer = NTKLinear(4, 3, sigma_b=0.0)
    assert torch.equal(layer(torch.zeros(2, 4)), torch.zeros(2, 3))
    layer(torch.ones(2, 4)).sum().backward()
    assert torch.equal(layer.bias.grad, torch.zeros(3))


def test_a_transposed_convolution_takes_the_size_of_its_output() -> None:
    layer = NTKConvTranspose2d(2, 3, 3, stride=3, padding=1, sigma_w=1.3, dtype=torch.float64)
    base = nn.ConvTranspose2d(2, 3, 3, stride=3, padding=1, dtype=torch.float64)
    base.load_state_dict(layer.state_dict())
    x = torch.randn(2, 2, 4, 5, dtype=torch.float64)
    for size in ([10, 13], [12, 15], [2, 3, 11, 14]):
        wanted = base(x, size) - base.bias.view(3, 1, 1)
        shift = 0.1 * layer.bias.view(3, 1, 1)
        close(layer(x, size), wanted * 1.3 / 18**0.5 + shift)
    for module in (base, layer):
        with pytest.raises(ValueError, match="requested an output size"):
            module(x, output_size=[13, 13])
