"""A batch of any form gives what loops over its samples give, in every function and method."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from batch_forms import FORMS, Scaled, built, by_name, full, loop, mapping, off, parts
from torch import Tensor, nn
from traces import snapshot

from torch_ntk import NTKOperator, empirical_nngp, empirical_ntk, explain, verify

METHODS = ("auto", "structured", "jacobian", "vector_product")


def rows(p: tuple[Tensor, ...]) -> list[Any]:
    return list(zip(*(t.split(1) for t in p), strict=True))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("form", FORMS)
def test_kernels(form: str, method: Any) -> None:
    make, of, call = FORMS[form]
    net, p1, p2 = built(make), parts(4), parts(3, 1)
    before = snapshot(net, *p1, *p2)
    found = empirical_ntk(net, of(p1), of(p2), method=method)
    assert snapshot(net, *p1, *p2) == before
    _, j1 = loop(net, [of(r) for r in rows(p1)], call)
    _, j2 = loop(net, [of(r) for r in rows(p2)], call)
    assert off(found, full(j1, j2)) < 1e-10


@pytest.mark.parametrize("form", FORMS)
def test_other_functions(form: str) -> None:
    make, of, call = FORMS[form]
    net, p = built(make), parts(4)
    f, j = loop(net, [of(r) for r in rows(p)], call)
    kernel = full(j, j)
    operator = NTKOperator(net, of(p))
    assert off(operator @ torch.eye(8).double(), kernel.permute(0, 2, 1, 3).reshape(8, 8)) < 1e-10
    assert off(operator.to_dense(), kernel.permute(0, 2, 1, 3).reshape(8, 8)) < 1e-10
    assert off(empirical_nngp(net, of(p)), f @ f.T / 2) < 1e-10
    checks = verify(net, of(p)).checks
    assert [c for c in checks if c.dtype == torch.float64 and not c.error < 1e-10] == []
    assert [line.rule for line in explain(net, of(p)).lines] == ["LinearUse", "BiasUse"] * 2


@pytest.mark.parametrize("how", ["batch_size", "max_memory", "one sample", "all equal"])
@pytest.mark.parametrize("method", METHODS)
def test_blocks_and_equal_samples(method: Any, how: str) -> None:
    net, p = built(FORMS["dict"][0]), parts(5)
    if how == "one sample":
        p = parts(1)
    if how == "all equal":
        p = tuple(t[:1].expand(5, *t.shape[1:]) for t in p)  # type: ignore[assignment]
    given: dict[str, Any] = {"batch_size": {"batch_size": 2}, "max_memory": {"max_memory": 40_000}}
    found = empirical_ntk(net, mapping(p), method=method, **given.get(how, {}))
    _, j = loop(net, [mapping(r) for r in rows(p)], by_name)
    assert off(found, full(j, j)) < 1e-10


class Exchanging(Scaled):
    """Looks at another sample of its batch where masks differ."""

    def forward(self, features: Tensor, scale: Tensor, mask: Tensor) -> Tensor:
        return self.outputs(features, scale, mask | mask.flip(0))


@pytest.mark.parametrize("method", METHODS)
def test_samples_that_differ_in_one_tensor_only_are_not_taken_for_equal(method: Any) -> None:
    net, (features, scale, mask) = built(Exchanging), parts(3)
    same = (features[:1].expand(3, 4), scale[:1].expand(3), mask)
    with pytest.raises(ValueError, match="one sample at a time"):
        empirical_ntk(net, mapping(same), method=method)


class Greedy(Scaled):
    """Writes into what it is given, and takes entries out of it."""

    def forward(self, features: Tensor, scale: Tensor, options: dict[str, Any]) -> Tensor:
        mask = options.pop("mask")
        options["new"] = options["steps"]
        options["notes"]["seen"].append(len(features))
        out = self.outputs(features.mul_(2.0), scale.add_(1.0), mask)
        return out * options["steps"]


@pytest.mark.parametrize("method", METHODS)
def test_a_forward_may_write_into_its_batch(method: Any) -> None:
    net, (features, scale, mask) = built(Greedy), parts(4)
    notes: dict[str, list[int]] = {"seen": []}
    options = {"mask": mask, "steps": 3, "notes": notes}
    batch = {"features": features, "scale": scale, "options": options}
    copies = [t.clone() for t in (features, scale, mask)]
    found = empirical_ntk(net, batch, method=method)
    assert list(options) == ["mask", "steps", "notes"]
    assert notes == {"seen": []}
    assert all(torch.equal(a, b) for a, b in zip(copies, (features, scale, mask), strict=True))

    def of(r: Any) -> dict[str, Any]:
        options = {"mask": r[2], "steps": 3, "notes": {"seen": []}}
        return {"features": r[0].clone(), "scale": r[1].clone(), "options": options}

    _, j = loop(net, [of(r) for r in rows((features, scale, mask))], by_name)
    assert off(found, full(j, j)) < 1e-10


class Additive(nn.Module):
    """A float mask that is added, an integer one that multiplies, and indices."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 3)
        self.head = nn.Linear(3, 2)

    def forward(self, ids: Tensor, bias: Tensor, keep: Tensor) -> Tensor:
        assert ids.dtype == torch.int32
        assert keep.dtype == torch.int64
        assert bias.dtype == self.head.weight.dtype
        h = self.embedding(ids) + bias[..., None]
        return self.head(torch.tanh(h) * keep[..., None]).sum(1)


