"""Modules that reach their layers through closures, lists and other objects."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from oracle import WAYS, Make, built, check, error, inputs, jacobian, mean, said, selected
from torch import Tensor, nn

from torch_ntk import NTKRegressor, linearize, taylor_expand
from torch_ntk.monitor import Monitor

REFERENCE = "reference|closure|list|attribute|cop(y|ie)"


class Closure(nn.Module):
    """Its block is a function that holds the module itself."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.head = nn.Linear(4, 5), nn.Linear(5, 3)
        self.block = lambda x: torch.tanh(self.a(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(x))


class OfLayer(Closure):
    """Its block is a function that holds the layer."""

    def __init__(self) -> None:
        super().__init__()
        layer = self.a
        self.block = lambda x: torch.tanh(layer(x))


class Partial(Closure):
    """Its block is a bound method, with an argument filled in."""

    def __init__(self) -> None:
        super().__init__()
        self.block = functools.partial(self._apply_to, torch.tanh)

    def _apply_to(self, function: object, x: Tensor) -> Tensor:
        return function(self.a(x))  # type: ignore[operator]


class InList(Closure):
    """Its parameters are also in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.held = list(self.a.parameters())

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(nn.functional.linear(x, *self.held)))


class InTable(Closure):
    """Functions of its layers are in a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.block = None
        self.table = {"one": lambda x: torch.tanh(self.a(x))}

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.table["one"](x))


class Outside(Closure):
    """Its layer is also in an object outside, which a copy shares."""

    def __init__(self) -> None:
        super().__init__()
        registry = SimpleNamespace(layer=self.a)

        def block(x: Tensor) -> Tensor:
            return torch.tanh(registry.layer(x))

        self.block = block


