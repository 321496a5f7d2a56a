"""What a conversion refuses, by name and before anything is changed."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune

from torch_ntk.nn import NTKLinear, ntk_parameterize


def plain(n: int = 3) -> nn.Sequential:
    return nn.Sequential(nn.Linear(n, 5), nn.ReLU(), nn.Linear(5, 2))


class MyLinear(nn.Linear):
    """A layer that computes something else."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).abs()


class ReadsWeight(nn.Module):
    """Tied decoding, written with the weight and not with the layer."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.encode(x), self.encode.weight.t())


def with_forward() -> nn.Module:
    model = plain()
    model[0].forward = lambda x: x
    return model


def old_weight_norm() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.Sequential(torch.nn.utils.weight_norm(nn.Linear(3, 2)))


def pruned() -> nn.Module:
    model = plain()
    prune.l1_unstructured(model[2], "bias", 0.5)
    return model


def in_one_memory() -> nn.Module:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = nn.Parameter(model[0].weight.data)
    return model


def tied_to_parameter() -> nn.Module:
    model = plain()
    model.register_parameter("extra", model[0].weight)
    return model


def tied_to_ntk() -> nn.Module:
    model = nn.Sequential(nn.Linear(3, 3), NTKLinear(3, 3))
    model[1].weight = model[0].weight
    return model


def compiled() -> Any:
    return torch.compile(plain(), backend="eager")


def scripted() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.script(plain())


def overflowing() -> nn.Module:
    model = nn.Linear(4096, 1, bias=False)
    nn.init.constant_(model.weight, 6e4)
    return model.half()


PARAMETRIZED = {
    "weight_norm": torch.nn.utils.parametrizations.weight_norm,
    "spectral_norm": torch.nn.utils.parametrizations.spectral_norm,
    "orthogonal": torch.nn.utils.parametrizations.orthogonal,
}

REFUSED_IN_BOTH: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "not a module": (lambda: [plain()], TypeError, "`model` must be a torch.nn.Module"),
    "no layer": (lambda: nn.Sequential(nn.ReLU()), ValueError, "nothing to convert"),
    "subclass": (
        lambda: nn.Sequential(nn.Linear(3, 3), MyLinear(3, 2)),
        ValueError,
        r"'1' \(MyLinear\). A subclass of nn.Linear",
    ),
    "lazy": (lambda: nn.Sequential(nn.LazyConv2d(3, 3)), ValueError, r"'0' \(LazyConv2d\).*batch"),
    "replaced forward": (with_forward, ValueError, r"'0' \(Linear\) whose forward was replaced"),
    "old weight norm": (old_weight_norm, ValueError, r"'0' \(Linear\) whose weight .* computed"),
    "pruned": (pruned, ValueError, r"'2' \(Linear\) whose weight or bias is computed"),
    "read": (ReadsWeight, ValueError, "code reads the weight or bias of 'encode'"),
    "one memory": (in_one_memory, ValueError, "weight of '0' shares memory"),
    "tied to a parameter": (tied_to_parameter, ValueError, "layer '0' shares .*Sequential itself"),
    "scripted": (scripted, TypeError, "Convert it before scripting it"),
    "compiled": (compiled, TypeError, "call torch.compile on the result"),
    **{
        name: (
            lambda p=parametrization: nn.Sequential(p(nn.Linear(3, 3))),
            ValueError,
            r"'0' \(ParametrizedLinear\) whose weight or bias is computed",
        )
        for name, parametrization in PARAMETRIZED.items()
    },
}


@pytest.mark.parametrize(
    "layer", [nn.TransformerEncoderLayer(4, 2, 8), nn.MultiheadAttention(4, 2), nn.LSTM(2, 2)]
)
def test_layers_that_belong_to_a_kind_without_counterpart(layer: nn.Module) -> None:
    kind = type(layer).__name__
    words = f"whose layers belong to the {kind} itself. There is nothing to convert: that has no"
    with pytest.raises(ValueError, match=words):
        ntk_parameterize(layer, mode="preserve")
    with pytest.raises(ValueError, match=f"got one with the {kind} itself. It would stay"):
        ntk_parameterize(layer)


@pytest.mark.parametrize("mode", ["preserve", "reinit"])
@pytest.mark.parametrize(
    ("make", "error", "words"), REFUSED_IN_BOTH.values(), ids=REFUSED_IN_BOTH.keys()
)
def test_refused_in_both_modes(
    make: Callable[[], Any], error: type[Exception], words: str, mode: Any
) -> None:
    with pytest.raises(error, match=words):
        ntk_parameterize(make(), mode=mode)


@pytest.mark.parametrize(
    ("make", "options", "error", "words"),
    [
        (tied_to_ntk, {}, ValueError, r"layer '0' shares .* the module '1' \(NTKLinear\)"),
        (plain, {"sigma_b": 0.0}, ValueError, "`sigma_b` must be greater than 0 .* layer '0'"),
        (
            overflowing,
            {"sigma_w": 0.1},
            ValueError,
            "stay finite in float16.*Convert it in float32",
        ),
        (
            plain,
            {"sigma_w": "relu"},
            ValueError,
            r"^`sigma_w` must be 'gain' or a finite number greater than 0; got 'relu'\.$",
        ),
        (plain, {"sigma_w": 0.0}, ValueError, "`sigma_w`"),
        (plain, {"sigma_w": None}, TypeError, "`sigma_w` must be 'gain' or a finite .*; got None"),
        (plain, {"sigma_b": -0.1}, ValueError, "`sigma_b`"),
        (plain, {"mode": "keep"}, ValueError, "`mode` must be one of 'reinit', 'preserve'"),
    ],
)
def test_refused_in_preserve(
    make: Callable[[], nn.Module], options: dict[str, Any], error: type[Exception], words: str
) -> None:
    model = make()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(error, match=words):
        ntk_parameterize(model, **{"mode": "preserve", **options})
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


class AsksForType(nn.Module):
    """The weight's type and shape may be asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.to(self.layer.weight.dtype)) * self.layer.weight.shape[0]


