"""A copy of a network that reaches the tensors of the original is refused, by their names."""

from __future__ import annotations

import copy
import functools
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from torch_ntk import linearize, taylor_expand


class Net(nn.Module):
    """Two layers, of which the first is reached in a way that `how` sets up."""

    def __init__(self, how: Callable[[Net], Callable[[Tensor], Tensor]]) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 4, dtype=torch.float64), nn.Linear(4, 2, dtype=torch.float64)
        self.block = how(self)

    def through_a(self, x: Tensor) -> Tensor:
        return torch.tanh(self.a(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.block(x))


def by_list(net: Net) -> Callable[[Tensor], Tensor]:
    return ByList(list(net.a.parameters()))


class ByList:
    def __init__(self, held: list[nn.Parameter]) -> None:
        self.held = held

    def __call__(self, x: Tensor) -> Tensor:
        return torch.tanh(nn.functional.linear(x, *self.held))


class ByModule:
    """No module itself, so that the one that it holds is none of the network's."""

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer

    def __call__(self, x: Tensor) -> Tensor:
        return torch.tanh(self.layer(x))


def by_closure(net: Net) -> Callable[[Tensor], Tensor]:
    layer = net.a
    return lambda x: torch.tanh(layer(x))


def by_values(net: Net) -> Callable[[Tensor], Tensor]:
    """Past gradients: the numbers of the original are used all the same."""
    return lambda x: torch.tanh(nn.functional.linear(x, net.a.weight.data, net.a.bias.data))


def by_tensor_made_before(net: Net) -> Callable[[Tensor], Tensor]:
    net.doubled = 2 * net.a.weight
    return net.from_doubled


class Computes(Net):
    def from_doubled(self, x: Tensor) -> Tensor:
        return torch.tanh(nn.functional.linear(x, self.doubled))


OUTSIDE: dict[str, nn.Module] = {}


def by_object_outside(net: Net) -> Callable[[Tensor], Tensor]:
    OUTSIDE["layer"] = net.a
    return lambda x: torch.tanh(OUTSIDE["layer"](x))


REFUSED: dict[str, tuple[type[Net], Callable[[Net], Callable[[Tensor], Tensor]]]] = {
    "lambda_over_self": (Net, lambda net: lambda x: torch.tanh(net.a(x))),
    "closure": (Net, by_closure),
    "default_argument": (Net, lambda net: lambda x, layer=net.a: torch.tanh(layer(x))),
    "list": (Net, by_list),
    "object_outside": (Net, by_object_outside),
    "values": (Net, by_values),
    "tensor_made_before": (Computes, by_tensor_made_before),
}
RIGHT: dict[str, Callable[[Net], Callable[[Tensor], Tensor]]] = {
    "bound_method": lambda net: net.through_a,
    "partial": lambda net: functools.partial(Net.through_a, net),
    "object_inside": lambda net: ByModule(net.a),
}
X = torch.linspace(-1, 2, 15, dtype=torch.float64).reshape(3, 5)


@pytest.mark.parametrize(("kind", "how"), REFUSED.values(), ids=REFUSED.keys())
@pytest.mark.parametrize("order", [1, 2])
def test_other_references_are_refused_by_name(
    kind: type[Net], how: Callable[[Net], Callable[[Tensor], Tensor]], order: int
) -> None:
    net = kind(how)
    model = taylor_expand(net, order)
    for lin in (model, copy.deepcopy(model)):
        with pytest.raises(ValueError, match=r"a forward that uses 'a\.(weight|bias)' through an"):
            lin(X)


@pytest.mark.parametrize("frozen", [False, True])
def test_frozen_layers_and_buffers_as_well(frozen: bool) -> None:
    """No gradient tells of them, but they move with the original."""

    class Normalized(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.norm = nn.Linear(5, 4), nn.BatchNorm1d(4)
            self.a.requires_grad_(not frozen)
            self.norm.requires_grad_(False)
            self.function = lambda x: self.norm(x) if not frozen else self.a(x)
            self.b = nn.Linear(5 if not frozen else 4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.function(x) if frozen else nn.functional.pad(self.a(x), (0, 1)))

    net = Normalized()
    if not frozen:
        net.forward = lambda x: net.norm(net.a(x))  # the method itself is a closure
    lin = linearize(net)
    with pytest.raises(ValueError, match=r"uses '(a|norm)\.\w+' through another reference"):
        lin(X.float())


@pytest.mark.parametrize("how", RIGHT.values(), ids=RIGHT.keys())
def test_what_deepcopy_copies_is_right(how: Callable[[Net], Callable[[Tensor], Tensor]]) -> None:
    net = Net(how)
    lin = linearize(net)
    torch.testing.assert_close(lin(X), net(X), rtol=1e-13, atol=1e-13)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    optimizer = torch.optim.SGD(lin.parameters(), lr=0.1)
    lin(X).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in lin.parameters())
    optimizer.step()
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    after = lin(X)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(1)
    assert torch.equal(lin(X), after)


def test_a_copy_that_computes_something_else_is_refused() -> None:
    class Forgets(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.scale = nn.Linear(5, 2, dtype=torch.float64), 2.0

        def __getstate__(self) -> dict[str, object]:
            return {**self.__dict__, "scale": 1.0}

        def forward(self, x: Tensor) -> Tensor:
            return self.scale * self.layer(x)

    net = Forgets()
    lin = linearize(net)
    with pytest.raises(ValueError, match=r"copy\.deepcopy makes one that computes the same"):
        lin(X)


def test_asking_for_shapes_and_devices_is_no_use() -> None:
    class Asks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(5, 2, dtype=torch.float64)
            self.held = list(self.layer.parameters())

        def forward(self, x: Tensor) -> Tensor:
            weight = self.held[0]
            assert x.shape[-1] == weight.shape[1]
            assert weight.dim() * weight.numel() == 20
            return self.layer(x.to(weight.device, weight.dtype))

    net = Asks()
    torch.testing.assert_close(linearize(net)(X), net(X), rtol=1e-13, atol=1e-13)


def test_the_original_is_not_kept_alive_nor_pickled() -> None:
    net = Net(lambda net: net.through_a)
    lin = linearize(net)
    expected = net(X)
    again = pickle.loads(pickle.dumps(lin))
    del net
    for model in (lin, again):
        torch.testing.assert_close(model(X), expected, rtol=1e-13, atol=1e-13)


def test_an_original_that_has_moved_is_not_compared() -> None:
    net = Net(lambda net: net.through_a)
    lin = linearize(net)
    expected = net(X)
    with torch.no_grad():
        net.a.weight += 1
    torch.testing.assert_close(lin(X), expected, rtol=1e-13, atol=1e-13)
