"""A kernel that several processes take together: theirs adds up to it, or the first one does it."""

from __future__ import annotations

import copy
import itertools
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed import HashStore

from torch_ntk.monitor import Monitor
from torch_ntk.monitor.loop import _shared_kernel, _sharing
from torch_ntk.monitor.loop._shared_kernel import SharedKernel
from torch_ntk.monitor.loop._sharing import Sharing, fingerprint, share_of
from torch_ntk.monitor.measure import _evaluation

METRICS = ("drift", "lambda_min", "param_drift", "linearization_gap")
X, Y = torch.randn(12, 5, generator=torch.Generator().manual_seed(1)), torch.arange(12) % 3


@pytest.fixture(autouse=True)
def _always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_shared_kernel, "_WORTH_SHARING", 0.0)
    monkeypatch.setattr(_sharing, "_LEAST_PATIENCE", 0.01)


def network(outputs: int = 3) -> nn.Module:
    torch.manual_seed(0)
    hidden = (nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Tanh())
    return nn.Sequential(*hidden, nn.Linear(8, outputs)).double()


def step(net: nn.Module) -> None:
    """The same in every process."""
    net.zero_grad()
    net(X.double()).square().sum().backward()
    with torch.no_grad():
        for p in net.parameters():
            p -= 0.01 * p.grad


class Run:
    """Steps of three processes in turns, the others before the first one."""

    def __init__(self, outputs: int = 3, processes: int = 3, **options: Any) -> None:
        store = HashStore()
        given = {"metrics": METRICS, "every_n_steps": 1, **options}
        self.nets = [network(outputs) for _ in range(processes)]
        self.monitors = [Monitor(8, **given) for _ in self.nets]
        for rank, monitor in enumerate(self.monitors):
            session, sharing = monitor._session, Sharing(store, rank, processes, "name")
            session.schedule.start()
            session.shared_kernel = SharedKernel(session.record, session.settings, sharing)
        self.alone = Monitor(8, **given)
        self.answered: list[int] = []

    def go(self, steps: int, before: Callable[[int, Run], None] = lambda k, run: None) -> None:
        for k in range(steps):
            before(k, self)
            batch = (X[:8].double(), Y[:8])
            for rank, (net, monitor) in enumerate(zip(self.nets, self.monitors, strict=True)):
                if rank:  # each process has a batch of its own, and these go first
                    own = (X[8:].double(), Y[8:])
                    monitor._session.assist(lambda net=net: net, k, own)
            shared = [monitor._session.shared_kernel for monitor in self.monitors]
            self.answered.append(sum(s is not None and s._kept is not None for s in shared))
            self.monitors[0].step(self.nets[0], batch=batch, step=k)
            self.alone.step(self.nets[0], batch=batch, step=k)
            for net in self.nets:
                step(net)

    def equal(self) -> None:
        shared, alone = self.monitors[0].history, self.alone.history
        assert shared["step"] == alone["step"]
        for name in METRICS:
            a, b = shared[f"ntk/{name}"], alone[f"ntk/{name}"]
            torch.testing.assert_close(torch.tensor(a), torch.tensor(b), rtol=1e-9, atol=1e-12)
        assert shared["ntk/drift"][-1] > 0.0


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[slice]:
    """Which parts of kernels were taken, by whichever process."""
    found: list[slice] = []
    original = _evaluation.Evaluation.kernel_of_some

    def noting(self: Any, network: Any, names: Any, probe: Any, part: slice) -> Tensor:
        found.append(part)
        return original(self, network, names, probe, part)

    monkeypatch.setattr(_evaluation.Evaluation, "kernel_of_some", noting)
    return found


@pytest.mark.parametrize(
    ("outputs", "options", "shares"),
    [
        (3, {}, 3),
        (7, {"output": "trace"}, 7),
        (80, {}, 8),  # directions
        (2, {}, 2),  # fewer than processes
    ],
)
def test_shares_add_up(
    outputs: int, options: dict[str, Any], shares: int, taken: list[slice]
) -> None:
    run = Run(outputs, **options)
    run.go(4)
    run.equal()
    each = min(3, shares)
    assert len(taken) == 2 * each
    for parts in (taken[:each], taken[each:]):  # at steps 2 and 3: nothing twice, nothing left out
        numbers = sorted(k for part in parts for k in range(part.start, part.stop))
        assert numbers == list(range(shares))


def test_a_budget_asks_a_step_ahead(taken: list[slice]) -> None:
    run = Run(every_n_steps=None, max_overhead=0.9)
    calls = itertools.count()
    schedule = run.monitors[0]._session.schedule
    schedule._clock = lambda: 10.0 * next(calls)
    schedule._start = schedule._seen = 0.0
    run.go(9)
    assert run.monitors[0].history["step"] == [0, 2, 4, 6, 8]
    assert len(taken) == 4 * 3


def _other_buffer(k: int, run: Run) -> None:
    run.nets[1].register_buffer("scale", torch.tensor(float(k)))


def _other_weight(k: int, run: Run) -> None:
    with torch.no_grad():
        run.nets[1][0].weight[0, 0] += 1e-14


