"""`Monitor` in a loop of one's own on batches that are mappings, and the state of its probe."""

from __future__ import annotations

import copy
import io
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from torch_ntk.monitor import Monitor, Probe
from torch_ntk.monitor.measure._evaluation import Evaluation
from torch_ntk.monitor.measure._record import Record


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        h = torch.tanh(self.a(x)) * mask[..., None]
        return self.b(h.sum(1) / mask.sum(1, keepdim=True))


def batch(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.ones(6, 4)
    mask[::2, 2:] = 0.0
    x = torch.randn(6, 4, 3, generator=generator)
    return {"x": x, "mask": mask, "labels": torch.arange(6) % 2}


def run(monitor: Monitor, steps: int = 2, net: nn.Module | None = None) -> nn.Module:
    torch.manual_seed(3)
    net = Masked() if net is None else net
    optimizer = torch.optim.SGD(net.parameters(), lr=0.3)
    for _ in range(steps):
        data = batch()
        monitor.step(net, optimizer, data)
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(data["x"], data["mask"]), data["labels"]).backward()
        optimizer.step()
    monitor.finish(net, optimizer)
    return net


def kernel(net: nn.Module, data: dict[str, Tensor]) -> Tensor:
    """The mean kernel by one backward pass for each sample and output, in float64."""
    rows = []
    for n in range(6):
        out = net.double()(data["x"][n : n + 1].double(), data["mask"][n : n + 1].double())
        for f in out.flatten():
            found = torch.autograd.grad(f, list(net.parameters()), retain_graph=True)
            rows.append(torch.cat([g.flatten() for g in found]))
    j = torch.stack(rows).reshape(6, -1)
    return j @ j.T / 2


@pytest.mark.parametrize("given", [False, True])
def test_mask_reaches_the_network(given: bool) -> None:
    options: dict[str, Any] = {"every_n_steps": 1, "validation_probe": batch(1)}
    monitor = Monitor(batch() if given else None, **options)
    trained = run(monitor)
    torch.manual_seed(3)
    for data, prefix in ((batch(), "ntk/"), (batch(1), "ntk/val_")):
        torch.manual_seed(3)
        start, end = kernel(Masked(), data), kernel(trained, data)
        drift = float((end - start).norm() / start.norm())
        assert monitor.history[f"{prefix}drift"][-1] == pytest.approx(drift, rel=1e-9)


def test_losses_of_samples() -> None:
    """An output that depends on targets in the batch."""

    def loss(net: nn.Module, b: dict[str, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(net(b["x"], b["mask"]), b["labels"], reduction="none")

    monitor = Monitor(every_n_steps=1, forward_fn=loss)
    net, data = run(monitor), batch()
    rows = []
    for n in range(6):
        one = {k: v[n : n + 1] for k, v in data.items()}
        one = {k: v.double() if v.is_floating_point() else v for k, v in one.items()}
        found = torch.autograd.grad(loss(net.double(), one).sum(), list(net.parameters()))
        rows.append(torch.cat([g.flatten() for g in found]))
    j = torch.stack(rows)
    largest = float(torch.linalg.eigvalsh(j @ j.T)[-1])
    assert monitor.history["ntk/lambda_max"][-1] == pytest.approx(largest, rel=1e-9)


def test_state_goes_on() -> None:
    whole = Monitor(every_n_steps=1)
    torch.manual_seed(3)
    net = Masked()
    run(whole, 3, net)
    first = Monitor(every_n_steps=1)
    torch.manual_seed(3)
    net = Masked()
    run(first, 1, net)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    rest = Monitor(every_n_steps=1)
    rest.load_state_dict(torch.load(file, weights_only=True))
    run(rest, 2, net)
    assert rest.history["ntk/drift"] == whole.history["ntk/drift"]


@dataclass
class Sample:
    x: Tensor
    options: list[Any]


def test_states_are_plain_and_old_ones_load() -> None:
    x, lengths = torch.randn(3, 2), torch.tensor([1, 2, 3])
    nested = Probe({"a": (x, [lengths]), "power": 2, "none": None}, as_one=True)
    again = Probe.from_state_dict(nested.state_dict())
    assert again.is_whole
    assert again.as_one
    assert again.x["power"] == 2
    assert torch.equal(again.x["a"][1][0], lengths)
    record = Probe(Sample(x, [lengths, "text"]))
    state = record.state_dict()
    assert type(state["x"]) is dict
    lost = Probe.from_state_dict(state)
    assert not lost.is_whole
    found = lost.in_form_of(Probe(Sample(x[:1], [lengths[:1], "text"])))
    assert isinstance(found.x, Sample)
    assert torch.equal(found.x.x, x)
    assert found.is_whole
    with pytest.raises(ValueError, match="of samples as in the run that is resumed"):
        lost.in_form_of(Probe(Sample(x.double(), [lengths, "text"])))
    old = Probe.from_state_dict({"x": x, "y": lengths})
    assert old.is_whole
    assert torch.equal(old.x, x)


class Largest(TorchDispatchMode):
    """The number of entries of the largest tensor that is made."""

    entries = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for t in tree_leaves(out):
            if isinstance(t, Tensor):
                self.entries = max(self.entries, t.numel())
        return out


def test_many_outputs_are_not_held_for_all_samples() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3000))
    x = torch.randn(40, 3)
    largest = {}
    for output in (None, "mean"):
        how = Evaluation(output, batch_size=2, dtype=torch.float64)
        record = Record(("linearization_gap",), how)
        torch.manual_seed(1)
        trained = copy.deepcopy(net)
        with Largest() as mode:
            record.begin(trained, Probe(x), 0)
            with torch.no_grad():
                for p in trained.parameters():
                    p += 0.1 * torch.randn_like(p)
            seen = record.measure(trained, 1)
        largest[output] = mode.entries, seen.scalars["linearization_gap"]
    assert largest[None][1] == pytest.approx(largest["mean"][1], rel=1e-12)
    assert largest["mean"][0] >= 40 * 3000
    assert largest[None][0] <= 20000  # two samples, and some outputs of all
