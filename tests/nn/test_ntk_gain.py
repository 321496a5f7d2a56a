"""`sigma_w="gain"`: which activation is seen to follow a layer."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torch_ntk.nn import Erf, ntk_parameterize

RELU = math.sqrt(2)


class Apply(nn.Module):
    """A forward given as a function of the layers `a`, `b` and the input."""

    def __init__(self, function: Callable[..., Tensor], layer: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.a, self.b = layer(), layer()
        self.norm = nn.BatchNorm2d(4)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def gains(model: nn.Module) -> dict[str, float]:
    converted = ntk_parameterize(model)
    return {n: m.sigma_w for n, m in converted.named_modules() if hasattr(m, "sigma_w")}


FOLLOWED: dict[str, tuple[Callable[..., Tensor], float]] = {
    "F.relu": (lambda m, x: m.b(F.relu(m.a(x))), RELU),
    "F.relu inplace": (lambda m, x: m.b(F.relu(m.a(x), inplace=True)), RELU),
    "torch.relu": (lambda m, x: m.b(torch.relu(m.a(x))), RELU),
    "method": (lambda m, x: m.b(m.a(x).relu()), RELU),
    "method in place": (lambda m, x: m.b(m.a(x).relu_()), RELU),
    "relu6": (lambda m, x: m.b(F.relu6(m.a(x))), RELU),
    "leaky by keyword": (lambda m, x: F.leaky_relu(m.a(x), negative_slope=0.5), RELU / 1.25**0.5),
    "leaky by position": (lambda m, x: F.leaky_relu(m.a(x), 0.5), RELU / 1.25**0.5),
    "leaky by default": (lambda m, x: F.leaky_relu(m.a(x)), RELU / 1.0001**0.5),
    "tanh": (lambda m, x: torch.tanh(m.a(x)), 5 / 3),
    "selu": (lambda m, x: F.selu(m.a(x)), 0.75),
    "gelu": (lambda m, x: F.gelu(m.a(x)), 1.0),
    "sigmoid": (lambda m, x: torch.sigmoid(m.a(x)), 1.0),
    "layer": (lambda m, x: F.relu(m.b(m.a(x))), 1.0),
    "residual sum": (lambda m, x: F.relu(m.a(x) + x), 1.0),
    "end": (lambda m, x: m.a(x), 1.0),
    "norm": (lambda m, x: F.relu(m.norm(m.a(x))), RELU),
    "functional norm": (lambda m, x: F.relu(F.layer_norm(m.a(x), (6,))), RELU),
    "pool": (lambda m, x: F.relu(F.max_pool2d(m.a(x), 2)), RELU),
    "adaptive pool": (lambda m, x: F.relu(F.adaptive_avg_pool2d(m.a(x), 1)), RELU),
    "dropout": (lambda m, x: F.relu(F.dropout(m.a(x), 0.5, m.training)), RELU),
    "view": (lambda m, x: torch.relu(m.a(x).view(x.size(0), -1)), RELU),
    "shape": (lambda m, x: F.relu((y := m.a(x)).reshape(y.shape[0], -1)), RELU),
    "mean": (lambda m, x: F.relu(m.a(x).mean((2, 3))), RELU),
    "index": (lambda m, x: F.relu(m.a(x)[:, 0]), RELU),
    "chunks": (lambda m, x: F.relu(m.a(x).chunk(2, 1)[0]), RELU),
    "cat": (lambda m, x: F.relu(torch.cat([m.a(x), x], 1)), RELU),
}


# Where the function does not call the second layer, that one is told of.
@pytest.mark.filterwarnings("ignore:sigma_w=.gain. gives 1 to 'b':UserWarning")
@pytest.mark.parametrize(("function", "gain"), FOLLOWED.values(), ids=FOLLOWED.keys())
def test_functions_and_methods(function: Callable[..., Tensor], gain: float) -> None:
    found = gains(Apply(function, lambda: nn.Conv2d(4, 4, 3, padding=1)))
    assert found["a"] == pytest.approx(gain, rel=1e-15)


@pytest.mark.parametrize(
    ("activation", "gain"),
    [
        (nn.ReLU(), RELU),
        (nn.ReLU6(), RELU),
        (nn.LeakyReLU(0.5), RELU / 1.25**0.5),
        (nn.RReLU(0.25, 0.75), RELU / 1.25**0.5),
        (nn.PReLU(init=0.5), RELU / 1.25**0.5),
        (nn.PReLU(init=0.5, device="meta"), RELU / 1.25**0.5),
        (nn.Tanh(), 5 / 3),
        (nn.SELU(), 0.75),
        (nn.GELU(), 1.0),
        (Erf(), 1.0),
        (type("Mine", (nn.ReLU,), {})(), RELU),
    ],
)
def test_modules(activation: nn.Module, gain: float) -> None:
    between = (nn.BatchNorm1d(3), nn.Dropout(0.1), nn.Flatten(), nn.Identity())
    net = nn.Sequential(nn.Linear(2, 3), *between, activation, nn.Linear(3, 1))
    assert list(gains(net).values()) == pytest.approx([gain, 1.0], rel=1e-15)


def test_known_gains_are_those_of_torch() -> None:
    for name, module in (("relu", nn.ReLU()), ("tanh", nn.Tanh()), ("selu", nn.SELU())):
        net = nn.Sequential(nn.Linear(2, 2), module)
        assert gains(net)["0"] == pytest.approx(nn.init.calculate_gain(name))
    net = nn.Sequential(nn.Linear(2, 2), nn.LeakyReLU(0.3))
    assert gains(net)["0"] == pytest.approx(nn.init.calculate_gain("leaky_relu", 0.3))


def test_a_single_layer_has_gain_one() -> None:
    assert ntk_parameterize(nn.Linear(2, 2)).sigma_w == 1.0


def test_a_number_holds_for_every_layer() -> None:
    net = ntk_parameterize(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)), sigma_w=0.5)
    assert [net[0].sigma_w, net[2].sigma_w] == [0.5, 0.5]


class Untraceable(nn.Module):
    """Control flow on values, around a part that can be traced and a layer that stands alone."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2), nn.Tanh())
        self.head = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        return self.head(x) if bool(x.sum() > 0) else x


