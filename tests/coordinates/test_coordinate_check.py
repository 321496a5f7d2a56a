"""Sizes and slopes against a training written out, and against the exponents of theory."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from mup import INPUTS, OUTPUTS, mup, mup_optimizer, ntk, standard, trained_by_hand
from torch import Tensor, nn
from torch.optim import SGD

from torch_ntk import coordinate_check, empirical_ntk
from torch_ntk.plotting import plot_coordinates

WIDTHS = [8, 16, 32]


def data(n: int = 12) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(3)
    x = torch.randn(n, INPUTS, generator=g, dtype=torch.float64)
    return x, torch.randn(n, OUTPUTS, generator=g, dtype=torch.float64)


def keeping(make: Callable[[int], nn.Module], kept: list[list[Tensor]]) -> Callable[..., nn.Module]:
    """`make`, which keeps the weights that it draws."""

    def made(n: int) -> nn.Module:
        net = make(n)
        kept.append([p.detach().clone() for p in net.parameters()])
        return net

    return made


def rms(h: Tensor) -> float:
    return float(h.norm()) / math.sqrt(h.numel())


def test_sizes_are_those_of_a_training_written_out() -> None:
    x, y = data()
    kept: list[list[Tensor]] = []
    check = coordinate_check(
        keeping(mup, kept), WIDTHS, x, y, optimizer=mup_optimizer, steps=4, seeds=2
    )
    assert len(kept) == 6
    for k, weights in enumerate(kept):
        w, s = divmod(k, 2)
        n = WIDTHS[w]
        rates = [1e-3 * n, 1e-3, 1e-3 / n]
        start, end, moved = trained_by_hand(weights, x, y, rates, 4)
        for name, first, last in zip(("0", "2", "output"), start, end, strict=True):
            got = check["activation", name].values[s, w], check["change", name].values[s, w]
            assert float(got[0]) == pytest.approx(rms(first), rel=1e-12)
            assert float(got[1]) == pytest.approx(rms(last - first), rel=1e-9)
        pairs = list(zip(moved, weights, strict=True))
        for name, (a, b) in zip(("0.weight", "2.weight", "4.weight"), pairs, strict=True):
            want = float((a - b).norm() / b.norm())
            assert float(check["movement", name].values[s, w]) == pytest.approx(want, rel=1e-9)
        square = sum(float((a - b).square().sum()) for a, b in pairs)
        whole = math.sqrt(square / sum(float(b.square().sum()) for _, b in pairs))
        got_all = float(check["movement", "all parameters"].values[s, w])
        assert got_all == pytest.approx(whole, rel=1e-9)
    size = check["change", "2"]
    fits = [np.polyfit(np.log(WIDTHS), np.log(row), 1)[0] for row in size.values.numpy()]
    assert size.slope == pytest.approx(np.mean(fits), rel=1e-9)
    assert size.standard_error == pytest.approx(abs(fits[0] - fits[1]) / 2, rel=1e-9)
    assert [s.name for s in check.sizes if s.kind == "change"] == ["0", "2", "output"]


# Exponents of width after one small step of gradient descent, with δ_l the derivative of an output
# by the pre-activations of layer l, of norm 1 (standard and NTK) or n^-½ (μP):
# standard: Δh_1 = -η δ_1 ⟨x, x'⟩: entries n^-½; Δh_2 = -η δ_2 ⟨h, h'⟩: n^-½ · n; Δf = -η ⟨h, h'⟩.
# NTK: each of these with 1/n for the scale of the layer, but that of the inputs.
# μP: entries of δ are n^-1, and learning rates n, 1, 1/n: all changes are of order 1.
EXPONENTS = {
    "standard": {"0": -0.5, "2": 0.5, "output": 1.0, "Θ_0": 1.0, "all parameters": 0.0},
    "ntk": {"0": -0.5, "2": -0.5, "output": 0.0, "Θ_0": 0.0, "all parameters": -1.0},
    "mup": {"0": 0.0, "2": 0.0, "output": 0.0},
}


@pytest.mark.parametrize("make", [standard, ntk, mup], ids=lambda make: make.__name__)
def test_slopes_are_those_of_theory(make: Callable[[int], nn.Module]) -> None:
    x, y = data(16)
    options: dict[str, Any] = {"lr": 1e-5 if make is standard else 1e-2}
    if make is mup:
        options = {"optimizer": mup_optimizer}
    check = coordinate_check(
        make,
        [64, 128, 256, 512],
        x,
        6.0 * y,  # large beside f_0, which is random
        steps=1,
        seeds=4,
        kernel=make is not mup,
        **options,
    )
    kinds = {"Θ_0": "kernel", "all parameters": "movement"}
    for name, exponent in EXPONENTS[make.__name__].items():
        assert check.slope(kinds.get(name, "change"), name) == pytest.approx(exponent, abs=0.15)
    assert check.slope("activation", "2") == pytest.approx(0.0, abs=0.1)
    if make is mup:  # f_0 is a sum of n independent terms of size 1/n
        assert check.slope("activation", "output") == pytest.approx(-0.5, abs=0.2)


def test_the_kernel_is_that_of_the_network() -> None:
    x, _ = data(5)
    nets: list[nn.Module] = []

    def make(n: int) -> nn.Module:
        nets.append(ntk(n))
        return nets[-1]

    check = coordinate_check(make, WIDTHS, x, lr=1e-2, steps=2, seeds=1, kernel=True)
    assert math.isnan(check["kernel", "Θ_0"].standard_error)
    # The networks have been trained; their kernels at the end are known, and sizes at the start.
    ends = [empirical_ntk(net, x, output="mean") for net in nets]
    size, moved = (check["kernel", n].values[0] for n in ("Θ_0", "Θ_t - Θ_0, relative"))
    for k, end in enumerate(ends):
        assert abs(rms(end) - float(size[k])) <= float(size[k] * moved[k]) * (1 + 1e-9)
        assert 0 < float(moved[k]) < 0.1


class Odd(nn.Module):
    """One layer twice, an activation that writes in place, dropout, a tuple, draws of NumPy."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.first, self.twice = nn.Linear(4, n), nn.Linear(n, n)
        self.act, self.drop = nn.ReLU(inplace=True), nn.Dropout(0.5)
        self.rnn, self.head = nn.GRU(n, n, batch_first=True), nn.Linear(n, 3)

    def forward(self, x: Tensor, lengths: Tensor) -> dict[str, Tensor]:
        h = self.act(self.first(x))
        h = self.drop(self.act(self.twice(self.act(self.twice(h)))))
        h, _ = self.rnn(h[:, None] * float(1 + 0 * np.random.rand()))  # noqa: NPY002
        return {"logits": self.head(h[:, 0]) / lengths[:, None], "hidden": h}


