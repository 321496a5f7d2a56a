"""From names, modules and functions to dual functions, and what is refused."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torch_ntk.activations import (
    DualActivation,
    DualAffine,
    DualCos,
    DualErf,
    DualExp,
    DualGELU,
    DualQuadrature,
    DualRectifier,
    DualSin,
    DualSquare,
    Form,
    dual_activation,
    register_dual,
)


class Halve(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x / 2


class MyReLU(nn.ReLU):
    pass


class Swish(nn.Module):
    def __init__(self, trained: bool) -> None:
        super().__init__()
        self.beta = nn.Parameter(torch.tensor(1.7), requires_grad=trained)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.beta * x)


KINDS: list[tuple[Any, type[DualActivation]]] = [
    ("relu", DualRectifier),
    ("leaky_relu", DualRectifier),
    ("abs", DualRectifier),
    ("identity", DualAffine),
    ("erf", DualErf),
    ("gelu", DualGELU),
    ("sin", DualSin),
    ("cos", DualCos),
    ("exp", DualExp),
    ("square", DualSquare),
    ("tanh", DualQuadrature),
    ("gelu_tanh", DualQuadrature),
    (nn.ReLU(inplace=True), DualRectifier),
    (nn.LeakyReLU(0.3), DualRectifier),
    (nn.PReLU(init=0.4).double().requires_grad_(False), DualRectifier),
    (nn.RReLU(0.1, 0.3).eval(), DualRectifier),
    (nn.GELU(), DualGELU),
    (nn.GELU(approximate="tanh"), DualQuadrature),
    (nn.Identity(), DualAffine),
    (nn.Dropout(0.5).eval(), DualAffine),
    (nn.Tanh(), DualQuadrature),
    (nn.Hardtanh(-2.0, 2.0, inplace=True), DualQuadrature),
    (Swish(trained=False), DualQuadrature),
    (torch.relu, DualRectifier),
    (F.relu, DualRectifier),
    (F.leaky_relu, DualRectifier),
    (functools.partial(F.leaky_relu, negative_slope=0.2), DualRectifier),
    (torch.abs, DualRectifier),
    (torch.erf, DualErf),
    (F.gelu, DualGELU),
    (functools.partial(F.gelu, approximate="tanh"), DualQuadrature),
    (torch.sin, DualSin),
    (torch.cos, DualCos),
    (torch.exp, DualExp),
    (torch.square, DualSquare),
    (torch.sigmoid, DualQuadrature),
    (lambda x: x.clamp(min=0), DualRectifier),
    (lambda x: torch.where(x > 0, x, 0.2 * x), DualRectifier),
    (lambda x: x.clamp(0, 100), DualQuadrature),
    (MyReLU(), DualRectifier),
]


def _as_function(activation: Any) -> Callable[[Tensor], Tensor]:
    by_name = {"abs": torch.abs, "erf": torch.erf, "sin": torch.sin, "cos": torch.cos}
    by_name |= {"exp": torch.exp, "square": torch.square, "tanh": torch.tanh}
    by_name |= {"identity": lambda x: x, "gelu_tanh": functools.partial(F.gelu, approximate="tanh")}
    if isinstance(activation, str):
        return by_name.get(activation) or getattr(F, activation)
    return activation


def name_of(value: Any) -> str:
    """For the name of a test: no address, so that parallel workers agree on it."""
    return re.sub(r" at 0x[0-9a-f]+", "", str(value))[:60]


@pytest.mark.parametrize(("activation", "kind"), KINDS, ids=name_of)
def test_each_gets_the_dual_of_its_own_values(activation: Any, kind: type[DualActivation]) -> None:
    dual = dual_activation(activation)
    assert type(dual) is kind
    form = Form(distance=False, double=True)
    assert dual.fused(form) is not None
    assert dual.name in repr(dual)
    # E[f(u)²] by a rule that knows nothing of the activation.
    q = 0.8
    z = torch.linspace(-12, 12, 200_001, dtype=torch.float64)
    function = _as_function(activation)
    with torch.no_grad():
        square = function(z * q**0.5).square() * torch.exp(-z * z / 2) / (2 * torch.pi) ** 0.5
    expected = torch.trapezoid(square, z)
    found = dual.diagonal(torch.tensor(q, dtype=torch.float64))[0]
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=0)


def test_a_dual_activation_stays() -> None:
    dual = DualRectifier(1.0, 0.5, "mine")
    assert dual_activation(dual) is dual


def test_lookup_leaves_the_random_state() -> None:
    before = torch.get_rng_state()
    dual_activation(torch.tanh)
    with pytest.raises(ValueError, match="deterministic"):
        dual_activation(F.dropout)
    assert torch.equal(torch.get_rng_state(), before)


def test_registered_activations() -> None:
    class Mine(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 3 * x

    class Child(Mine):
        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(x)

    def triple(x: Tensor, factor: float = 3.0) -> Tensor:
        return factor * x

    register_dual(Mine, lambda module: DualAffine(3.0, name="mine"))
    register_dual(triple, lambda f: DualAffine(getattr(f, "keywords", {}).get("factor", 3.0)))
    assert dual_activation(Mine()).name == "mine"
    assert isinstance(dual_activation(Child()), DualQuadrature)  # the exact type only
    found = dual_activation(triple)
    assert isinstance(found, DualAffine)
    assert found.slope == 3.0
    found = dual_activation(functools.partial(triple, factor=5.0))
    assert isinstance(found, DualAffine)
    assert found.slope == 5.0
    register_dual(Mine, lambda module: "no dual")  # type: ignore[arg-type,return-value]
    with pytest.raises(TypeError, match="`factory` must be a function that makes a DualActivation"):
        dual_activation(Mine())


@pytest.mark.parametrize("key", [3, "relu", nn.ReLU(), int, torch.zeros(2)], ids=name_of)
def test_keys_are_checked(key: Any) -> None:
    with pytest.raises(TypeError, match="`key` must be a class of modules or a function"):
        register_dual(key, lambda module: DualAffine())


def test_factories_are_checked() -> None:
    with pytest.raises(TypeError, match="`factory` must be a function"):
        register_dual(Halve, 3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("activation", "words"),
    [
        (3, "elementwise activation; got 3"),
        (None, "got None"),
        ([torch.relu], "got a list of length 1"),
        (nn.ReLU, "the class ReLU. Give an instance"),
        (nn.MaxPool2d(2), "MaxPool2d, which fails on"),
        (nn.Flatten(), "Flatten, which fails on"),
        (nn.BatchNorm1d(3, affine=False), "BatchNorm1d, which fails on"),
        (torch.sum, "sum, which makes a float64 tensor of shape"),
        (lambda x: 1.0, "which makes 1.0"),
        (lambda x: torch.from_numpy(np.tanh(x.numpy())), "which fails on"),
    ],
    ids=name_of,
)
def test_what_is_no_function_of_an_entry(activation: Any, words: str) -> None:
    with pytest.raises(TypeError, match="`activation` must be") as caught:
        dual_activation(activation)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("activation", "words"),
    [
        ("ReLU", "one of 'relu', 'leaky_relu'"),
        (nn.Softmax(dim=-1), "Softmax, which mixes the entries"),
        (nn.GLU(), "GLU, which mixes"),
        (F.softmax, "softmax, which mixes"),
        (functools.partial(F.log_softmax, dim=0), "log_softmax, which mixes"),
        (lambda x: x - x.mean(), "depends on the others or on its place"),
        (lambda x: x.sort().values, "depends on the others or on its place"),
        (nn.Linear(3, 3), "trainable parameters weight, bias"),
        (Swish(trained=True), "trainable parameters beta"),
        (nn.PReLU(), "whose slope is trained"),
        (nn.PReLU(3), "PReLU of 3 slopes"),
        (nn.RReLU(), "RReLU in training mode"),
        (nn.Dropout(), "Dropout in training mode"),
        (F.dropout, "two results for one input"),
        (torch.rand_like, "differentiable by autograd"),
        (torch.log, "finite on [-3, 3]"),
        (torch.sign, "jumps near x = 0."),
        (nn.Hardshrink(), "jumps near x = -0.5."),
        (lambda x: torch.where(x > 1.25, x, 0.0), "jumps near x = 1.25."),
        (lambda x: x.abs().sqrt(), "grows without bound near x = 0."),
        (lambda x: x.detach().tanh(), "differentiable by autograd"),
    ],
    ids=name_of,
)
def test_what_has_no_dual(activation: Any, words: str) -> None:
    with pytest.raises(ValueError, match="`activation` must be") as caught:
        dual_activation(activation)
    assert words in str(caught.value)