MODELS: dict[str, Make] = {
    c.__name__: c for c in (Closure, OfLayer, Partial, InList, InTable, Outside)
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", MODELS)
def test_value_or_refusal(name: str, way: str) -> None:
    may_refuse = name == "InList" or way == "linearize"
    check(way, MODELS[name], inputs(3, 4), refusal=REFERENCE if may_refuse else "")


@pytest.mark.parametrize("name", ["Closure", "Outside"])
def test_verify(name: str) -> None:
    check("verify", MODELS[name], inputs(3, 4))


@pytest.mark.parametrize("name", MODELS)
def test_second_order(name: str) -> None:
    x, model, twin = inputs(3, 4), built(MODELS[name]), built(MODELS[name]).eval()
    params = selected(twin)
    steps = [0.2 * torch.randn_like(p) for p in params]

    def along(f: Tensor) -> Tensor:
        grads = torch.autograd.grad(f, params, create_graph=True, allow_unused=True)
        pairs = zip(grads, steps, strict=True)
        return torch.stack([(g * d).sum() for g, d in pairs if g is not None]).sum()

    rows = []
    for f in twin(x).reshape(-1):
        first = along(f)
        rows.append((f + first + along(first) / 2).detach())
    found: list[Tensor] = []

    def expand() -> None:
        taylor = taylor_expand(model, 2)
        with torch.no_grad():
            for p, d in zip(selected(taylor), steps, strict=True):
                p.add_(d)
        found.append(taylor(x).reshape(-1))

    message = said(expand)
    if not message:
        assert error(found[0], torch.stack(rows)) < 1e-9
    else:
        assert "parameters" in message or "cop" in message, message


class Late(Closure):
    """Uses its layer as an attribute, but past it for samples that are far away."""

    def __init__(self, past: Callable[[Late, Tensor], Tensor]) -> None:
        super().__init__()
        self.held = list(self.a.parameters())
        self.past = past

    def forward(self, x: Tensor) -> Tensor:
        h, is_far = torch.tanh(self.a(x)), x[:, :1] > 5.0
        return self.head(torch.where(is_far, self.past(self, x), h) if is_far.any() else h)


def constant(net: Late, x: Tensor) -> Tensor:
    """Without gradients: it only shows in what functions are called with."""
    with torch.no_grad():
        return nn.functional.linear(x, *net.held)


with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it is deprecated

    @torch.jit.script
    def scripted(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        """It only shows in the graph of the outputs."""
        return torch.tanh(x @ w.t() + b)


LATE: dict[str, Make] = {
    "closure": lambda: Late(lambda net, x: net.block(x)),
    "list": lambda: Late(lambda net, x: nn.functional.linear(x, *net.held)),
    "constant": lambda: Late(constant),
    "scripted": lambda: Late(lambda net, x: scripted(x, *net.held)),
}


def with_one_far(x: Tensor) -> Tensor:
    x[1, 0] = 6.0
    return x


@pytest.mark.parametrize("name", LATE)
def test_another_reference_that_only_a_later_batch_reaches(name: str) -> None:
    near, far = inputs(3, 4), with_one_far(inputs(3, 4))
    for order in (1,) if name == "scripted" else (1, 2):
        taylor = taylor_expand(built(LATE[name]), order)
        taylor(near)
        with torch.no_grad():
            for p in taylor.parameters():
                p.mul_(1.2)
        assert "another reference" in said(lambda: taylor(far))  # noqa: B023


@pytest.mark.parametrize("in_fit", [True, False])
def test_another_reference_that_only_some_samples_of_a_regressor_reach(in_fit: bool) -> None:
    near, far, y = inputs(3, 4), with_one_far(inputs(3, 4)), inputs(3)
    machine = NTKRegressor(built(LATE["closure"]), diag_reg=0.1)

    def fit_and_predict() -> None:
        machine.fit((far if in_fit else near).numpy(), y.numpy())
        machine.predict((near if in_fit else far).numpy())

    assert "another reference" in said(fit_and_predict)


@pytest.mark.parametrize("name", MODELS)
def test_original_and_linearized_network_are_apart(name: str) -> None:
    """Training the one does not move the other."""
    x, model = inputs(3, 4), built(MODELS[name])
    lin: list[nn.Module] = []
    if said(lambda: lin.append(linearize(model)) or lin[0](x)):
        return
    at_start = lin[0](x).detach()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.5)
    assert error(lin[0](x), at_start) < 1e-12
    with torch.no_grad():
        original = model.eval()(x)
        for p in lin[0].parameters():
            p.mul_(0.7)
        assert torch.equal(model(x), original)


@pytest.mark.parametrize("name", MODELS)
def test_regressor(name: str) -> None:
    """Its copy predicts with the parameters that it was fitted with."""
    x, y, new = inputs(5, 4), inputs(5, seed=2), inputs(3, 4, seed=3)
    model = built(MODELS[name])
    j, j_new = jacobian(built(MODELS[name]), x), jacobian(built(MODELS[name]), new)
    k = mean(j)
    ridge = 0.1 * k.diagonal().mean() * torch.eye(5, dtype=k.dtype)
    expected = mean(j_new, j) @ torch.linalg.solve(k + ridge, y)
    found: list[Tensor] = []

    def fit_and_predict() -> None:
        machine = NTKRegressor(model, diag_reg=0.1).fit(x.numpy(), y.numpy())
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(1.5)
        found.append(torch.from_numpy(machine.predict(new.numpy())))

    message = said(fit_and_predict)
    if not message:
        assert error(found[0], expected) < 1e-9
    else:
        assert "cop" in message or "reference" in message, message


@pytest.mark.parametrize("name", MODELS)
def test_gap_of_the_monitor(name: str) -> None:
    x, model = inputs(4, 4), built(MODELS[name])
    start = built(MODELS[name]).eval()
    j, f_0 = jacobian(start, x), start(x).detach()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = Monitor(
        (x, torch.tensor([0, 1, 2, 0])), every_n_steps=1, metrics=("linearization_gap",)
    )

    def train() -> None:
        for _ in range(3):
            monitor.step(model, optimizer)
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
        monitor.finish(model, optimizer)

    if message := said(train):
        assert "reference" in message or "cop" in message, message
        return
    moved = [
        p.detach() - q.detach() for p, q in zip(model.parameters(), start.parameters(), strict=True)
    ]
    f_lin = f_0 + torch.einsum("nip,p->ni", j, torch.cat([m.reshape(-1) for m in moved]))
    f_t = model.eval()(x).detach()
    expected = float((f_t - f_lin).norm() / (f_t - f_0).norm())
    assert monitor.history["ntk/linearization_gap"][-1] == pytest.approx(expected, rel=1e-8)
