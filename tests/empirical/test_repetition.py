"""Calls that are repeated execute recorded operations, and give what a first call would give."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import CASES, Case
from torch import Tensor, nn
from traces import in_training, snapshot

from torch_ntk import empirical_ntk
from torch_ntk.empirical import _repetition
from torch_ntk.empirical._recorder import Recorder, decided, unrecorded

# What these do follows from the values of their samples, draws random numbers, or writes to a
# tensor of the module.
NOT_RECORDED = {
    "item_on_data",
    "generators_of_its_own",
    "bert_with_mask",
    "low_rank_adapters",
    "packed_lstm",
    "graph_convolution",
    "graph_attention",
    "counts_in_a_tensor",
    "embedding_max_norm",
}


@pytest.fixture
def repeated(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """For every call that was to be repeated, whether it could be."""
    found: list[bool] = []
    original = _repetition._repeated

    def spy(*args: Any) -> Any:
        kernels = original(*args)
        found.append(kernels is not None)
        return kernels

    monkeypatch.setattr(_repetition, "_repeated", spy)
    return found


def first_call(model: nn.Module, *args: Any, **options: Any) -> Any:
    """The kernel by a call of which nothing is known."""
    known = dict(_repetition._of_modules)
    _repetition._of_modules.clear()
    try:
        return empirical_ntk(model, *args, **options)
    finally:
        _repetition._of_modules.clear()
        _repetition._of_modules.update(known)


def moved(model: nn.Module) -> None:
    """Change all parameters, as a step of a training does."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.01 * torch.randn(p.shape, generator=generator, dtype=p.dtype))


@pytest.mark.parametrize("case", [c for c in CASES if not c.slow], ids=lambda case: case.name)
def test_equal_to_the_last_digit(case: Case, repeated: list[bool]) -> None:
    """For the samples and parameters that were recorded and for others, without a trace."""
    model, x1, x2 = in_training(case), case.inputs(4), case.inputs(3, 1)
    kernels = [empirical_ntk(model, x1, x2, **case.options) for _ in range(4)]
    assert all(torch.equal(kernels[0], k) for k in kernels[1:])
    moved(model)
    others = case.inputs(4, 7)
    before = snapshot(model, others, x2)
    found = empirical_ntk(model, others, x2, **case.options)
    assert snapshot(model, others, x2) == before
    assert torch.equal(found, first_call(model, others, x2, **case.options))
    assert repeated == ([] if case.name in NOT_RECORDED else [True, True])


def convolutions() -> nn.Sequential:
    """With max-pooling, whose operation has two results, and a weight that is used alone."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(36, 12),
        nn.PReLU(),
        nn.Linear(12, 3),
    ).double()


def images(n: int, seed: int = 0) -> Tensor:
    """Small ones."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 1, 6, 6, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize(
    "options",
    [
        *({"output": form} for form in ("trace", "mean", "diagonal", "pseudo")),
        {"output": "probed", "probes": 2},
        {"by": "module"},
        {"params": lambda name, p: name.startswith("0")},
        {"method": "jacobian"},
        {"method": "vector_product"},
        {"batch_size": 2},
        {"max_memory": "40MB"},
        {"training": True, "coupled": True},
        {"dtype": torch.float32},
        {"forward_fn": lambda net, x: net(2 * x)},
    ],
    ids=lambda options: "-".join(options),
)
def test_every_option(options: dict[str, Any], check: bool, repeated: list[bool]) -> None:
    """All of the calls are what a first one is."""
    model, x = convolutions(), images(5)

    def parts(found: Any) -> list[Tensor]:
        values = found.values() if isinstance(found, dict) else [found]
        return [v if isinstance(v, Tensor) else v.kernel for v in values]

    for k in range(5):
        found = parts(empirical_ntk(model, x, check=check, **options))
        expected = parts(first_call(model, x, check=check, **options))
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True)), k
        moved(model)
    # Products with vectors are formed without blocks that could be compared again.
    assert repeated == ([] if options.get("method") == "vector_product" else [True, True])


