"""`output="probed"`: the mean kernel from a few directions of many outputs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from torch_ntk import ProbedKernel, empirical_ntk
from torch_ntk.empirical import _probed

OUTPUTS = 40


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, OUTPUTS)).double()


X = torch.randn(4, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_it_is_unbiased_and_its_error_is_what_it_says() -> None:
    model = net()
    exact = empirical_ntk(model, X, output="mean")
    draws = [empirical_ntk(model, X, output="probed", probes=6, seed=s) for s in range(200)]
    kernels = torch.stack([d.kernel for d in draws])
    errors = torch.stack([d.standard_error for d in draws])
    spread = kernels.std(0)
    # The mean of 200 draws lies within 4.5 of its own errors for each of the 10 entries.
    assert bool(((kernels.mean(0) - exact).abs() < 4.5 * spread / 200**0.5).all())
    # The mean square of the stated error is the variance, to the 10 % of 200 draws (5 sigma: 50 %).
    ratio = errors.square().mean(0) / spread.square()
    assert bool(((ratio > 0.6) & (ratio < 1.6)).all())
    # Within 2.57 errors for 95 of 100 by Student's distribution with 5 degrees of freedom.
    within = ((kernels - exact).abs() < 2.57 * errors).double().mean()
    assert 0.9 < within < 0.99


def test_a_direction_is_the_same_for_every_sample_and_method() -> None:
    model = net()
    whole = empirical_ntk(model, X, output="probed")
    assert isinstance(whole, ProbedKernel)
    assert torch.equal(whole.kernel, whole.kernel.T)
    assert torch.linalg.eigvalsh(whole.kernel)[0] > -1e-12
    block = empirical_ntk(model, X[:2], X[1:], output="probed", batch_size=1)
    assert torch.allclose(block.kernel, whole.kernel[:2, 1:], rtol=1e-12)
    assert torch.allclose(block.standard_error, whole.standard_error[:2, 1:], rtol=1e-9)
    for method in ("jacobian", "vector_product"):
        found = empirical_ntk(model, X, output="probed", method=method)  # type: ignore[call-overload]
        assert torch.allclose(found.kernel, whole.kernel, rtol=1e-12)
    other = empirical_ntk(model, X, output="probed", seed=1)
    assert not torch.allclose(other.kernel, whole.kernel, rtol=1e-3)


def test_directions_are_of_the_precision_of_the_outputs() -> None:
    """Of a single linear layer every direction has its kernel `⟨x, x'⟩` itself: |v|² = O."""
    torch.manual_seed(0)
    model = nn.Linear(5, OUTPUTS, bias=False).double()
    found = empirical_ntk(model, X, output="probed")
    assert torch.allclose(found.kernel, X @ X.T, rtol=1e-14)
    assert bool((found.standard_error <= 1e-14 * (X @ X.T).abs().max()).all())


def test_parts_add_up() -> None:
    whole = empirical_ntk(net(), X, output="probed")
    parts = empirical_ntk(net(), X, output="probed", by="module")
    assert torch.allclose(sum(p.kernel for p in parts.values()), whole.kernel)  # type: ignore[arg-type]


@pytest.mark.parametrize("coupled", [False, True])
def test_as_many_directions_as_outputs_are_exact(coupled: bool) -> None:
    exact = empirical_ntk(net(), X, output="mean")
    found = empirical_ntk(net(), X, output="probed", probes=OUTPUTS, coupled=coupled)
    assert torch.allclose(found.kernel, exact, rtol=1e-12)
    assert not found.standard_error.any()


def test_a_coupled_batch() -> None:
    alone = empirical_ntk(net(), X, output="probed", seed=3)
    found = empirical_ntk(net(), X, output="probed", seed=3, coupled=True)
    assert torch.allclose(found.kernel, alone.kernel)
    assert torch.allclose(found.standard_error, alone.standard_error)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"probes": 1}, "`probes` must be at least 2"),
        ({"probes": 0}, "`probes` must be"),
        ({"probes": 2.0}, "`probes` must be"),
        ({"seed": -1}, "`seed` must be"),
        ({"seed": "a"}, "`seed` must be"),
    ],
)
def test_bad_arguments(changed: dict[str, Any], says: str) -> None:
    with pytest.raises((ValueError, TypeError), match=says):
        empirical_ntk(net(), X, output="probed", **changed)


@pytest.mark.parametrize("method", ["structured", "jacobian", "vector_product"])
def test_directions_in_groups_are_those_of_all(
    method: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of many outputs a few directions are held at once."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 20)).double()
    x, y = (torch.randn(n, 4, dtype=torch.float64) for n in (5, 3))
    options: dict[str, Any] = {"output": "probed", "probes": 7, "method": method}
    for samples in ((x,), (x, y)):
        whole = empirical_ntk(net, *samples, **options)
        of_parts = empirical_ntk(net, *samples, by="module", **options)
        with monkeypatch.context() as patch:
            patch.setattr(_probed, "_TOGETHER", 3 * 5 * 20 * 8)
            found = empirical_ntk(net, *samples, **options)
            parts = empirical_ntk(net, *samples, by="module", **options)
        for own, expected in [(found, whole), *((parts[k], of_parts[k]) for k in of_parts)]:
            assert torch.allclose(own.kernel, expected.kernel, rtol=1e-12)
            assert torch.allclose(own.standard_error, expected.standard_error, rtol=1e-10)
