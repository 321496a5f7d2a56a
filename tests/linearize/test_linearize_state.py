"""A linearized network is copied, saved, loaded, moved and compiled like any other module."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
import torch
from cases import by_name
from torch import Tensor, nn
from torch.func import jvp
from torch.nn.utils import parametrize

from torch_ntk import LinearizedModel, TaylorModel, linearize, taylor_expand


def net_with_buffers() -> nn.Sequential:
    return nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 2)).double()


def test_names_that_differ_only_by_a_dot_are_kept_apart() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Module()
            self.a.b_c = nn.Parameter(torch.tensor([2.0]))
            self.a_b = nn.Module()
            self.a_b.c = nn.Parameter(torch.tensor([3.0]))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.a.b_c - self.a_b.c

    lin = linearize(Net())
    assert lin(torch.ones(1)).item() == -1.0
    assert list(lin.displacement()) == ["a.b_c", "a_b.c"]


def trained(order: int = 1) -> tuple[TaylorModel, Tensor]:
    model = taylor_expand(net_with_buffers(), order)
    x = torch.randn(3, 5, dtype=torch.float64)
    model(x).square().sum().backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    return model, x


@pytest.mark.parametrize("order", [1, 2])
def test_state_dict_goes_into_another_one(order: int) -> None:
    model, x = trained(order)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other = taylor_expand(net_with_buffers(), order)
    assert not torch.equal(other(x), model(x))
    other.load_state_dict(torch.load(file, weights_only=True), strict=True)
    assert torch.equal(other(x), model(x))


def test_state_dict_of_another_network_is_refused() -> None:
    model, _ = trained()
    with pytest.raises(RuntimeError, match=r"Missing key|Unexpected key"):
        model.load_state_dict(linearize(by_name("mlp").build()).state_dict())


def test_copies_and_pickles() -> None:
    model, x = trained()
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert isinstance(other, LinearizedModel)
        assert torch.equal(other(x), model(x))
        with torch.no_grad():
            next(iter(other.parameters())).add_(1.0)
        assert not torch.equal(other(x), model(x))


@pytest.mark.parametrize("name", ["lstm", "counts_and_remembers", "spectral_norm_hook"])
def test_a_forward_leaves_nothing_behind_that_cannot_be_copied(name: str) -> None:
    """What a forward assigns to its module is a wrapper that dies with the transformation."""
    case = by_name(name)
    lin = linearize(case.build())
    x = case.inputs(3)
    lin(x).sum().backward()
    assert torch.equal(copy.deepcopy(lin)(x), lin(x))


@pytest.mark.parametrize("name", ["counts_and_remembers", "spectral_norm_hook", "compiled"])
def test_a_network_that_has_been_run_before(name: str) -> None:
    """Its forward has left tensors behind that have a history."""
    case = by_name(name)
    net = case.build()
    x = case.inputs(3)
    net(x).sum().backward()
    net.eval()
    torch.testing.assert_close(linearize(net)(x), net(x), rtol=1e-13, atol=1e-13)


def test_moves_to_another_dtype() -> None:
    model, x = trained()
    expected = model(x).float()
    model.to(torch.float32)
    assert model(x.float()).dtype == torch.float32
    torch.testing.assert_close(model(x.float()), expected, rtol=1e-5, atol=1e-5)
    assert model.state_dict()["_buffers_0.t2_1_num_batches_tracked"].dtype == torch.int64


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("name", ["ntk_conv", "group_norm", "lstm", "transformer_encoder"])
@pytest.mark.parametrize("order", [1, 2])
def test_without_grad_and_in_inference_mode(
    name: str, order: int, context: Callable[[], AbstractContextManager[None]]
) -> None:
    case = by_name(name)
    model = taylor_expand(case.build(), order)
    torch.manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    fresh = copy.deepcopy(model)  # the first call, with its check, is the one in the context
    with context():
        out = fresh(case.inputs(3))
    assert not out.requires_grad
    expected = model(case.inputs(3))
    assert expected.requires_grad
    torch.testing.assert_close(out, expected.detach(), rtol=1e-13, atol=1e-13)
    fresh(case.inputs(3)).sum().backward()
    assert any(p.grad is not None for p in fresh.parameters())


def test_made_in_inference_mode() -> None:
    net, x = net_with_buffers(), torch.randn(3, 5, dtype=torch.float64)
    with torch.inference_mode():
        lin = linearize(net)
    assert not any(t.is_inference() for t in [*lin.parameters(), *lin.buffers()])
    optimizer = torch.optim.SGD(lin.parameters(), lr=0.1)
    lin(x).sum().backward()
    optimizer.step()
    assert all(d.any() for d in lin.displacement().values())


def test_forward_mode_over_it_without_grad() -> None:
    """A derivative that someone else takes is not cut off."""
    model, x = trained(2)
    direction = torch.ones_like(x)
    _, expected = jvp(model, (x,), (direction,))
    with torch.no_grad():
        _, slope = jvp(model, (x,), (direction,))
    assert expected.abs().min() > 0
    torch.testing.assert_close(slope, expected.detach(), rtol=1e-12, atol=1e-12)


def test_within_cached_parametrizations() -> None:
    """The cache holds weights made of θ; the expansion needs those made of θ_0."""
    case = by_name("spectral_norm_parametrized")
    model = taylor_expand(case.build(), 2)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1)
    expected = model(case.inputs(3))
    with parametrize.cached():
        model.network(case.inputs(3))
        torch.testing.assert_close(model(case.inputs(3)), expected, rtol=0, atol=0)


def test_compiled_parts_of_the_network_are_not_compiled_again() -> None:
    calls = []

    def backend(graph: torch.fx.GraphModule, example: list[Tensor]) -> Callable[..., object]:
        calls.append(len(example))
        return graph.forward

    net = nn.Sequential(torch.compile(net_with_buffers(), backend=backend), nn.Tanh()).eval()
    x = torch.randn(3, 5, dtype=torch.float64)
    out = linearize(net)(x)
    assert calls == []
    torch.testing.assert_close(out, net(x), rtol=1e-13, atol=1e-13)
    assert calls


def test_under_autocast_it_computes_in_full_precision() -> None:
    net = net_with_buffers().float()
    x = torch.randn(3, 5)
    lin = linearize(net)
    expected = lin(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(lin(x), expected)
        rounded = lin(x.bfloat16())
        lin(x).sum().backward()
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded, lin(x.bfloat16().float()), rtol=0, atol=0)


def test_compiled_it_is_run_as_it_is() -> None:
    model, x = trained()
    compiled = torch.compile(nn.Sequential(model, nn.Tanh()), backend="eager")
    torch.testing.assert_close(compiled(x), model(x).tanh(), rtol=0, atol=0)


def test_repr() -> None:
    assert "order=2" in repr(taylor_expand(net_with_buffers(), 2))
