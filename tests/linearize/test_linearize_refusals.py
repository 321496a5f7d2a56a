"""What `linearize` and `taylor_expand` refuse, and that a refusal leaves no trace."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch
from cases import by_name
from linearize_cases import ROWS
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu
from torch.utils.checkpoint import checkpoint

from torch_ntk import linearize, taylor_expand


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointing_around_it(use_reentrant: bool) -> None:
    lin = linearize(by_name("mlp").build())
    x = by_name("mlp").inputs(3).requires_grad_()
    if use_reentrant:  # runs the forward anew instead of setting hooks: nothing is wrong with it
        checkpoint(lin, x, use_reentrant=True).sum().backward()
        by_checkpoint = [p.grad.clone() for p in lin.parameters()]
        lin.zero_grad()
        lin(x).sum().backward()
        for p, g in zip(lin.parameters(), by_checkpoint, strict=True):
            assert torch.equal(p.grad, g)
    else:
        with pytest.raises(ValueError, match="`x` must be passed outside of saved tensor hooks"):
            checkpoint(lin, x, use_reentrant=False)


def test_saved_tensor_hooks_around_it() -> None:
    lin = linearize(by_name("mlp").build())
    with save_on_cpu(), pytest.raises(ValueError, match=r"`x` must be passed .*save_on_cpu"):
        lin(by_name("mlp").inputs(3))


def with_value(value: float, buffer: bool = False) -> nn.Module:
    net = nn.BatchNorm1d(5)
    (net.running_mean if buffer else net.weight.data)[0] = value
    return net


class Uncopyable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight, self.lock = nn.Parameter(torch.ones(3)), threading.Lock()


REFUSED: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "function": (lambda: torch.tanh, TypeError, "an nn.Module"),
    "nothing": (lambda: None, TypeError, "an nn.Module"),
    "lazy": (lambda: nn.LazyLinear(3), TypeError, "initialized"),
    "meta": (lambda: nn.Linear(5, 3, device="meta"), TypeError, "materialized"),
    "nan": (lambda: with_value(float("nan")), ValueError, "finite"),
    "infinity": (lambda: with_value(float("inf")), ValueError, "finite"),
    "nan_buffer": (lambda: with_value(float("nan"), buffer=True), ValueError, "NaN"),
    "no_parameters": (nn.Tanh, ValueError, "parameters"),
    "batch_statistics": (
        lambda: nn.Sequential(nn.Linear(5, 3), nn.BatchNorm1d(3, track_running_stats=False)),
        ValueError,
        "one sample at a time",
    ),
    "lock": (Uncopyable, ValueError, "copy.deepcopy can copy"),
}


@pytest.mark.parametrize(("make", "error", "text"), REFUSED.values(), ids=REFUSED.keys())
def test_modules_that_are_refused(
    make: Callable[[], object], error: type[Exception], text: str
) -> None:
    for order in (1, 2):
        with pytest.raises(error, match=f"`model` must be.*{text}.*; got"):
            taylor_expand(make(), order)  # type: ignore[arg-type]


def test_scripted_and_quantized_modules() -> None:
    with pytest.warns(match="deprecated"):
        scripted = torch.jit.script(nn.Linear(5, 3))
    with pytest.raises(TypeError, match="TorchScript"):
        linearize(scripted)
    with pytest.warns(match="deprecated"):
        quantized = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(5, 3)))
    with pytest.raises(TypeError, match="quantized"):
        linearize(quantized)


class Returns(nn.Module):
    def __init__(self, wrap: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.layer, self.wrap = nn.Linear(5, 4), wrap

    def forward(self, x: Tensor) -> object:
        return self.wrap(self.layer(x))


@pytest.mark.parametrize(
    ("wrap", "came"),
    [
        (lambda out: (out, out), "one tensor .*; got a tuple of length 2"),
        (lambda out: {"a": out, "b": out}, "one tensor .*; got a dict .* entries a: .*, b: "),
        (lambda out: out.argmax(1), "floating-point outputs; got a int64 tensor"),
        (
            lambda out: torch.view_as_complex(out.reshape(-1, 2, 2)),
            "floating-point outputs; got a complex64 tensor",
        ),
        (lambda out: None, "one tensor .*; got None"),
    ],
    ids=["tuple", "dict", "classes", "complex", "none"],
)
def test_outputs_that_are_not_one_real_tensor(wrap: Callable[[Tensor], object], came: str) -> None:
    with pytest.raises(TypeError, match=f"`model` must be a function .*{came}"):
        linearize(Returns(wrap))(torch.randn(3, 5))


@pytest.mark.parametrize("x", [None, [1.0] * 5, 3.0])
def test_inputs_that_are_no_tensors(x: object) -> None:
    with pytest.raises(TypeError, match=r"`x` must be a torch.Tensor"):
        linearize(nn.Linear(5, 3))(x)


def test_a_forward_without_any_gradient_does_not_move() -> None:
    """Backwards the derivative is zero everywhere; forward mode does not know of `no_grad`."""

    class Frozen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                return self.layer(x)

    lin, x = linearize(Frozen()), torch.randn(2, 5)
    before = lin(x)
    with torch.no_grad():
        lin.network.layer.bias += 1
    assert torch.equal(lin(x), before)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # rules of torch.func.jvp
def test_backward_passes_within_a_transformation_of_torch_func() -> None:
    row = ROWS["function_of_the_old_kind"]
    lin, (x, _) = linearize(row.make()), row.batches()
    lin(x)
    with pytest.raises(ValueError, match="backward passes of its own, which torch"):
        torch.func.jvp(lin, (x,), (x,))


def settings() -> tuple[object, ...]:
    return (
        torch.backends.mha.get_fastpath_enabled(),
        torch.backends.mkldnn.enabled,
        torch.backends.cudnn.enabled,
        torch.backends.cuda.flash_sdp_enabled(),
        torch.backends.cuda.mem_efficient_sdp_enabled(),
        torch.is_grad_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch._C._autograd._saved_tensors_hooks_is_enabled(),
        torch.utils.checkpoint.CheckpointFunction,
    )


def test_a_call_that_fails_leaves_no_trace() -> None:
    class Fails(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell, self.calls = nn.LSTM(5, 3), 0
            self.drop = nn.Dropout()

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            raise KeyError("somewhere deep inside")

    lin = linearize(Fails().train())
    before, flags = settings(), [m.training for m in lin.modules()]
    with pytest.raises(KeyError, match="somewhere deep inside"):
        lin(torch.randn(2, 5))
    assert settings() == before
    assert [m.training for m in lin.modules()] == flags
    assert lin.network.calls == 0
    with save_on_cpu():  # hooks work again
        torch.ones(2, requires_grad=True).exp().sum().backward()


def test_a_batch_of_the_wrong_shape_names_the_cause_and_does_no_harm() -> None:
    lin = linearize(by_name("mlp").build())
    x = by_name("mlp").inputs(3)
    expected = linearize(by_name("mlp").build())(x)
    with pytest.raises(ValueError, match="cannot be multiplied"):
        lin(x[:, :4])
    assert torch.equal(lin(x), expected)


@pytest.mark.parametrize("x", [torch.randn(2, 5), torch.randn(2, 4, dtype=torch.float64)])
def test_inputs_that_the_network_does_not_take_are_blamed(x: Tensor) -> None:
    with pytest.raises(ValueError, match="`x` must be a batch of inputs that the network takes"):
        linearize(nn.Linear(4, 2))(x)


@pytest.mark.parametrize("order", [1, 2])
def test_gradients_that_are_not_finite(order: int) -> None:
    x = torch.randn(2, 4)
    model = taylor_expand(nn.Linear(4, 2), order)
    model(x)
    x[0, 1] = float("nan")
    with pytest.raises(ValueError, match=r"`x` must be a batch at which the gradients .* finite"):
        model(x)