def test_with_a_preconditioner_that_changes(repeated: list[bool]) -> None:
    """The entries of P are inputs; a P that is one number is a part of the operations."""
    model, x = convolutions(), images(5)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(5):
        model(x).square().sum().backward()
        optimizer.step()
        options = {"precondition": optimizer}
        assert torch.equal(empirical_ntk(model, x, **options), first_call(model, x, **options))
    assert repeated == [True, True]


def test_preconditioner_of_ones_in_another_place(repeated: list[bool]) -> None:
    """A P of ones is a number, and not one of the tensors that are inputs of the operations."""
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3)).double()
    x = images(5).flatten(1)[:, :3]
    generator = torch.Generator().manual_seed(1)
    ones = {name: torch.ones_like(p) for name, p in model.named_parameters()}
    p = torch.rand(3, 3, generator=generator, dtype=torch.float64) + 0.5
    for options in ({**ones, "0.weight": p}, {**ones, "2.weight": p}, ones):
        for _ in range(4):
            found = empirical_ntk(model, x, precondition=options)
            assert torch.equal(found, first_call(model, x, precondition=options))
    assert repeated == [True] * 3


class Scaled(nn.Module):
    """A network with everything that may change its function between two calls."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 8), nn.Linear(8, 2)
        self.register_buffer("shift", torch.zeros(2))
        self.factor = 1.0
        self.plain = torch.ones(2, dtype=torch.float64)
        self.options = {"detached": False, "power": 1}

    def forward(self, x: Tensor) -> Tensor:
        """Of a batch."""
        hidden = self.first(x).tanh()
        hidden = hidden.detach() if self.options["detached"] else hidden
        out = self.last(hidden) * self.factor * self.plain + self.shift
        return out ** self.options["power"]


def _factor(model: Scaled) -> None:
    model.factor = 3.0


def _value_in_place(model: Scaled) -> None:
    model.plain.fill_(2.0)


def _another_tensor(model: Scaled) -> None:
    model.plain = torch.full((2,), 5.0, dtype=torch.float64)


def _in_a_dictionary(model: Scaled) -> None:
    model.options["power"] = 2


def _only_gradients(model: Scaled) -> None:
    model.options["detached"] = True


def _buffer(model: Scaled) -> None:
    model.shift.fill_(1.0)


def _frozen(model: Scaled) -> None:
    model.first.weight.requires_grad_(False)


def _last_ones_frozen(model: Scaled) -> None:
    model.last.requires_grad_(False)


def _another_layer(model: Scaled) -> None:
    model.last = nn.Sequential(nn.Tanh(), model.last)


def _hook_that_counts(model: Scaled) -> None:
    model.first.register_forward_hook(lambda module, args, out: 2 * out)


def _another_method(model: Scaled) -> None:
    model.first.forward = lambda x: x @ model.first.weight.T  # type: ignore[method-assign]


CHANGES = [
    _factor,
    _value_in_place,
    _another_tensor,
    _in_a_dictionary,
    _only_gradients,
    _buffer,
    _frozen,
    _last_ones_frozen,
    _another_layer,
    _hook_that_counts,
    _another_method,
]


@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize("change", CHANGES)
def test_module_that_has_changed(change: Callable[[Scaled], None], check: bool) -> None:
    """What the module now is counts, and not what it was when it was recorded."""
    torch.manual_seed(0)
    model, x = Scaled().double(), torch.randn(4, 3, dtype=torch.float64)
    for _ in range(4):
        empirical_ntk(model, x, check=check)
    change(model)
    expected = first_call(model, x, check=check)
    for _ in range(4):
        assert torch.equal(empirical_ntk(model, x, check=check), expected)


@pytest.mark.parametrize("check", [True, False])
def test_each_call_selects_its_own_parameters(check: bool) -> None:
    """Calls that differ only in where the selected parameters end are of different forms."""
    torch.manual_seed(0)
    model, x = Scaled().double(), torch.randn(4, 3, dtype=torch.float64)
    parts = empirical_ntk(model, x, by="parameter")
    names = [name for name, _ in model.named_parameters()]
    for chosen in (names, names[:1], names[:3], names, names[1:]):
        expected = sum(parts[name] for name in chosen)
        for _ in range(4):
            found = empirical_ntk(model, x, params=chosen, check=check)
            assert torch.allclose(found, expected, rtol=1e-12, atol=1e-12)


FACTOR = [1.0]


class Hidden(nn.Module):
    """Its function follows from a number that no attribute shows."""

    def __init__(self, only_gradients: bool) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2))
        self.only_gradients = only_gradients

    def forward(self, x: Tensor) -> Tensor:
        """Of a batch."""
        out = self.layers(x)
        if self.only_gradients:
            return FACTOR[0] * out - (FACTOR[0] - 1.0) * out.detach()
        return FACTOR[0] * out


@pytest.mark.parametrize("only_gradients", [False, True])
def test_change_that_cannot_be_seen(only_gradients: bool, repeated: list[bool]) -> None:
    """It shows in the outputs, or in the gradients, which are compared in every call."""
    model, x = Hidden(only_gradients).double(), torch.randn(4, 3, dtype=torch.float64)
    kernels = [empirical_ntk(model, x) for _ in range(4)]
    FACTOR[0] = 2.0
    try:
        again = [empirical_ntk(model, x) for _ in range(3)]
    finally:
        FACTOR[0] = 1.0
    assert all(torch.allclose(k, 4.0 * kernels[0], rtol=1e-12) for k in again)
    assert repeated == [True, False]  # and then no more is tried


def test_call_that_has_captured_a_variable_without_a_value(repeated: list[bool]) -> None:
    """Its code may never read the variable; what else it has captured is compared."""
    factor = 2.0

    def call(net: nn.Module, x: Tensor) -> Any:
        return net(factor * x) if factor else later

    model, x = convolutions(), images(4)
    kernels = [empirical_ntk(model, x, forward_fn=call) for _ in range(4)]
    factor = 3.0
    found = empirical_ntk(model, x, forward_fn=call)
    assert torch.equal(found, first_call(model, x, forward_fn=call))
    assert not torch.equal(found, kernels[0])
    assert repeated == [True]  # another factor is another form
    later = None


def test_decision_by_values() -> None:
    """Whether cotangents are the identity is decided anew by their values."""

    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 2)
            self.register_buffer("scale", torch.ones(2))

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.layer(x) * self.scale
            return out

    model, x = Last().double(), torch.randn(4, 3, dtype=torch.float64)
    kernels = [empirical_ntk(model, x) for _ in range(4)]
    model.scale.copy_(torch.tensor([1.0, 3.0]))
    expected = kernels[0] * torch.tensor([[1.0, 0.0], [0.0, 9.0]], dtype=torch.float64)
    for _ in range(3):
        assert torch.allclose(empirical_ntk(model, x), expected, rtol=1e-12)


class Tangents(nn.Module):
    """Its forward takes a forward-mode derivative, in which some tensors are zero."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Of a batch."""

        def energy(x: Tensor) -> Tensor:
            return torch.addcmul(self.layer.bias, self.layer(x).sin(), x, value=0.5)

        tangent: Tensor = torch.func.jvp(energy, (x,), (torch.ones_like(x),))[1]
        return tangent