def test_untraceable_models_are_traced_in_parts_and_warn_of_the_rest() -> None:
    with pytest.warns(UserWarning, match="gives 1 to 'head': the activation") as caught:
        found = gains(Untraceable())
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert found == pytest.approx({"body.0": RELU, "body.2": 5 / 3, "head": 1.0})


def test_what_follows_the_edge_of_a_part_is_unknown() -> None:
    net = Untraceable()
    net.body = net.body[:3]  # ends in a layer, and what follows it is not traced
    with pytest.warns(UserWarning, match="gives 1 to 'body.2', 'head': the activation"):
        assert gains(net) == pytest.approx({"body.0": RELU, "body.2": 1.0, "head": 1.0})


def test_slopes_of_prelu_count_by_their_squares() -> None:
    activation = nn.PReLU(2)
    activation.weight = nn.Parameter(torch.tensor([0.1, 0.9]))
    net = nn.Sequential(nn.Linear(2, 2), activation, nn.Linear(2, 2))
    assert gains(net)["0"] == pytest.approx((2 / (1 + (0.01 + 0.81) / 2)) ** 0.5)


def test_an_untraceable_part_in_a_traceable_model() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), Untraceable(), nn.Linear(2, 2), nn.ReLU())
    with pytest.warns(UserWarning, match="gives 1 to '2.head': the act"):
        found = gains(net)
    expected = {"0": RELU, "2.body.0": RELU, "2.body.2": 5 / 3, "2.head": 1.0, "3": RELU}
    assert found == pytest.approx(expected)


def test_the_edge_of_a_part_is_seen_by_a_wider_part() -> None:
    inner = nn.Sequential(nn.Linear(2, 2), nn.Flatten())
    outer = nn.Sequential(inner, nn.ReLU())
    net = nn.Sequential(outer, Untraceable())
    with pytest.warns(UserWarning, match="gives 1 to '1.head'"):
        assert gains(net)["0.0.0"] == pytest.approx(RELU)


def test_a_layer_used_before_different_activations_warns() -> None:
    def twice(m: Apply, x: Tensor) -> Tensor:
        return torch.tanh(m.a(F.relu(m.a(m.b(x)))))

    with pytest.warns(UserWarning, match="gives 1 to 'a': .*differs between uses"):
        found = gains(Apply(twice, lambda: nn.Linear(2, 2)))
    assert found["a"] == 1.0


def test_layers_with_one_weight_have_one_scale() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    net[2].weight = net[0].weight
    with pytest.warns(UserWarning, match="gives 1 to '0', '2'"):
        assert set(gains(net).values()) == {1.0}


def test_layers_that_the_forward_does_not_call_warn() -> None:
    def only_b(m: Apply, x: Tensor) -> Tensor:
        return F.relu(m.b(x))

    with pytest.warns(UserWarning, match="gives 1 to 'a':"):
        assert gains(Apply(only_b, lambda: nn.Linear(2, 2))) == pytest.approx({"a": 1.0, "b": RELU})


class Counting(nn.Module):
    """A forward with every side effect that tracing could leave behind."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.register_buffer("calls", torch.zeros(()))
        self.count = 0
        self.last: object = None

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.count += 1
        warnings.warn("called", UserWarning, stacklevel=1)
        self.last = F.relu(self.layer(x)) + torch.rand(2)
        return self.last


def test_tracing_leaves_no_mark() -> None:
    model = Counting()
    state = torch.get_rng_state()
    converted = ntk_parameterize(model, mode="preserve")
    assert torch.equal(torch.get_rng_state(), state)
    for net in (model, converted):
        assert net.count == 0
        assert net.last is None
        assert net.calls.item() == 0
    assert converted.layer.sigma_w == pytest.approx(RELU)
