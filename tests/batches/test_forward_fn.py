"""`forward_fn` says how a model is called and what its outputs are, in every function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from batch_forms import OfParts, built, full, loop, mapping, off, parts
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from torch_ntk import NTKOperator, empirical_nngp, empirical_ntk, explain, verify

METHODS = ("auto", "structured", "jacobian", "vector_product")
ForwardFn = Callable[[Any, Any], Tensor]


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(4, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        h = torch.tanh(self.body(features))
        return {"hidden": h, "scores": self.head(h)}


def per_sample_loss(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch["x"])["scores"], batch["y"], reduction="none")


def margin(model: nn.Module, batch: Any) -> Tensor:
    scores = model(batch["x"])["scores"]
    right = scores.gather(1, batch["y"][:, None])
    others = scores.masked_fill(F.one_hot(batch["y"], 3).bool(), -torch.inf)
    return right - others.logsumexp(1, keepdim=True)


def chosen_log_probability(model: nn.Module, batch: Any) -> Tensor:
    return model(batch["x"])["scores"].log_softmax(-1).gather(1, batch["y"][:, None])


def hidden(model: nn.Module, batch: Any) -> Tensor:
    return model(batch["x"])["hidden"]


FUNCTIONS = [per_sample_loss, margin, chosen_log_probability, hidden]


def targets(n: int, seed: int = 0) -> dict[str, Any]:
    y = torch.randint(3, (n,), generator=torch.Generator().manual_seed(seed))
    return {"x": parts(n, seed)[0], "y": y}


def one_by_one(batch: dict[str, Any]) -> list[dict[str, Any]]:
    names = list(batch)
    each = zip(*(t.split(1) for t in batch.values()), strict=True)
    return [dict(zip(names, tensors, strict=True)) for tensors in each]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("f", FUNCTIONS)
def test_kernels(f: ForwardFn, method: Any) -> None:
    net, a, b = built(Classifier), targets(4), targets(3, 1)
    found = empirical_ntk(net, a, b, method=method, forward_fn=f)
    _, j1 = loop(net, one_by_one(a), f)
    _, j2 = loop(net, one_by_one(b), f)
    assert off(found, full(j1, j2)) < 1e-10


@pytest.mark.parametrize("f", FUNCTIONS)
def test_other_functions(f: ForwardFn) -> None:
    net, batch = built(Classifier), targets(4)
    out, j = loop(net, one_by_one(batch), f)
    n, o, _ = j.shape
    matrix = full(j, j).permute(0, 2, 1, 3).reshape(n * o, n * o)
    operator = NTKOperator(net, batch, forward_fn=f)
    assert off(operator @ torch.eye(n * o).double(), matrix) < 1e-10
    assert off(operator.to_dense(), matrix) < 1e-10
    other = targets(3, 1)
    _, j2 = loop(net, one_by_one(other), f)
    between = full(j, j2).permute(0, 2, 1, 3).reshape(n * o, 3 * o)
    rectangular = NTKOperator(net, batch, other, forward_fn=f)
    assert off(rectangular @ torch.eye(3 * o).double(), between) < 1e-10
    assert off(rectangular.T @ torch.eye(n * o).double(), between.T) < 1e-10
    assert off(empirical_nngp(net, batch, forward_fn=f), out @ out.T / o) < 1e-10
    checks = verify(net, batch, forward_fn=f).checks
    assert [c for c in checks if c.dtype == torch.float64 and not c.error < 1e-10] == []
    assert all(
        c.is_right
        for c in verify(built(Classifier).float(), batch_in_float(batch), forward_fn=f).checks
    )
    assert {line.uses for line in explain(net, batch, forward_fn=f).lines} == {1}


def batch_in_float(batch: dict[str, Any]) -> dict[str, Any]:
    return {"x": batch["x"].float(), "y": batch["y"]}


def test_the_form_that_it_gets() -> None:
    seen: list[type] = []

    def f(model: nn.Module, batch: Any) -> Tensor:
        seen.append(type(batch))
        assert isinstance(model, OfParts)
        return model(*batch)

    net, p = built(OfParts), parts(3)
    found = empirical_ntk(net, list(p), forward_fn=f)
    assert set(seen) == {list}
    assert torch.equal(found, empirical_ntk(net, mapping(p)))
    assert torch.equal(found, empirical_ntk(net, p))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(2, 3, batch_first=True)
        self.head = nn.Linear(3, 2)

    def forward(self, packed: Any) -> Tensor:
        return self.head(self.lstm(packed)[1][0][-1])


def pack_and_call(model: nn.Module, batch: Any) -> Tensor:
    packed = pack_padded_sequence(
        batch["x"], batch["lengths"].cpu(), batch_first=True, enforce_sorted=False
    )
    return model(packed)


@pytest.mark.parametrize("method", METHODS)
def test_packed_sequences(method: Any) -> None:
    net = built(Recurrent)
    x = torch.randn(3, 5, 2, dtype=torch.float64)
    batch = {"x": x, "lengths": torch.tensor([5, 2, 3])}
    found = empirical_ntk(net, batch, method=method, forward_fn=pack_and_call)
    _, j = loop(net, one_by_one(batch), pack_and_call)
    assert off(found, full(j, j)) < 1e-10
    x[1, 2:] = 7.0  # padding counts for nothing
    again = empirical_ntk(net, batch, method=method, forward_fn=pack_and_call)
    assert off(again, full(j, j)) < 1e-10


class Halves(nn.Module):
    """What `forward_fn` reaches besides the model: constants, and the same parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 3)


