"""Samples that are coupled through something that is 0 or off now."""

from __future__ import annotations

import pytest
import torch
from oracle import WAYS, Make, Net, built, error, inputs, jacobian, mean, said, weight
from torch import Tensor, nn

from torch_ntk import NTKOperator, empirical_ntk, linearize, verify

X = inputs(4, 3)
COUPLED = "one sample at a time|other samples|coupl|batch"


def _statistics(x: Tensor) -> Tensor:
    return (x - x.mean(0)) / (1 + x.var(0, unbiased=False))


def _branch(net: nn.Module, x: Tensor) -> Tensor:
    return net.a(x) + net.gate * torch.tanh(net.b(_statistics(x)))


def _output_weight(net: nn.Module, x: Tensor) -> Tensor:
    """As residual branches that start at 0: the last weight of the branch is 0."""
    return net.a(x) + torch.tanh(net.b(_statistics(x))) @ net.w


def _switched(net: nn.Module, x: Tensor) -> Tensor:
    return net.a(x) + (net.on * _statistics(x)) @ net.w


def _zeros(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.zeros(*shape))


def _with_buffer() -> nn.Module:
    net = Net(_switched, a=nn.Linear(3, 2), w=weight(3, 2))
    net.register_buffer("on", torch.zeros(()))
    return net


# Coupled through their gradients today: the outputs do not show it.
BY_WEIGHT: dict[str, Make] = {
    "gate": lambda: Net(_branch, a=nn.Linear(3, 2), b=nn.Linear(3, 2), gate=_zeros(1)),
    "output weight": lambda: Net(
        _output_weight, a=nn.Linear(3, 2), b=nn.Linear(3, 5), w=_zeros(5, 2)
    ),
}


def _refused(way: str, model: nn.Module) -> str:
    if way == "operator":
        return said(lambda: NTKOperator(model, X) @ torch.ones(8, dtype=X.dtype))
    if way == "linearize":
        return said(lambda: _trained(model))
    return said(lambda: empirical_ntk(model, X, method=way))  # type: ignore[arg-type]


def _trained(model: nn.Module) -> None:
    """Coupled outputs show once the parameters have moved."""
    lin = linearize(model)
    lin(X)
    with torch.no_grad():
        for p in lin.parameters():
            p.add_(0.1)
    lin(X)


@pytest.mark.parametrize("way", [w for w in WAYS if w != "linearize"])
@pytest.mark.parametrize("name", BY_WEIGHT)
def test_through_a_weight_of_zero(name: str, way: str) -> None:
    """The gradient of the gate depends on the other samples: refused, today and later."""
    model = built(BY_WEIGHT[name])
    message = _refused(way, model)
    assert any(word in message for word in COUPLED.split("|")), message or "accepted"
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3)
    message = _refused(way, model)
    assert any(word in message for word in COUPLED.split("|")), message or "accepted"


@pytest.mark.parametrize("name", BY_WEIGHT)
def test_verify_says_so(name: str) -> None:
    found: list[bool] = []
    message = said(lambda: found.append(verify(built(BY_WEIGHT[name]), X).is_right))
    if not message:
        checks = verify(built(BY_WEIGHT[name]), X).checks
        assert all(c.refusal for c in checks), "a coupled network has no kernel"


@pytest.mark.parametrize("way", [w for w in WAYS if w != "linearize"])
def test_through_a_buffer_switched_on_between_calls(way: str) -> None:
    """Off, the network is a function of one sample; on, it is refused, whatever came before."""
    model = built(_with_buffer)
    assert not _refused(way, model)
    model.on.fill_(1.0)
    message = _refused(way, model)
    assert any(word in message for word in COUPLED.split("|")), message or "accepted"
    model.on.fill_(0.0)
    found = empirical_ntk(model, X, output="mean")
    assert error(found, mean(jacobian(built(_with_buffer), X))) < 1e-10


def test_through_a_flag_switched_on_between_calls() -> None:
    def forward(net: nn.Module, x: Tensor) -> Tensor:
        return net.a(_statistics(x) if net.normalize else x)

    model = built(lambda: Net(forward, a=nn.Linear(3, 2), normalize=False))
    for method in ("auto", "structured", "jacobian", "vector_product"):
        model.normalize = False
        assert not _refused(method, model)
        model.normalize = True
        assert _refused(method, model)


def test_after_weights_have_opened() -> None:
    """Uncoupled by the value of a weight in a relu, coupled as it changes sign."""

    def forward(net: nn.Module, x: Tensor) -> Tensor:
        return net.a(x) + torch.relu(net.gate) * _statistics(x)[:, :2]

    model = built(lambda: Net(forward, a=nn.Linear(3, 2), gate=nn.Parameter(-torch.ones(1))))
    assert not _refused("auto", model)
    model.gate.data.fill_(0.5)
    message = _refused("auto", model)
    assert any(word in message for word in COUPLED.split("|")), message or "accepted"


def test_coupling_of_two_samples_only() -> None:
    """The first two samples are independent; the last two see each other."""
    mask = torch.tensor([0.0, 0.0, 1.0, 1.0], dtype=torch.float64)[:, None]

    def forward(net: nn.Module, x: Tensor) -> Tensor:
        on = (x[:, :1] > 5).to(x.dtype)
        return net.a(x) + net.w * (on * x).sum(0, keepdim=True)[:, :2] * on

    x = X + 10 * mask
    model = built(lambda: Net(forward, a=nn.Linear(3, 2), w=weight(2)))
    for method in ("auto", "structured", "jacobian", "vector_product"):
        message = said(lambda m=method: empirical_ntk(model, x, method=m))  # type: ignore
        assert any(word in message for word in COUPLED.split("|")), message or f"{method} accepted"