def test_asking_for_the_type_of_a_weight_is_allowed() -> None:
    model = AsksForType().double()
    x = torch.randn(4, 3)
    converted = ntk_parameterize(model, mode="preserve")
    torch.testing.assert_close(converted(x), model(x), rtol=1e-12, atol=1e-12)


def tied_to_embedding() -> nn.Module:
    model = nn.Sequential(nn.Embedding(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    return model


@pytest.mark.parametrize("make", [tied_to_embedding, tied_to_ntk])
def test_both_ways_out_of_a_tie_that_preserve_refuses(make: Callable[[], nn.Sequential]) -> None:
    model = make()
    ways = (
        r"layer\.weight = nn\.Parameter\(layer\.weight\.detach\(\)\.clone\(\)\), or its bias "
        r'likewise\. Or convert with mode="reinit", which keeps the tie'
    )
    with pytest.raises(ValueError, match=ways):
        ntk_parameterize(model, mode="preserve")
    converted = ntk_parameterize(model, mode="reinit")
    assert converted[0].weight is converted[1].weight
    layer = next(m for m in model if type(m) is nn.Linear)
    layer.weight = nn.Parameter(layer.weight.detach().clone())
    x = torch.arange(3) if isinstance(model[0], nn.Embedding) else torch.randn(2, 3)
    converted = ntk_parameterize(model, mode="preserve")
    torch.testing.assert_close(converted(x), model(x))


@pytest.mark.parametrize("mode", ["preserve", "reinit"])
def test_reinit_is_not_offered_where_it_refuses_too(mode: Any) -> None:
    with pytest.raises(ValueError, match="Untie them by") as caught:
        ntk_parameterize(tied_to_parameter(), mode=mode)
    assert "reinit" not in str(caught.value)


@pytest.mark.parametrize("mode", ["reinit", "preserve"])
@pytest.mark.parametrize(
    "how",
    [
        lambda net: lambda x: torch.tanh(net.fc(x)),
        lambda net: lambda x, fc=net.fc: torch.tanh(fc(x)),
        lambda net: lambda x, *, weight=net.fc.weight: F.linear(x, weight),
    ],
    ids=["closure", "default", "keyword"],
)
def test_functions_over_layers_are_refused(how: Callable[[Any], Any], mode: Any) -> None:
    """The converted network would compute with a layer of the original."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 2)
            self.block = how(self)
            self.other = lambda x: x  # over nothing

        def forward(self, x: Tensor) -> Tensor:
            return self.block(x)

    with pytest.raises(ValueError, match=r"a function '0\.block' that reaches its layers"):
        ntk_parameterize(nn.Sequential(Net()), mode=mode)
