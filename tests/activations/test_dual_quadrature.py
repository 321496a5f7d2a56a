"""The Hermite expansion: kinks, its stated error, derivatives, and where it may be used."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.special import ndtr
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck

from torch_ntk.activations import (
    DualQuadrature,
    DualRectifier,
    Form,
    _moment_table,
    dual_activation,
)

SMOOTH = {"tanh": torch.tanh, "sigmoid": torch.sigmoid, "silu": F.silu, "softplus": F.softplus}
KINKED = {"hardtanh": F.hardtanh, "relu6": F.relu6, "selu": F.selu, "softshrink": F.softshrink}


def matrix(size: int = 30, scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """Covariances `[size, size]` of random vectors and their variances as column and row."""
    x = torch.randn(size, 4, dtype=torch.float64) * scale / 2
    k = x @ x.T
    return k, k.diagonal().unsqueeze(1), k.diagonal().unsqueeze(0)


def hardtanh_oracle(q1: float, q2: float, c: float) -> tuple[float, float]:
    """κ and κ̇ of hardtanh: an integral over u of what v, given u, contributes in closed form."""
    nodes, weights = np.polynomial.legendre.leggauss(60)
    ends = np.concatenate([np.linspace(-9, -1, 9), np.linspace(-0.5, 1, 4), np.linspace(2, 9, 8)])
    ends = ends * max(1.0, math.sqrt(q1))
    ends = np.sort(np.concatenate([ends, [-1.0, 1.0]]))
    middle, half = (ends[1:] + ends[:-1]) / 2, np.diff(ends) / 2
    u = (middle[:, None] + half[:, None] * nodes).ravel()
    weight = (half[:, None] * weights).ravel() * np.exp(-u * u / (2 * q1))
    weight /= math.sqrt(2 * math.pi * q1)
    mean, spread = c * math.sqrt(q2 / q1) * u, math.sqrt(q2 * (1 - c * c))
    low, high = (-1 - mean) / spread, (1 - mean) / spread
    inside = ndtr(high) - ndtr(low)
    density = (np.exp(-low * low / 2) - np.exp(-high * high / 2)) / math.sqrt(2 * math.pi)
    clipped = mean * inside + spread * density - ndtr(low) + ndtr(-high)
    value = float(weight @ (np.clip(u, -1, 1) * clipped))
    return value, float(weight @ ((np.abs(u) < 1) * inside))


@pytest.mark.parametrize(("q1", "q2"), [(0.4, 0.4), (1.0, 2.0), (3.0, 9.0)])
@pytest.mark.parametrize("c", [-0.9, -0.5, 0.0, 0.3, 0.95])
def test_kinks_are_no_obstacle_between_the_ends(q1: float, q2: float, c: float) -> None:
    arguments = torch.tensor([[c * math.sqrt(q1 * q2)], [q1], [q2]], dtype=torch.float64)
    found = DualQuadrature(F.hardtanh).pair(*arguments)
    expected = hardtanh_oracle(q1, q2, c)
    assert found[0].item() == pytest.approx(expected[0], abs=1e-11)
    assert found[1].item() == pytest.approx(expected[1], abs=1e-11)


@pytest.mark.parametrize("name", SMOOTH)
def test_the_default_reaches_its_accuracy(name: str) -> None:
    dual = DualQuadrature(SMOOTH[name])
    assert dual.error(torch.tensor([0.01, 1.0, 3.0])) < 1e-10
    assert dual.error(10.0) < 1e-7


@pytest.mark.parametrize("name", KINKED)
def test_the_error_is_stated(name: str) -> None:
    """More terms are the truth for fewer: nothing is further away than `error` says."""
    few, many = DualQuadrature(KINKED[name], terms=24), DualQuadrature(KINKED[name], terms=2000)
    assert few.error(0.0) == 0.0
    for q in (0.3, 2.0):
        stated = few.error(q)
        assert stated > 2 * many.error(q) > 0
        c = torch.tensor([-1.0, -0.99, -0.9, 0.0, 0.9, 0.99, 0.999, 1.0], dtype=torch.float64)
        variance = torch.tensor(q, dtype=torch.float64)
        for a, b, whole in zip(
            few.pair(c * q, variance, variance),
            many.pair(c * q, variance, variance),
            few.diagonal(variance),
            strict=True,
        ):
            assert bool(((a - b).abs() <= stated * whole + 1e-12).all())
            # The remainder is put where it makes both ends exact.
            torch.testing.assert_close(a[[0, -1]], b[[0, -1]], rtol=1e-11, atol=1e-11)


def test_kinks_are_found() -> None:
    assert DualQuadrature(F.hardtanh)._kinks.tolist() == pytest.approx([-1.0, 1.0], abs=1e-10)
    assert DualQuadrature(F.relu6)._kinks.tolist() == pytest.approx([0.0, 6.0], abs=1e-10)
    assert DualQuadrature(F.selu)._kinks.tolist() == pytest.approx([0.0], abs=1e-10)
    third = DualQuadrature(lambda x: (x - 1 / 3).abs() + x.sin())
    assert third._kinks.tolist() == pytest.approx([1 / 3], abs=1e-10)
    for f in (*SMOOTH.values(), F.elu, lambda x: torch.sin(30 * x), lambda x: x.exp()):
        assert len(DualQuadrature(f)._kinks) == 0


def test_against_a_closed_form_with_a_kink() -> None:
    k, q1, q2 = matrix(scale=2.0)
    exact = DualRectifier(1.0, 0.0, "relu").pair(k, q1, q2)
    found = DualQuadrature(torch.relu).pair(k, q1, q2)
    c = k / (q1 * q2).sqrt()
    inner = c.abs() < 0.9
    for a, b in zip(found, exact, strict=True):
        torch.testing.assert_close(a[inner], b[inner], rtol=0, atol=1e-12)
        # κ̇ of a pair knows a correlation of 1 to the root of the rounding.
        torch.testing.assert_close(a.diagonal(), b.diagonal(), rtol=0, atol=1e-7)


@pytest.mark.parametrize("name", [*SMOOTH, *KINKED])
def test_matrices_are_positive_semidefinite(name: str) -> None:
    dual = DualQuadrature({**SMOOTH, **KINKED}[name], terms=16)
    for found in dual.pair(*matrix(60)):
        torch.testing.assert_close(found, found.T, rtol=1e-13, atol=1e-15)
        eigenvalues = torch.linalg.eigvalsh(found)
        assert eigenvalues[0] > -1e-13 * eigenvalues[-1]


@pytest.mark.parametrize("f", [torch.tanh, F.silu, F.hardtanh], ids=["tanh", "silu", "hardtanh"])
def test_derivatives_of_the_expansion(f: Callable[[Tensor], Tensor]) -> None:
    dual = DualQuadrature(f, terms=10)
    k = torch.tensor([[0.3, -0.2], [0.5, 0.05]], dtype=torch.float64, requires_grad=True)
    q1 = torch.tensor([[1.0], [0.5]], dtype=torch.float64, requires_grad=True)
    q2 = torch.tensor([1.3, 0.8], dtype=torch.float64, requires_grad=True)
    assert gradcheck(dual.pair, (k, q1, q2))
    assert gradcheck(dual.diagonal, (q1,))
    by_func = torch.func.grad(lambda a: dual.pair(a, q1.detach(), q2.detach())[0].sum())(k)
    (by_autograd,) = torch.autograd.grad(dual.pair(k, q1, q2)[0].sum(), k)
    torch.testing.assert_close(by_func, by_autograd, rtol=1e-14, atol=0)
    assert gradgradcheck(dual.pair, (k, q1, q2))
    assert gradgradcheck(dual.diagonal, (q1,))


def test_derivatives_at_small_variances() -> None:
    """dκ(q)/dq = E[f'² + f f''] goes to f'(0)² + f(0) f''(0), here 1/16, without being noise."""
    q = torch.tensor([1e-12, 1e-9, 1e-6], dtype=torch.float64, requires_grad=True)
    dual = DualQuadrature(torch.sigmoid)
    for value in (dual.diagonal(q)[0], dual.pair(q, q, q)[0]):
        (rise,) = torch.autograd.grad(value.sum(), q)
        torch.testing.assert_close(rise, torch.full_like(q, 1 / 16).detach(), rtol=1e-4, atol=0)


def test_it_works_in_every_mode_and_leaves_it() -> None:
    k, q1, q2 = matrix(5)
    dual = DualQuadrature(torch.nn.ELU(inplace=True))
    expected = dual.pair(k, q1, q2)
    with torch.inference_mode():
        inside = dual.pair(k.clone(), q1.clone(), q2.clone())
        assert DualQuadrature(torch.tanh).error(1.0) < 1e-10
    with torch.no_grad():
        without = dual.pair(k, q1, q2)
        assert not torch.is_grad_enabled()
    for a, b, c in zip(expected, inside, without, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)
        assert not a.requires_grad


def test_blocks_are_as_the_whole() -> None:
    q1 = torch.tensor([[0.5], [1.0], [3.0]], dtype=torch.float64).repeat(100, 1)
    q2 = q1[:250].T
    k = (2 * torch.rand(300, 250, dtype=torch.float64) - 1) * (q1 * q2).sqrt()
    dual = DualQuadrature(torch.tanh)
    value, slope = dual.pair(k, q1, q2)
    part, part_slope = dual.pair(k[100:107], q1[100:107], q2)
    torch.testing.assert_close(value[100:107], part, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(slope[100:107], part_slope, rtol=1e-12, atol=1e-13)


def test_coefficients_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel in blocks does not integrate anew, and what is kept changes no result."""
    computed: list[float] = []
    original = _moment_table.hermite_moments

    def counting(q: Tensor, *rest: Any) -> Tensor:
        computed.extend(q.tolist())
        return original(q, *rest)

    monkeypatch.setattr(_moment_table, "hermite_moments", counting)
    k, q1, q2 = matrix(12)
    dual = DualQuadrature(torch.tanh, terms=40)
    whole = dual.pair(k, q1, q2)
    first = len(computed)
    assert first >= 12
    with torch.inference_mode():
        rows = [dual.pair(k[i : i + 4], q1[i : i + 4], q2) for i in range(0, 12, 4)]
    assert len(computed) == first
    parts = zip(*rows, strict=True)
    for a, b in zip(whole, parts, strict=True):
        torch.testing.assert_close(a, torch.cat(b), rtol=1e-14, atol=1e-15)
    more = torch.tensor([3.0, 0.1], dtype=torch.float64)
    found = dual.pair(more / 2, more, more)
    assert len(computed) > first
    fresh = DualQuadrature(torch.tanh, terms=40).pair(more / 2, more, more)
    for a, b in zip(found, fresh, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-14, atol=1e-15)
    # Beyond its size the table keeps what was asked for last, or nothing.
    for limit in (3000, 10):
        monkeypatch.setattr(_moment_table, "_KEPT", limit)
        for a, b in zip(dual.pair(k, q1, q2), whole, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("f", ["tanh", "relu6", "gelu_tanh", nn.Mish(), "relu", "sin"], ids=str)
def test_copies(f: Any) -> None:
    dual = dual_activation(f)
    q = torch.tensor([0.5, 2.0], dtype=torch.float64)
    expected = dual.pair(q / 3, q, q)
    for twin in (copy.deepcopy(dual), pickle.loads(pickle.dumps(dual))):
        for a, b in zip(twin.pair(q / 3, q, q), expected, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("terms", [0, -3, 2.0, True])
def test_terms_are_checked(terms: object) -> None:
    with pytest.raises((TypeError, ValueError), match="`terms` must be a positive integer"):
        DualQuadrature(torch.tanh, terms=terms)  # type: ignore[arg-type]


def by_statements(dual: DualQuadrature, k: Tensor, q1: Tensor, q2: Tensor) -> tuple[Tensor, Tensor]:
    """κ and κ̇ by the statements for loops, with the series as plain sums."""
    formula = dual.fused(Form(distance=False, double=True))
    assert formula is not None
    assert formula.series is not None
    lengths = formula.series.lengths(torch.cat([q1, q2]))
    a, b = (formula.series.coefficients(q, lengths) for q in (q1, q2))
    names: dict[str, Any] = {"k0": k, "t0": torch.ones_like(k)}
    for side, q in (("a", q1), ("b", q2)):
        names |= {f"{side}{i}": term for i, term in enumerate(formula.terms([q]))}
    names |= {"min": lambda x, y: x.clamp(max=y), "max": lambda x, y: x.clamp(min=y)}
    exec("\n".join(formula.series.before), names)
    odd, even = (torch.arange(n, dtype=torch.float64) for n in lengths)
    degree = torch.cat([2 * odd.flip(0) + 1, 2 * even.flip(0) + 2]).unsqueeze(1)
    names["value"] = (a * b * names["c"] ** degree).sum(0)
    names["slope"] = (a * b * degree * names["c"] ** (degree - 1)).sum(0)
    exec("\n".join([*formula.series.after, *formula.lines]), names)
    return names["k"], names["t"]


@pytest.mark.parametrize("terms", [1, 2, 7, 512])
@pytest.mark.parametrize("name", ["tanh", "softplus", "hardtanh", "relu6", "elu"])
def test_statements_for_loops(name: str, terms: int) -> None:
    """From variances of several octaves, 0 and a very small one among them."""
    dual = DualQuadrature(getattr(F, name), terms=terms)
    q1 = torch.tensor([0.0, 1e-9, 0.02, 0.3, 0.36, 1.0, 4.5, 18.0], dtype=torch.float64).repeat(3)
    q2 = torch.cat([q1[:8].roll(n) for n in (1, 2, 5)])
    c = torch.linspace(-1, 1, len(q1), dtype=torch.float64).roll(5)
    k = c * (q1 * q2).sqrt()
    # A rest that is hardly more than rounding has few digits.
    tolerance = 1e-10 if terms == 512 else 1e-9
    size = torch.sqrt(torch.stack([dual.diagonal(q1)[i] * dual.diagonal(q2)[i] for i in (0, 1)]))
    for found, wanted, scale in zip(
        by_statements(dual, k, q1, q2), dual.pair(k, q1, q2), size, strict=True
    ):
        assert float(((found - wanted).abs() / scale.clamp(min=1e-30)).max()) < tolerance


def test_a_derivative_that_torch_has_in_single_precision() -> None:
    dual, q = dual_activation(nn.Hardsigmoid()), torch.full((1,), 0.02, dtype=torch.float64)
    assert dual.diagonal(q)[1].item() == pytest.approx(1 / 36, rel=1e-14)


def test_layers_share_what_torch_defines() -> None:
    assert dual_activation(nn.ELU(0.5)) is dual_activation(nn.ELU(0.5, inplace=True))
    assert dual_activation(nn.ELU(0.5)) is not dual_activation(nn.ELU())
    assert dual_activation(torch.tanh) is dual_activation(torch.tanh)
    hooked = nn.Tanh()
    hooked.register_forward_hook(lambda module, given, result: 2 * result)
    assert dual_activation(hooked) is not dual_activation(nn.Tanh())
