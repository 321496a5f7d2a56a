"""A backward pass that runs a part of the network again, with the parameters that are in place."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from oracle import NO_FORWARD_MODE, WAYS, Make, Net, built, check, inputs, jacobian, mean
from torch import Tensor, nn

from torch_ntk import empirical_ntk, verify


class Again(torch.autograd.Function):
    """A block that keeps its inputs only, and is run again for its gradients."""

    @staticmethod
    def forward(ctx: Any, block: nn.Module, unused: bool, x: Tensor, *params: Tensor) -> Tensor:
        ctx.block, ctx.unused = block, unused
        ctx.save_for_backward(x, *params)
        with torch.no_grad():
            return block(x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        x, *params = ctx.saved_tensors
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            y = ctx.block(x)
            wanted = (x, *params)
            return (None, None, *torch.autograd.grad(y, wanted, g, allow_unused=ctx.unused))


def again(block: nn.Module, x: Tensor, unused: bool = True) -> Tensor:
    return Again.apply(block, unused, x, *block.parameters())


class Adjoint(torch.autograd.Function):
    """Euler steps of dh/dt = block(h); the backward pass integrates the adjoint equation."""

    @staticmethod
    def forward(ctx: Any, block: nn.Module, h: Tensor, *params: Tensor) -> Tensor:
        ctx.block, ctx.params, states = block, params, [h]
        with torch.no_grad():
            for _ in range(3):
                states.append(states[-1] + 0.3 * block(states[-1]))
        ctx.save_for_backward(*states[:-1])
        return states[-1]

    @staticmethod
    def backward(ctx: Any, a: Tensor) -> Any:
        params = list(ctx.block.parameters())  # as adjoint solvers do: those of the module
        totals = [torch.zeros_like(p) for p in params]
        for h in reversed(ctx.saved_tensors):
            with torch.enable_grad():
                h = h.detach().requires_grad_()
                parts = torch.autograd.grad(ctx.block(h), (h, *params), 0.3 * a)
            a = a + parts[0]
            totals = [t + g for t, g in zip(totals, parts[1:], strict=True)]
        return (None, a, *totals)


class Reversible(torch.autograd.Function):
    """y1 = x1 + F(x2), y2 = x2 + G(y1): inputs are rebuilt from outputs, as in a RevNet."""

    @staticmethod
    def forward(ctx: Any, f: nn.Module, g: nn.Module, x: Tensor, *params: Tensor) -> Tensor:
        ctx.f, ctx.g = f, g
        with torch.no_grad():
            x1, x2 = x.chunk(2, dim=1)
            y1 = x1 + f(x2)
            y = torch.cat([y1, x2 + g(y1)], dim=1)
        ctx.save_for_backward(y, *params)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        y, *_ = ctx.saved_tensors
        (y1, y2), (d1, d2) = y.chunk(2, dim=1), grad.chunk(2, dim=1)
        with torch.enable_grad():
            y1 = y1.detach().requires_grad_()
            g_of = ctx.g(y1)
            e1, *of_g = torch.autograd.grad(g_of, (y1, *ctx.g.parameters()), d2)
            d1 = d1 + e1
            x2 = (y2 - g_of).detach().requires_grad_()
            e2, *of_f = torch.autograd.grad(ctx.f(x2), (x2, *ctx.f.parameters()), d1)
        return (None, None, torch.cat([d1, d2 + e2], dim=1), *of_f, *of_g)


def _block(width: int = 4) -> nn.Module:
    return nn.Sequential(nn.Linear(width, width), nn.Tanh())


def _reversible(net: nn.Module, x: Tensor) -> Tensor:
    params = (*net.f.parameters(), *net.g.parameters())
    return net.head(Reversible.apply(net.f, net.g, x, *params))


def _nested(net: nn.Module, x: Tensor) -> Tensor:
    return net.head(again(net.outer, x))


def _nest() -> nn.Module:
    inner = Net(lambda net, x: x + again(net.block, x), block=_block())
    return Net(_nested, outer=nn.Sequential(inner, nn.Linear(4, 4), nn.Tanh()), head=_head())


def _head() -> nn.Module:
    return nn.Linear(4, 3)


MODELS: dict[str, Make] = {
    "again": lambda: Net(
        lambda net, x: net.head(again(net.block, x)), block=_block(), head=_head()
    ),
    "all used": lambda: Net(
        lambda net, x: net.head(again(net.block, x, unused=False)), block=_block(), head=_head()
    ),
    "adjoint": lambda: Net(
        lambda net, x: net.head(Adjoint.apply(net.block, x, *net.block.parameters())),
        block=_block(),
        head=_head(),
    ),
    "reversible": lambda: Net(_reversible, f=_block(2), g=_block(2), head=_head()),
    "nested": _nest,
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", MODELS)
def test_value(name: str, way: str) -> None:
    # Such a function has no forward mode and no second derivative.
    may_refuse = way in ("vector_product", "linearize")
    refusal = f"{NO_FORWARD_MODE}|backward|again|recomput" if may_refuse else ""
    check(way, MODELS[name], inputs(3, 4), refusal=refusal)


@pytest.mark.parametrize("name", ["again", "all used"])
def test_verify(name: str) -> None:
    check("verify", MODELS[name], inputs(3, 4))


@pytest.mark.parametrize("name", MODELS)
def test_outputs_and_a_second_batch(name: str) -> None:
    model, x1, x2 = built(MODELS[name]), inputs(3, 4), inputs(2, 4, seed=1)
    expected = mean(jacobian(built(MODELS[name]), x1), jacobian(built(MODELS[name]), x2))
    for _ in range(2):
        found = empirical_ntk(model, x1, x2, output="mean")
        assert torch.allclose(found, expected, rtol=1e-10, atol=1e-12)


SEEN: list[bool] = []  # not in a closure of the module, which is put back


def test_verify_evaluates_the_module_as_it_is() -> None:
    """Its loop shares nothing with what it judges: plain tensors, own parameters, one sample.

    The sample goes twice, as some of torch's gradients of a single one are wrong.
    """
    SEEN.clear()

    def look(net: nn.Module, x: Tensor) -> Tensor:
        plain = not any(torch._C._functorch.is_functorch_wrapped_tensor(t) for t in (x, net.w))
        if plain and id(net.w) in own and len(x) == 2:
            SEEN.append(torch.equal(x[0], x[1]))
        return torch.tanh(x @ net.w)

    model = built(lambda: Net(look, w=nn.Parameter(torch.randn(4, 2))))
    own = {id(p) for p in model.parameters()}
    assert verify(model, inputs(3, 4), samples=3).is_right
    assert SEEN.count(True) >= 3