def test_only_floating_tensors_are_converted() -> None:
    net = built(Additive).float()
    ids = torch.arange(8, dtype=torch.int32).reshape(2, 4) % 7
    bias, keep = torch.randn(2, 4), torch.tensor([[1, 1, 1, 0], [1, 0, 1, 2]])
    batch = {"ids": ids, "bias": bias, "keep": keep}
    found = empirical_ntk(net, batch, dtype=torch.float64)
    double = built(Additive)
    each = [{"ids": i, "bias": b, "keep": k} for i, b, k in rows((ids, bias.double(), keep))]
    double.load_state_dict({n: t.double() for n, t in net.state_dict().items()})
    _, j = loop(double, each, by_name)
    assert off(found, full(j, j)) < 1e-10
    assert empirical_ntk(net, batch).dtype == torch.float32


def test_a_function_gets_the_batch_as_it_came() -> None:
    p = parts(3)
    w = torch.randn(4, 2, dtype=torch.float64)

    def f(params: dict[str, Tensor], batch: Any) -> Tensor:
        assert isinstance(batch, dict)
        return torch.tanh(batch["features"] @ params["w"]) * batch["scale"][:, None]

    net = nn.Linear(4, 2, bias=False).double()
    net.weight.data = w.T.clone()
    kernel = empirical_ntk(f, mapping(p), params={"w": w}, output="mean")

    def call(net: nn.Module, batch: Any) -> Tensor:
        return torch.tanh(net(batch["features"])) * batch["scale"][:, None]

    out, j = loop(net, [mapping(r) for r in rows(p)], call)
    assert off(kernel, torch.einsum("nmii->nm", full(j, j)) / 2) < 1e-10
    assert off(empirical_nngp(f, mapping(p), params={"w": w}), out @ out.T / 2) < 1e-10
    assert verify(f, mapping(p), params={"w": w}).is_right


def test_a_dict_is_evaluated_as_often_as_a_tensor() -> None:
    class Counted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            calls.append(len(x))
            return torch.tanh(self.a(x))

    calls: list[int] = []
    net, x = built(Counted), parts(16)[0]
    for method in METHODS:
        calls.clear()
        plain = empirical_ntk(net, x, method=method)  # type: ignore[call-overload]
        of_tensor = list(calls)
        calls.clear()
        assert torch.equal(plain, empirical_ntk(net, {"x": x}, method=method))  # type: ignore[call-overload]
        assert calls == of_tensor


def test_an_operator_is_a_snapshot_of_its_batch() -> None:
    net, p = built(FORMS["UserDict"][0]), parts(3)
    batch = FORMS["UserDict"][1](p)
    operator, v = NTKOperator(net, batch), torch.ones(6, dtype=torch.float64)
    before = operator @ v
    batch["features"] = torch.zeros(3, 4, dtype=torch.float64)
    batch["more"] = 1
    p[1].zero_()
    assert torch.equal(operator @ v, before)