@pytest.mark.parametrize("method", ["auto", "vector_product"])
def test_forward_mode_is_not_recorded(method: Any, repeated: list[bool]) -> None:
    """Torch would end the process."""
    model, x = Tangents().double(), torch.randn(4, 3, dtype=torch.float64)
    kernels = [empirical_ntk(model, x, method=method) for _ in range(4)]
    assert all(torch.equal(k, kernels[0]) for k in kernels)
    assert not repeated


def test_forward_that_begins_to_fail() -> None:
    """The error is that of a first call."""
    model, x = Scaled().double(), torch.randn(4, 3, dtype=torch.float64)
    for _ in range(4):
        empirical_ntk(model, x)
    model.last = nn.Linear(9, 2).double()
    with pytest.raises(ValueError, match="on which its forward fails"):
        empirical_ntk(model, x)


def test_no_more_memory_than_there_is(
    monkeypatch: pytest.MonkeyPatch, repeated: list[bool]
) -> None:
    """Where the recorded operations do not fit, the kernel is computed in blocks."""
    model, x = convolutions(), images(6)
    kernels = [empirical_ntk(model, x) for _ in range(4)]
    monkeypatch.setattr(_repetition, "budget", lambda device: 1000)
    assert torch.equal(empirical_ntk(model, x), kernels[0])
    monkeypatch.undo()
    assert repeated == [True]