def test_any_network_is_looked_at_and_nothing_is_disturbed() -> None:
    batch = {"x": torch.randn(6, 4), "lengths": torch.arange(1, 7)}
    y = torch.arange(6) % 3
    before = torch.get_rng_state(), np.random.get_state()[1], random.getstate()  # noqa: NPY002
    values = {k: v.clone() for k, v in batch.items()}
    with torch.inference_mode():
        check = coordinate_check(Odd, [4, 8], batch, y, steps=1, lr=0.0, seeds=2)
    names = [s.name for s in check.sizes if s.kind == "activation"]
    assert names == ["first", "twice", "twice (2)", "rnn", "head", "output"]
    # Without a step nothing changes: dropout leaves out the same units in both passes, and what an
    # activation wrote into is not taken for a change.
    assert all(float(s.values.max()) == 0 for s in check.sizes if s.kind in ("change", "movement"))
    assert math.isnan(check.slope("change"))
    with torch.random.fork_rng():
        first = float(check["activation", "first"].values.min())
    assert first > 0
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])  # noqa: NPY002
    assert before[2] == random.getstate()
    assert all(torch.equal(values[k], v) for k, v in batch.items())


def test_a_training_that_diverges_has_no_slope_and_is_drawn() -> None:
    x, y = data()
    check = coordinate_check(standard, [16, 32], x.float().double(), y, lr=1e200, steps=4, seeds=2)
    assert math.isnan(check.slope("change"))
    assert not math.isnan(check.slope("activation"))
    assert "nan" in str(check)
    assert json.loads(json.dumps(check.to_dict()))["widths"] == [16, 32]
    figure, axes = check.plot()
    assert axes.shape == (3, 1)
    figure.savefig("/dev/null", format="png")


def test_parameterizations_side_by_side() -> None:
    x, y = data()
    checks = {
        make.__name__: coordinate_check(make, WIDTHS, x, y, steps=1, seeds=2)
        for make in (standard, ntk)
    }
    figure, axes = plot_coordinates(checks, kinds=["change", "movement"], title="widths")
    assert axes.shape == (2, 2)
    assert [a.get_title() for a in axes[0]] == ["standard", "ntk"]
    line = axes[0, 1].lines[-1]
    assert np.allclose(line.get_ydata(), checks["ntk"]["change", "output"].mean.numpy())
    assert line.get_label() == f"output: {checks['ntk'].slope('change'):+.2f}"
    assert figure.get_suptitle() == "widths"
    with pytest.raises(ValueError, match="kernel=True"):
        plot_coordinates(checks, kinds=["kernel"])


X, Y = data()


@pytest.mark.parametrize(
    ("changed", "error", "text"),
    [
        ({"make_model": ntk(3)}, TypeError, "lambda width"),
        ({"make_model": lambda n: 3}, TypeError, "returns a module"),
        ({"make_model": lambda n: ntk(4)}, ValueError, "same shapes"),
        (
            {"make_model": lambda n: ntk(n) if n < 16 else ntk(n)[:3], "y": None},
            ValueError,
            "same modules",
        ),
        ({"widths": [8]}, ValueError, "two widths"),
        ({"widths": [8, 0]}, ValueError, "positive"),
        ({"widths": 8}, TypeError, "widths"),
        ({"x": 3}, TypeError, "`x`"),
        ({"y": torch.zeros(12, 3)}, ValueError, "loss="),
        ({"y": torch.zeros(12, 2, dtype=torch.int64)}, ValueError, "loss="),
        ({"loss": lambda f, y: f}, TypeError, "scalar"),
        ({"lr": -1.0}, ValueError, "`lr`"),
        ({"lr": 1.0, "optimizer": mup_optimizer}, ValueError, "one of the two"),
        ({"optimizer": SGD(ntk(3).parameters(), 0.1)}, TypeError, "lambda model, width"),
        ({"optimizer": lambda net, n: net}, TypeError, "optimizer"),
        ({"modules": ["nothing*"]}, ValueError, "nothing"),
        ({"fit_from": 32}, ValueError, "second largest"),
        ({"seeds": 0}, ValueError, "seeds"),
        ({"seed": -1}, ValueError, "seed"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_mistakes_are_named(changed: dict[str, Any], error: type, text: str) -> None:
    arguments: dict[str, Any] = {"make_model": ntk, "widths": [8, 16], "x": X, "y": Y, "steps": 1}
    with pytest.raises(error, match=text):
        coordinate_check(**{**arguments, **changed})
    with pytest.raises(KeyError, match="output"):
        coordinate_check(ntk, [8, 16], X, Y, steps=1, seeds=1)["change", "nowhere"]
