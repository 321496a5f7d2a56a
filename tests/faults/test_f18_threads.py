"""Two threads that measure at the same time: right values, and nothing stays changed."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch
from oracle import built, error, full, inputs, jacobian, outputs_and_jacobian
from torch import nn
from traces import settings, snapshot

from torch_ntk import NTKOperator, empirical_nngp, empirical_ntk, linearize, verify

X = inputs(8, 6)


def _network() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 32), nn.Tanh(), nn.Dropout(0.5), nn.Linear(32, 3))


def _attention() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (3, 2)),
        nn.TransformerEncoderLayer(2, 1, 4, dropout=0.1, batch_first=True),
        nn.Flatten(),
        nn.Linear(6, 3),
    )


F_0, J = outputs_and_jacobian(built(_network), X)
CALLS: dict[str, Callable[[nn.Module], float]] = {
    "auto": lambda net: error(empirical_ntk(net, X), full(J)),
    "jacobian": lambda net: error(empirical_ntk(net, X, method="jacobian"), full(J)),
    "vector_product": lambda net: error(empirical_ntk(net, X, method="vector_product"), full(J)),
    "operator": lambda net: error(
        NTKOperator(net, X) @ torch.ones(24, dtype=X.dtype),
        full(J).sum(dim=(1, 3)).reshape(-1),
    ),
    "nngp": lambda net: error(empirical_nngp(net, X), F_0 @ F_0.t() / 3),
    "linearize": lambda net: error(linearize(net)(X), F_0),
    "verify": lambda net: 0.0 if verify(net, X, samples=2).is_right else 1.0,
}


def _together(works: list[Callable[[], object]]) -> list[BaseException]:
    """All at the same time; what was raised."""
    raised: list[BaseException] = []
    start = threading.Barrier(len(works))

    def run(work: Callable[[], object]) -> None:
        start.wait()
        try:
            work()
        except BaseException as error:
            raised.append(error)

    threads = [threading.Thread(target=run, args=(w,), daemon=True) for w in works]
    for t in threads:
        t.start()
    for t in threads:
        t.join(timeout=60)
    assert not any(t.is_alive() for t in threads), "they wait for each other"
    return raised


@pytest.mark.parametrize("second", CALLS)
@pytest.mark.parametrize("shared", [True, False], ids=["one model", "two models"])
def test_values_and_traces(shared: bool, second: str) -> None:
    net = built(_network)
    other = net if shared else built(_network)
    before = (snapshot(net, X), snapshot(other, X), settings())
    errors: list[float] = []

    def measure(model: nn.Module, call: str) -> None:
        for _ in range(5 if call != "verify" else 1):
            errors.append(CALLS[call](model))

    raised = _together([lambda: measure(net, "auto"), lambda: measure(other, second)])
    after = (snapshot(net, X), snapshot(other, X), settings())
    try:
        assert not raised, raised
        assert max(errors) < 1e-10
        for old, new in zip(before, after, strict=True):
            assert not [k for k in old if old[k] != new[k]]
    finally:
        torch.compiler.set_stance("default")


def test_switches_of_the_process() -> None:
    """Autocast, precisions and attention kernels, chosen by the user, stay as they are."""
    net = built(_attention)
    j = jacobian(built(_attention), X)
    torch.backends.mha.set_fastpath_enabled(False)
    torch.backends.cuda.enable_flash_sdp(False)
    before, errors = settings(), []
    try:

        def measure() -> None:
            with torch.autocast("cpu", torch.bfloat16):
                for _ in range(3):
                    errors.append(error(empirical_ntk(net, X), full(j)))
                assert torch.is_autocast_enabled("cpu")

        raised = _together([measure, measure, measure])
        assert not raised, raised
        assert max(errors) < 1e-10
        assert settings() == before
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
        torch.backends.cuda.enable_flash_sdp(True)
        torch.compiler.set_stance("default")


def test_a_thread_that_fails() -> None:
    """A refusal in one thread neither ends nor disturbs the other."""
    net = built(_network)
    before, errors = snapshot(net, X), []

    def wrong() -> None:
        for _ in range(5):
            with pytest.raises(ValueError, match=r"^`"):
                empirical_ntk(net, X[:, :5])

    def right() -> None:
        for _ in range(5):
            errors.append(CALLS["auto"](net))

    raised = _together([wrong, right])
    try:
        assert not raised, raised
        assert max(errors) < 1e-10
        assert snapshot(net, X) == before
    finally:
        torch.compiler.set_stance("default")