def _other_function(k: int, run: Run) -> None:
    """What no parameter, buffer or sample shows."""
    net = run.nets[1]
    run.monitors[1]._session._network = None
    scale = lambda x: 1.0 if len(x) == 12 else 1.01  # noqa: E731, not in the training
    net.forward = lambda x, net=net: type(net).forward(net, x) * scale(x)  # type: ignore[method-assign]


def _fails(k: int, run: Run) -> None:
    run.monitors[1]._session.settings = None  # type: ignore[assignment]


def _is_silent(k: int, run: Run) -> None:
    run.monitors[1]._session.shared_kernel = None


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (_other_buffer, "process 1 has other parameters, buffers or samples"),
        (_other_weight, "process 1 has other parameters, buffers or samples"),
        (_other_function, "process 1 has other outputs on the samples"),
        (_fails, "process 1 failed: AttributeError: "),
        (_is_silent, "process 1 did not answer in time"),
    ],
)
def test_what_another_process_cannot_do_the_first_one_does(
    wrong: Callable[[int, Run], None], why: str, taken: list[slice]
) -> None:
    run = Run(processes=2)
    said: list[str] = []
    run.monitors[0]._session.say = said.append
    run.go(6, wrong)
    run.equal()
    shared = run.monitors[0]._session.shared_kernel
    assert shared is not None
    sharing = shared.sharing
    assert 2 <= sharing._missed <= 3  # one more was asked ahead, and then no more
    assert not sharing._asked
    assert len(said) == 1
    assert why in said[0]


@pytest.mark.parametrize("options", [{"output": "full"}, {"output": "pseudo"}])
def test_what_is_no_sum_over_outputs_is_not_shared(
    options: dict[str, Any], taken: list[slice]
) -> None:
    run = Run(**options)
    run.go(3)
    run.equal()
    assert not taken


def test_a_process_that_assists_changes_nothing() -> None:
    run = Run(processes=2)
    before: dict[str, Tensor] = {}

    def keep(k: int, run: Run) -> None:
        before.update(copy.deepcopy(run.nets[1].state_dict()))
        torch.manual_seed(k)

    def check(k: int, run: Run) -> None:
        random = torch.get_rng_state()
        run.monitors[1]._session.assist(lambda: run.nets[1], k, (X[8:].double(), Y[8:]))
        assert torch.equal(random, torch.get_rng_state())
        assert all(torch.equal(before[n], t) for n, t in run.nets[1].state_dict().items())

    run.go(3, lambda k, run: (keep(k, run), check(k, run))[0])
    assert run.answered[-1] == 1
    assert run.monitors[1].history == {}


def test_shares() -> None:
    for count in range(1, 12):
        for places in range(1, 6):
            parts = [share_of(count, k, places) for k in range(places)]
            sizes = [part.stop - part.start for part in parts]
            assert [k for part in parts for k in range(part.start, part.stop)] == [*range(count)]
            assert max(sizes) - min(sizes) <= 1
            assert sizes[0] == min(sizes)


def test_a_fingerprint_sees_bits_and_names() -> None:
    x = torch.arange(6.0).view(2, 3)
    same = fingerprint([("a", x), ("b", torch.empty(0)), ("c", torch.ones(2, dtype=torch.cfloat))])
    for other in (
        [("a", x + 1e-6), ("b", torch.empty(0)), ("c", torch.ones(2, dtype=torch.cfloat))],
        [("a", x[:, [1, 0, 2]]), ("b", torch.empty(0)), ("c", torch.ones(2, dtype=torch.cfloat))],
        [("a", x.view(3, 2)), ("b", torch.empty(0)), ("c", torch.ones(2, dtype=torch.cfloat))],
        [("z", x), ("b", torch.empty(0)), ("c", torch.ones(2, dtype=torch.cfloat))],
        [("a", x), ("b", torch.empty(0)), ("c", 2j * torch.ones(2, dtype=torch.cfloat))],
    ):
        assert fingerprint(other) != same


def test_monitors_of_other_names_do_not_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where one process begins with another one of them."""
    store = HashStore()
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed.distributed_c10d, "_get_default_store", lambda: store)
    named: dict[tuple[int, str], Any] = {}
    for rank, names in ((0, "AB"), (1, "B")):
        monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
        monkeypatch.setattr(_sharing, "_generations", Counter())  # of a process of its own
        for name in names:
            named[rank, name] = Sharing.of_this_process(name)
    for name, found in (("A", []), ("B", [0, 1])):
        first = named[0, name]
        first.ask(3, 5, object(), dict)
        assert first._asked.get(3, []) == found
    assert named[1, "B"].is_asked(3)
    assert named[1, "B"].question(3) == (1, 1, 2)


def test_the_last_step_is_shared_too(taken: list[slice]) -> None:
    run = Run(processes=2)
    run.go(4)
    taken.clear()
    run.monitors[1]._session.assist(lambda: run.nets[1], 4, None)
    run.monitors[0].finish(run.nets[0])
    run.alone.finish(run.nets[0])
    run.equal()
    assert len(taken) == 2
