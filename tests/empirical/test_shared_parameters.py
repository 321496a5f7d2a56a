"""Parameters are read where they are, unless the forward would write to them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from traces import snapshot

from torch_ntk import NTKOperator, empirical_ntk
from torch_ntk._functional import model_function
from torch_ntk.empirical import _choose, _structured
from torch_ntk.empirical._trial import try_out
from torch_ntk.empirical._watch import unwritten


class Writes(nn.Module):
    """Writes to its weight in one of several ways before it uses it; twice is as good as once."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.weight = nn.Parameter(torch.linspace(-2.0, 2.0, 12, dtype=torch.float64).view(3, 4))

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            if self.way == "clamp":
                self.weight.clamp_(-1.0, 1.0)
            elif self.way == "data":
                self.weight.data[0, 1:].copy_(torch.ones(3, dtype=x.dtype))
            elif self.way == "out":
                torch.clamp(self.weight, -1.0, 1.0, out=self.weight)
            elif self.way == "list":
                torch._foreach_clamp_max_([self.weight], 1.0)
            elif x.shape[0] > 1:  # "batch"
                self.weight.detach().fill_(0.5)
        return torch.tanh(x @ self.weight.T)


@pytest.mark.parametrize("method", ["structured", "jacobian", "auto"])
@pytest.mark.parametrize("way", ["clamp", "data", "out", "list"])
def test_a_forward_that_writes_to_its_parameters_gets_copies(way: str, method: str) -> None:
    model = Writes(way)
    x = torch.randn(5, 4, dtype=torch.float64)
    before, version = snapshot(model, x), model.weight._version
    kernel = empirical_ntk(model, x, method=method)
    assert snapshot(model, x) == before
    assert model.weight._version == version
    model(x)  # from now on it writes what is there already
    fixed = nn.Linear(4, 3, bias=False).double()
    fixed.weight = nn.Parameter(model.weight.detach())
    expected = empirical_ntk(nn.Sequential(fixed, nn.Tanh()), x, method="jacobian")
    torch.testing.assert_close(kernel, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("way", ["clamp", "data", "out", "list"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_products_in_forward_mode_are_refused(way: str, dtype: torch.dtype) -> None:
    model, x = Writes(way).to(dtype), torch.randn(5, 4, dtype=dtype)
    before = snapshot(model, x)
    with pytest.raises(ValueError, match="writes to its parameters in place"):
        empirical_ntk(model, x, method="vector_product", dtype=torch.float64)
    assert snapshot(model, x) == before


def test_auto_goes_round_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_structured, "bytes_per_sample", lambda *_: 2**62)
    monkeypatch.setattr(_choose, "choose", lambda *_: "vector_product")
    model, x = Writes("clamp"), torch.randn(5, 4, dtype=torch.float64)
    expected = empirical_ntk(Writes("clamp"), x, method="jacobian")
    torch.testing.assert_close(empirical_ntk(model, x), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("way", ["clamp", "data", "out", "list"])
def test_an_operator_multiplies_by_the_kernel(way: str) -> None:
    model, x = Writes(way), torch.randn(5, 4, dtype=torch.float64)
    before = snapshot(model, x)
    operator = NTKOperator(model, x)
    products = operator @ torch.eye(15, dtype=torch.float64)
    assert snapshot(model, x) == before
    expected = empirical_ntk(model, x, method="jacobian").permute(0, 2, 1, 3).reshape(15, 15)
    torch.testing.assert_close(products, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("method", ["structured", "jacobian", "auto"])
def test_writing_for_some_sizes_of_the_batch_only_is_refused(method: str) -> None:
    model, x = Writes("batch"), torch.randn(5, 4, dtype=torch.float64)
    before, version = snapshot(model, x), model.weight._version
    with pytest.raises(ValueError, match="change from call to call"):
        empirical_ntk(model, x, method=method)
    assert snapshot(model, x) == before
    assert model.weight._version == version


class WritesLater(nn.Module):
    """Leaves its scale alone in the first calls, and changes it in those that follow.

    torch.func refuses this by itself where it does not differentiate by that parameter.
    """

    def __init__(self, calls: int, trainable: bool) -> None:
        super().__init__()
        self.calls = calls
        self.linear = nn.Linear(4, 3)
        self.scale = nn.Parameter(torch.ones(3), requires_grad=trainable)

    def forward(self, x: Tensor) -> Tensor:
        self.calls -= 1
        if self.calls < 0:
            with torch.no_grad():
                self.scale.mul_(0.5)
        return self.linear(x) * self.scale


@pytest.mark.parametrize("trainable", [True, False])
@pytest.mark.parametrize("method", ["structured", "jacobian", "vector_product"])
def test_a_write_in_a_later_call_is_refused(method: str, trainable: bool) -> None:
    model, x = WritesLater(2**40, trainable), torch.randn(5, 4)
    empirical_ntk(model, x, method=method)
    model.calls = 2**40
    trial = model_function(model, share=True)
    try_out(trial, "x1", x)
    model.calls = 2**40 - model.calls  # as many as the trial makes
    with pytest.raises(ValueError, match=r"written to 'scale'|mutate a captured"):
        empirical_ntk(model, x, method=method)


def test_an_embedding_that_normalizes_its_weight_gets_a_copy() -> None:
    model = nn.Sequential(nn.Embedding(5, 3, max_norm=0.1), nn.Flatten(), nn.Linear(6, 2)).double()
    weight = model[0].weight.detach().clone()
    empirical_ntk(model, torch.tensor([[0, 1], [2, 3]]))
    assert torch.equal(model[0].weight, weight)


def test_a_function_that_writes_to_its_parameters_gets_copies() -> None:
    def f(p: dict[str, Tensor], x: Tensor) -> Tensor:
        with torch.no_grad():
            p["w"].detach().round_()
        return F.linear(x, p["w"])

    w = torch.tensor([[0.4, 1.6]])
    kernel = empirical_ntk(f, torch.eye(2), params={"w": w}, output="mean")
    assert torch.equal(w, torch.tensor([[0.4, 1.6]]))
    assert torch.equal(kernel, torch.eye(2))


class _Copies(TorchDispatchMode):
    """Counts copies of a tensor of one shape."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape, self.count = shape, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        is_copy = func.overloadpacket in (torch.ops.aten._to_copy, torch.ops.aten.clone)
        self.count += is_copy and tuple(out.shape) == self.shape
        return out


@pytest.mark.parametrize("dtype", [None, torch.float64])
def test_parameters_are_copied_only_to_convert_them(dtype: torch.dtype | None) -> None:
    model, x = nn.Sequential(nn.Linear(7, 9), nn.Tanh(), nn.Linear(9, 2)), torch.randn(3, 7)
    empirical_ntk(model, x, dtype=dtype)
    with _Copies((9, 7)) as copies:
        empirical_ntk(model, x, dtype=dtype)
    assert copies.count == (dtype is not None)


def test_what_is_shared() -> None:
    """Not buffers, not what is converted, and not two parameters in one memory."""
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
    memory = torch.zeros(6)
    model[2].weight = nn.Parameter(memory[:6].view(2, 3))
    model[2].bias = nn.Parameter(memory[:2])
    fn = model_function(model, share=True)
    own = {n: p.data_ptr() for n, p in model.named_parameters()}
    same = {n for n, p in fn.params.items() if p.data_ptr() == own[n]}
    assert same == {"0.weight", "0.bias", "1.weight", "1.bias"}
    assert {n: p.data_ptr() for n, p in fn.shared.items()} == {n: own[n] for n in same}
    assert not any(p.requires_grad for p in fn.params.values())
    assert not model_function(model, dtype=torch.float64, share=True).shared
    assert not model_function(model).shared
    with torch.inference_mode():
        made = nn.Linear(2, 3)
    with torch.inference_mode(False):
        assert not model_function(made, share=True).shared


def test_writes_are_reported_by_name() -> None:
    model = nn.Linear(2, 3)
    shared = model_function(model, share=True).shared
    with (
        pytest.raises(ValueError, match=r"`model`.*written to 'bias'.*in-place"),
        unwritten(shared),
    ):
        model.bias.detach().add_(1.0)
    with unwritten(shared):
        model.bias.detach().sum()


@pytest.mark.parametrize(
    ("error", "reported"), [(RuntimeError, ValueError), (KeyboardInterrupt, KeyboardInterrupt)]
)
def test_a_write_is_the_reason_of_an_error_but_not_of_an_interruption(
    error: type[BaseException], reported: type[BaseException]
) -> None:
    model = nn.Linear(2, 3)

    def write() -> None:
        with unwritten(model_function(model, share=True).shared):
            model.weight.detach().zero_()
            raise error

    with pytest.raises(reported):
        write()
