"""Products over parameters in float64 while the network is evaluated in float32."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_pieces import in_pieces
from torch import Tensor, nn

from torch_ntk import empirical_ntk
from torch_ntk.empirical.structured import StructuredMethod

OUTPUTS = ("full", "trace", "mean", "diagonal", "pseudo")


def cnn() -> nn.Module:
    """Convolutions that go through Jacobians and through Gram matrices, biases, norms, a GRU."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.GroupNorm(2, 4),
        nn.Tanh(),
        nn.Conv2d(4, 6, 3, stride=2, padding=1),
        nn.Tanh(),
        nn.Flatten(2),
        nn.Linear(9, 5),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(30, 3),
    )


class Tokens(nn.Module):
    """An embedding, whose features are indices."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.table, self.out = nn.Embedding(7, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.table(x))).sum(1)


def inputs(seed: int, tokens: bool) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if tokens:
        return torch.randint(7, (4, 5), generator=generator)
    return torch.randn(4, 2, 6, 6, generator=generator)


WAYS = [
    (tokens, method, output, (i + k + tokens) % 2 == 0)
    for tokens in (False, True)
    for i, method in enumerate(["structured", "jacobian", "auto"])
    for k, output in enumerate(OUTPUTS)
]


@pytest.mark.parametrize(("tokens", "method", "output", "symmetric"), WAYS)
def test_every_way_is_the_kernel(tokens: bool, method: Any, output: Any, symmetric: bool) -> None:
    model = Tokens() if tokens else cnn()
    x, other = inputs(2, tokens), None if symmetric else inputs(3, tokens)[:3]
    options: dict[str, Any] = {"output": output, "method": method}
    got = empirical_ntk(model, x, other, accumulate=torch.float64, **options)
    assert got.dtype == torch.float64
    exact = empirical_ntk(model, x, other, dtype=torch.float64, **options)
    torch.testing.assert_close(got, exact, rtol=0, atol=3e-6 * float(exact.abs().max()))
    parts = empirical_ntk(model, x, other, accumulate=torch.float64, by="parameter", **options)
    torch.testing.assert_close(torch.stack(list(parts.values())).sum(0), got)


def smallest(kernel: Tensor) -> float:
    """λ_min / λ_max, in float64."""
    values = torch.linalg.eigvalsh(kernel.double())
    return float(values[0] / values[-1])


@pytest.mark.parametrize("method", ["structured", "jacobian"])
def test_small_eigenvalues_have_digits(method: Any) -> None:
    """Two inputs that are nearly parallel: an eigenvalue of 1e-9 of the largest."""
    torch.manual_seed(0)
    model = nn.Linear(5, 1, bias=False)
    x = torch.randn(1, 5).expand(2, 5).clone()
    x[1] += 1e-4 * torch.randn(5)
    exact = smallest(empirical_ntk(model, x, output="mean", method=method, dtype=torch.float64))
    assert 1e-12 < exact < 1e-7
    got = empirical_ntk(model, x, output="mean", method=method, accumulate=torch.float64)
    assert smallest(got) == pytest.approx(exact, rel=1e-4)
    single = empirical_ntk(model, x, output="mean", method=method)
    assert smallest(single) != pytest.approx(exact, rel=0.1)


@pytest.mark.parametrize("method", ["structured", "jacobian"])
def test_it_is_positive_semidefinite(method: Any) -> None:
    """Of 15 samples and 3 outputs, with 27 parameters, at least 18 eigenvalues are 0."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3, bias=False), nn.Tanh(), nn.Linear(3, 3), nn.Tanh())
    kernel = empirical_ntk(model, torch.randn(15, 4), method=method, accumulate=torch.float64)
    square = kernel.permute(0, 2, 1, 3).reshape(45, 45)
    assert torch.equal(square, square.T)
    assert smallest(square) > -1e-14


def test_large_jacobians_are_converted_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = cnn(), inputs(2, False)
    for output in OUTPUTS:
        options: dict[str, Any] = {"output": output, "method": "jacobian"}
        whole = empirical_ntk(model, x, accumulate=torch.float64, **options)
        with monkeypatch.context() as patch:
            in_pieces(patch, columns=1000)
            cut = empirical_ntk(model, x, accumulate=torch.float64, **options)
        torch.testing.assert_close(cut, whole, rtol=1e-13, atol=1e-15)


def test_where_nothing_can_be_structured_all_is_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = cnn(), inputs(2, False)
    exact = empirical_ntk(model, x, dtype=torch.float64, method="jacobian")

    def too_large(*_: object) -> int:
        return 1 << 60

    monkeypatch.setattr(StructuredMethod, "bytes_per_sample", too_large)
    got = empirical_ntk(model, x, accumulate=torch.float64)
    torch.testing.assert_close(got, exact, rtol=1e-10, atol=1e-12)


def test_a_model_in_float64_needs_nothing() -> None:
    model, x = cnn().double(), inputs(2, False).double()
    assert torch.equal(empirical_ntk(model, x, accumulate=torch.float64), empirical_ntk(model, x))


def test_half_precision_models_are_evaluated_in_float32() -> None:
    model, x = cnn().bfloat16(), inputs(2, False).bfloat16()
    exact = empirical_ntk(model, x, dtype=torch.float64)
    got = empirical_ntk(model, x, accumulate=torch.float64)
    assert got.dtype == torch.float64
    torch.testing.assert_close(got, exact, rtol=0, atol=3e-6 * float(exact.abs().max()))


@pytest.mark.parametrize("value", [torch.float32, torch.float16, "float64", 64])
def test_other_precisions(value: Any) -> None:
    with pytest.raises(ValueError, match=r"`accumulate` must be None or torch\.float64; got"):
        empirical_ntk(cnn(), inputs(2, False), accumulate=value)


def test_products_with_vectors_have_no_sum() -> None:
    with pytest.raises(ValueError, match="`accumulate` must be None for method='vector_product'"):
        empirical_ntk(cnn(), inputs(2, False), method="vector_product", accumulate=torch.float64)