def test_nothing_is_kept_alive() -> None:
    """Neither the module nor its samples; and few forms are known at the same time."""
    model, x = convolutions(), images(4)
    for _ in range(4):
        empirical_ntk(model, x)
    for n in range(1, 30):
        empirical_ntk(model, images(n))
    forms = _repetition._of_modules[id(model)][1]
    assert len(forms) == _repetition._FORMS
    number, gone = id(model), [weakref.ref(model), weakref.ref(x)]
    gone += [weakref.ref(p) for p in model.parameters()]
    del model, x
    gc.collect()
    assert not any(ref() is not None for ref in gone)
    assert number not in _repetition._of_modules


def test_copy_is_another_module(repeated: list[bool]) -> None:
    """What is known of a module is not known of its copy."""
    model, x = convolutions(), images(4)
    for _ in range(4):
        empirical_ntk(model, x)
    other = copy.deepcopy(model)
    moved(other)
    assert torch.equal(empirical_ntk(other, x), first_call(other, x))
    assert repeated == [True]


def _in_place(a: Tensor, b: Tensor) -> list[Tensor]:
    total = torch.zeros(3, 3)
    total[1:] += a[1:]
    total.addmm_(a, b)
    return [total, total.diagonal()]


def _several_results(a: Tensor, b: Tensor) -> list[Tensor]:
    values, indices = torch.cat([a, b]).max(dim=0)
    return [values, a.T[indices % 3], *b.split(2)]


def _given_memory(a: Tensor, b: Tensor) -> list[Tensor]:
    out = a.new_empty(3, 3)
    torch.mm(a, b, out=out)
    with unrecorded():
        constant = torch.randn(3, 3, generator=torch.Generator().manual_seed(0))
    return [out + constant]


@pytest.mark.parametrize("f", [_in_place, _several_results, _given_memory])
def test_operations_are_executed_again(f: Callable[[Tensor, Tensor], list[Tensor]]) -> None:
    """With other values, any number of times."""
    with Recorder(inputs := [torch.randn(3, 3), torch.randn(3, 3)]) as recorder:
        recorded = f(*inputs)
    recording = recorder.recording(recorded)
    assert recording is not None, recorder.reason
    for _ in range(2):
        others = [torch.randn(3, 3), torch.randn(3, 3)]
        results, _ = recording(others)
        expected = f(*(t.clone() for t in others))
        assert all(torch.equal(a, b) for a, b in zip(results, expected, strict=True))


def test_memory_at_the_same_time() -> None:
    """Results count from when they are made until they are last used; views do not."""
    with Recorder([x := torch.randn(1000, dtype=torch.float64)]) as recorder:
        a = x + 1
        b = (a.view(10, 100) * 2).sum()
        del a
        c = x.exp().sum() + b
        unused = x + 3
    recording = recorder.recording([c])
    assert recording is not None
    assert 16000 <= recording.peak < 17000
    assert len(unused) == 1000


GIVEN = torch.ones(3)
NOT_RECORDABLE: list[Callable[[Tensor], Tensor]] = [
    lambda x: x if float(x.sum()) > 0 else -x,
    lambda x: x[x > 0],
    lambda x: x + torch.rand(3),
    lambda x: x.to_sparse() * 2,
    lambda x: x.add_(1.0),
    lambda x: GIVEN.mul_(2.0) + x,
    lambda x: GIVEN,
    lambda x: torch.from_numpy(x.numpy()) + 1,
]


@pytest.mark.parametrize("f", NOT_RECORDABLE)
def test_operations_that_are_not_recorded(f: Callable[[Tensor], Any]) -> None:
    """Those that follow from values, are random, write to what is not theirs, or are not seen."""
    with Recorder([x := torch.ones(3)]) as recorder:
        result = f(x)
    assert recorder.recording([result]) is None
    assert recorder.reason


def test_decided() -> None:
    """The condition is a result, next to the value that it had."""
    with Recorder([x := torch.ones(3)]) as recorder:
        sign = 1.0 if decided(x.sum() > 0) else -1.0
        y = sign * x
    recording = recorder.recording([y])
    assert recording is not None
    assert recording.decided == (True,)
    assert [bool(c) for c in recording([-x])[1]] == [False]
