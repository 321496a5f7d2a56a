"""What of a batch the network gets, by what its forward takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from torch_ntk.monitor import Probe
from torch_ntk.monitor.probe._probe import check_probe
from torch_ntk.monitor.probe._reader import Reader

X, M, Y = torch.arange(10.0).reshape(5, 2), torch.ones(5, 2), torch.arange(5)


class One(nn.Linear):
    def __init__(self) -> None:
        super().__init__(2, 3)


class Two(One):
    def forward(self, x: Tensor, mask: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x * mask)


class Maybe(One):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:  # type: ignore[override]
        return super().forward(x if mask is None else x * mask)


class WithFlag(One):
    def forward(self, x: Tensor, scaled: bool = False) -> Tensor:  # type: ignore[override]
        return super().forward(2 * x if scaled else x)


class WithLoss(One):
    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:  # type: ignore[override]
        return super().forward(x)


class NeedsLabels(One):
    def forward(self, x: Tensor, labels: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x) + labels[:, None]


class Decoding(One):
    """As encoders with a decoder, which reads other inputs, or else the targets."""

    def forward(  # type: ignore[override]
        self, x: Tensor, labels: Tensor | None = None, decoded: Tensor | None = None
    ) -> Tensor:
        read = labels if decoded is None else decoded
        assert read is not None
        return super().forward(x) + read[:, None]


class Anything(One):
    def forward(self, x: Tensor, **options: Any) -> Tensor:  # type: ignore[override]
        return super().forward(x)


class OfMapping(One):
    def forward(self, batch: Mapping[str, Any]) -> Tensor:  # type: ignore[override]
        return super().forward(batch["left"])


class Passing(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.inner(*args, **kwargs)


@dataclass
class Record:
    left: Tensor
    labels: Tensor


NAMED = {"x": X, "mask": M, "labels": Y, "path": ["a"] * 5}
READ: list[tuple[type[nn.Module], Any, Any, bool]] = [
    (One, X, X, False),
    (One, (X, Y), X, True),
    (One, [X, Y], X, True),
    (One, (X, M[:, 0], Y), X, False),
    (Two, (X, M), (X, M), False),
    (Two, (X, M, Y), (X, M), True),
    (Two, (X, M, Y, M), (X, M), False),
    (WithFlag, (X, Y), X, True),
    (WithLoss, (X, Y), X, True),
    (Maybe, (X, Y), X, True),  # labels are no mask
    (NeedsLabels, (X, Y), (X, Y), False),
    (One, NAMED, X, True),  # its only argument is `input`
    (Two, NAMED, {"x": X, "mask": M}, True),
    (Maybe, NAMED, {"x": X, "mask": M}, True),
    (WithLoss, NAMED, {"x": X}, True),
    (NeedsLabels, NAMED, {"x": X, "labels": Y}, True),
    (Decoding, NAMED, {"x": X, "labels": Y}, True),
    (Decoding, {"x": X, "decoded": Y}, {"x": X, "decoded": Y}, False),
    (Anything, NAMED, {"x": X, "mask": M, "path": ["a"] * 5}, True),
    (OfMapping, {"left": X, "labels": Y}, {"left": X, "labels": Y}, True),
    (Two, ({"x": X, "mask": M}, Y), {"x": X, "mask": M}, True),
    (OfMapping, ({"left": X}, Y), {"left": X}, True),
    (OfMapping, Record(X, Y), Record(X, Y), True),
]


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and torch.equal(a, b)
    if isinstance(a, Record):
        return isinstance(b, Record) and same(vars(a), vars(b))
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, tuple):
        return type(b) is tuple and len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


@pytest.mark.parametrize("passing", [False, True])
@pytest.mark.parametrize(("kind", "batch", "x", "labelled"), READ)
def test_inputs_and_targets(
    kind: type[nn.Module], batch: Any, x: Any, labelled: bool, passing: bool
) -> None:
    network = Passing(kind()) if passing else kind()
    found = Reader(network).read(batch)
    assert same(found.x, x)
    assert found.as_one == (kind is OfMapping and isinstance(x, dict))
    if labelled:
        assert torch.equal(found.y, Y)  # type: ignore[arg-type]
    else:
        assert found.y is None
    few = Reader(network).first_of(batch, 3)
    assert len(few) == 3


REFUSED: list[tuple[type[nn.Module], Any, str]] = [
    (Two, X, r"requires 2 arguments.* Pass input_fn=lambda batch: \(\(batch, <mask>\), None\)"),
    (Two, (X,), r"requires 2 arguments.* input_fn=lambda batch: \(\(batch\[0\], <mask>\), None\)"),
    (
        Maybe,
        (X, M),
        r"entry 1 may be `mask`.*input_fn=lambda batch: \(batch\[0\], batch\[1\]\) if it is "
        r"targets, and input_fn=lambda batch: \(\(batch\[0\], batch\[1\]\), None\) if it is `mask`",
    ),
    (Maybe, (X, M, Y), r"entry 1 may be `mask`"),
    (One, (X, X + 1.0), r"second view.*input_fn=lambda batch: batch\[0\] if it is a view"),
    (One, ([X, X + 1.0], Y), r"Pass input_fn=lambda batch: \(batch\[0\]\[0\], batch\[1\]\)\."),
    (Two, {"x": X, "labels": Y}, r"requires \['mask'\].*input_fn=lambda batch: \{'x': batch\["),
    (
        One,
        {"meta": {"class": Y}, "left": X},
        r"keys \['left', 'meta'\]. Pass input_fn=lambda batch: batch\['left'\]\.",
    ),
]


@pytest.mark.parametrize(("kind", "batch", "text"), REFUSED)
def test_what_cannot_be_told_is_refused_with_what_to_pass(
    kind: type[nn.Module], batch: Any, text: str
) -> None:
    with pytest.raises(TypeError, match=f"`probe` must be taken from a batch of .*{text}"):
        Reader(kind()).read(batch)


def test_the_arguments_that_errors_name_are_right() -> None:
    pair = Reader(Maybe(), input_fn=lambda batch: (batch[0], batch[1])).read((X, M))
    assert same(pair.x, X)
    assert same(pair.y, M)
    both = Reader(Maybe(), input_fn=lambda batch: ((batch[0], batch[1]), None)).read((X, M))
    assert same(both.x, (X, M))
    assert both.y is None
    views = Reader(One(), input_fn=lambda batch: batch[0]).read((X, X + 1.0))
    assert same(views.x, X)
    view = Reader(One(), input_fn=lambda batch: (batch[0][0], batch[1])).read(([X, X + 1.0], Y))
    assert same(view.x, X)
    assert same(view.y, Y)
    with_mask = Reader(Two(), input_fn=lambda batch: (batch, torch.ones_like(batch))).read(X)
    assert same(with_mask.x, (X, M))


def test_input_fn_gives_any_form() -> None:
    named = Reader(Two(), input_fn=lambda b: {"x": b[1], "mask": b[0]}).read((M, X))
    assert same(named.x, {"x": X, "mask": M})
    three = Reader(Two(), input_fn=lambda b: (b["a"], b["b"], b["c"])).read(
        {"a": X, "b": M, "c": Y}
    )
    assert same(three.x, (X, M))
    assert same(three.y, Y)


def test_forward_fn_gets_a_mapping_as_it_is() -> None:
    batch = {"x": X, "mask": M, "labels": Y}

    def loss(net: nn.Module, batch: Any) -> Tensor:
        out = net(batch["x"] * batch["mask"])
        return nn.functional.cross_entropy(out, batch["labels"] % 3, reduction="none")

    found = Reader(One(), forward_fn=loss).read(batch)
    assert same(found.x, batch)
    assert same(found.y, Y)
    # One of the usual input alone goes on to work.
    found = Reader(One(), forward_fn=lambda net, x: net(x)).read(batch)
    assert same(found.x, X)
    assert same(Reader(One(), forward_fn=lambda net, x: net(x)).read((X, Y)).x, X)


def test_samples_that_a_user_gives() -> None:
    given = check_probe((X, M))
    assert isinstance(given, Probe)
    assert same(Reader(Two()).fit(given).x, (X, M))
    assert same(Reader(One()).fit(given).y, M)
    given = check_probe(({"left": X}, Y))
    assert isinstance(given, Probe)
    assert Reader(OfMapping()).fit(given).as_one


def test_a_trial_leaves_no_trace() -> None:
    class Counts(OfMapping):
        calls = 0

        def forward(self, batch: Mapping[str, Any]) -> Tensor:  # type: ignore[override]
            self.calls += 1
            torch.rand(1)
            return super().forward(batch)

    network = Counts().train()
    state = torch.get_rng_state()
    Reader(network).read({"left": X})
    assert network.training
    assert network.calls == 0
    assert torch.equal(torch.get_rng_state(), state)