def test_parameters_that_it_uses_directly() -> None:
    net, x = built(Halves), parts(4)[0]

    def f(model: nn.Module, batch: Any) -> Tensor:
        return torch.tanh(batch @ model.a.weight.T) + net.a(batch)

    for method in METHODS:
        found = empirical_ntk(net, x, method=method, forward_fn=f)  # type: ignore[call-overload]
        _, j = loop(net, list(x.split(1)), f)
        assert off(found, full(j, j)) < 1e-10
    assert verify(net, x, forward_fn=f).is_right


def test_what_it_reaches_is_left_as_it_was() -> None:
    class Criterion(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.calls = 0
            self.register_buffer("total", torch.zeros(()))

        def forward(self, out: Tensor, y: Tensor) -> Tensor:
            self.calls += 1
            self.total += 1
            return F.cross_entropy(out, y, reduction="none")

    criterion, net, batch = Criterion(), built(Classifier), targets(3)

    def f(model: nn.Module, batch: Any) -> Tensor:
        return criterion(model(batch["x"])["scores"], batch["y"])

    found = empirical_ntk(net, batch, forward_fn=f)
    assert (criterion.calls, criterion.total.item(), criterion.training) == (0, 0.0, True)
    _, j = loop(net, one_by_one(batch), per_sample_loss)
    assert off(found, full(j, j)) < 1e-10


CALLS: dict[str, Callable[[nn.Module, Any, Any], object]] = {
    **{m: lambda net, x, f, m=m: empirical_ntk(net, x, method=m, forward_fn=f) for m in METHODS},  # type: ignore[misc]
    "nngp": lambda net, x, f: empirical_nngp(net, x, forward_fn=f),
    "operator": lambda net, x, f: NTKOperator(net, x, forward_fn=f),
}


@pytest.mark.parametrize("call", CALLS)
def test_another_number_of_rows(call: str) -> None:
    net, batch = built(Classifier), targets(3)

    def mean_loss(model: nn.Module, batch: Any) -> Tensor:
        return F.cross_entropy(model(batch["x"])["scores"], batch["y"])

    def flattened(model: nn.Module, batch: Any) -> Tensor:
        return model(batch["x"])["scores"].reshape(-1)

    def chosen(model: nn.Module, batch: Any) -> Tensor:
        return model(batch["x"])["scores"][batch["y"] > batch["y"].min()]

    for f in (mean_loss, flattened, chosen):
        with pytest.raises(ValueError, match=r"`forward_fn`.*one row of outputs per sample"):
            CALLS[call](net, batch, f)


@pytest.mark.parametrize("call", CALLS)
def test_no_tensor(call: str) -> None:
    def f(model: nn.Module, batch: Any) -> Any:
        return model(batch["x"])

    with pytest.raises(TypeError, match=r"`forward_fn` must be .* returns a tensor"):
        CALLS[call](built(Classifier), targets(3), f)
    with pytest.raises(TypeError, match=r"`forward_fn`.*real floating-point"):
        CALLS[call](built(Classifier), targets(3), lambda m, b: m(b["x"])["scores"].argmax(1))
    with pytest.raises(
        TypeError, match=r"`forward_fn` must be a function forward_fn\(model, batch\)"
    ):
        CALLS[call](built(Classifier), targets(3), "logits")


@pytest.mark.parametrize("call", CALLS)
def test_an_error_inside_of_it_is_told(call: str) -> None:
    with pytest.raises(ValueError, match=r"`forward_fn` must be .*KeyError.*labels"):
        CALLS[call](built(Classifier), targets(3), lambda m, b: m(b["labels"]))


def test_functions_have_none() -> None:
    w = {"w": torch.ones(4, 2)}
    with pytest.raises(TypeError, match="`forward_fn` must be None when `model` is a function"):
        empirical_ntk(lambda p, x: x @ p["w"], torch.ones(2, 4), params=w, forward_fn=margin)
