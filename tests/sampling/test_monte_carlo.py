"""The average kernel over random networks: its values, its draws and its arguments."""

# ruff: noqa: NPY002  # the global state of NumPy is meant
from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from torch_ntk import NTKLinear, empirical_nngp, empirical_ntk
from torch_ntk.sampling import monte_carlo_kernel

X1, X2 = torch.eye(3), torch.ones(2, 3)


def net() -> nn.Module:
    return nn.Sequential(NTKLinear(3, 6), nn.Tanh(), NTKLinear(6, 4))


def kept(made: list[nn.Module]):  # type: ignore[no-untyped-def]
    """`net`, which keeps what it made."""

    def make() -> nn.Module:
        made.append(net())
        return made[-1]

    return make


@pytest.mark.parametrize("other", [None, X2])
@pytest.mark.parametrize("kind", ["ntk", "nngp"])
def test_mean_and_standard_error(kind: str, other: Tensor | None) -> None:
    made: list[nn.Module] = []
    got = monte_carlo_kernel(kept(made), X1, other, n_samples=7, kind=kind)
    if kind == "ntk":
        kernels = [empirical_ntk(m, X1, other, output="mean") for m in made]
    else:
        kernels = [empirical_nngp(m, X1, other) for m in made]
    stack = torch.stack(kernels).double()
    assert got.n_samples == len(made) == 7
    assert got.mean.dtype == got.standard_error.dtype == torch.float64
    torch.testing.assert_close(got.mean, stack.mean(0), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(got.standard_error, stack.std(0) / 7**0.5, rtol=1e-10, atol=1e-12)


def test_a_small_spread_beside_a_large_mean() -> None:
    """Sums of squares would lose it."""

    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shift = nn.Parameter(1e6 + torch.randn(1, dtype=torch.float64) * 1e-3)

        def forward(self, x: Tensor) -> Tensor:
            return x[:, :1] * 0 + self.shift

    made: list[Shifted] = []

    def make() -> nn.Module:
        made.append(Shifted())
        return made[-1]

    got = monte_carlo_kernel(make, X1.double(), n_samples=50, kind="nngp")
    shifts = torch.stack([m.shift.detach() - 1e6 for m in made])
    wanted = 2e6 * shifts.std() / 50**0.5
    torch.testing.assert_close(got.standard_error[0, 1], wanted, rtol=1e-4, atol=0)


def test_draws_follow_the_seed() -> None:
    first = monte_carlo_kernel(net, X1, n_samples=3, seed=1)
    torch.randn(5)
    again = monte_carlo_kernel(net, X1, n_samples=3, seed=1)
    other = monte_carlo_kernel(net, X1, n_samples=3, seed=2)
    assert torch.equal(first.mean, again.mean)
    assert torch.equal(first.standard_error, again.standard_error)
    assert not torch.equal(first.mean, other.mean)


def test_a_longer_run_begins_like_a_shorter_one() -> None:
    short: list[nn.Module] = []
    long: list[nn.Module] = []
    monte_carlo_kernel(kept(short), X1, n_samples=2)
    monte_carlo_kernel(kept(long), X1, n_samples=4)
    for a, b in zip(short, long, strict=False):
        assert torch.equal(a[0].weight, b[0].weight)
    assert not torch.equal(long[0][0].weight, long[1][0].weight)


def test_all_generators_are_seeded_and_put_back() -> None:
    drawn = []

    def make() -> nn.Module:
        drawn.append((random.random(), float(np.random.rand()), float(torch.rand(()))))
        return net()

    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    monte_carlo_kernel(make, X1, n_samples=2)
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    assert before[:2] == after[:2]
    assert torch.equal(before[2], after[2])
    monte_carlo_kernel(make, X1, n_samples=2)
    assert drawn[:2] == drawn[2:]
    assert len(set(drawn[0]) | set(drawn[1])) == 6


def test_generators_are_put_back_after_a_failure() -> None:
    def make() -> nn.Module:
        torch.rand(3)
        raise RuntimeError("no network today")

    before = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="no network today"):
        monte_carlo_kernel(make, X1, n_samples=2)
    assert torch.equal(before, torch.get_rng_state())


def test_a_network_that_is_drawn_anew_in_place_and_may_be_trained() -> None:
    model = net()

    def make() -> nn.Module:
        for layer in (model[0], model[2]):
            layer.reset_parameters()
        loss = model(X1).square().mean()
        loss.backward()
        with torch.no_grad():
            for p in model.parameters():
                p -= 0.1 * p.grad
                p.grad = None
        return model

    with torch.no_grad():
        got = monte_carlo_kernel(make, X1, n_samples=4)
    assert bool((got.standard_error.diagonal() > 0).all())


def test_it_works_in_inference_mode_and_shows_progress(capsys: pytest.CaptureFixture[str]) -> None:
    plain = monte_carlo_kernel(net, X1, n_samples=3)
    assert capsys.readouterr().err == ""
    with torch.inference_mode():
        shown = monte_carlo_kernel(net, X1, n_samples=3, progress=True)
    assert torch.equal(plain.mean, shown.mean)
    assert "3/3" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "error", "names"),
    [
        ({"make_model": net()}, TypeError, r"`make_model`.*lambda"),
        ({"make_model": 3}, TypeError, "`make_model`"),
        ({"make_model": lambda: "net"}, TypeError, r"`make_model`.*'net'"),
        ({"make_model": lambda: None}, TypeError, r"`make_model`.*None"),
        ({"n_samples": 1}, ValueError, r"`n_samples` must be at least 2"),
        ({"n_samples": 0}, ValueError, "`n_samples`"),
        ({"n_samples": 2.0}, TypeError, "`n_samples`"),
        ({"kind": "cntk"}, ValueError, r"`kind` must be one of 'ntk', 'nngp'"),
        ({"seed": -1}, ValueError, "`seed`"),
        ({"seed": None}, TypeError, "`seed`"),
        ({"seed": True}, TypeError, "`seed`"),
        ({"x1": [1.0]}, TypeError, "`x1`"),
        ({"x2": 3.0}, TypeError, "`x2`"),
    ],
)
def test_bad_arguments(arguments: dict[str, object], error: type[Exception], names: str) -> None:
    good = {"make_model": net, "x1": X1, "x2": X2, "n_samples": 2}
    with pytest.raises(error, match=names):
        monte_carlo_kernel(**(good | arguments))  # type: ignore[arg-type]


def test_equal_draws_are_refused() -> None:
    model = net()
    with pytest.raises(ValueError, match=r"`make_model`.*two networks with equal weights"):
        monte_carlo_kernel(lambda: model, X1, n_samples=3)

    def seeded() -> nn.Module:
        torch.manual_seed(0)
        return net()

    with pytest.raises(ValueError, match=r"do not set a seed"):
        monte_carlo_kernel(seeded, X1, n_samples=3)
