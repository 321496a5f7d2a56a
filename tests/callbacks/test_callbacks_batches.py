"""`NTKMonitor()` on the batches that people train with, against plain loops in float64."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning_runs import QUIET, Watch, fit, untimed
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.data import DataLoader
from transformers import BatchEncoding, GPT2Config, GPT2LMHeadModel

from torch_ntk.callbacks import NTKMonitor

pytestmark = [pytest.mark.filterwarnings(text) for text in QUIET]


class Weighted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, features: Tensor, scale: Tensor) -> Tensor:
        return self.b(torch.tanh(self.a(features))) * scale[:, None]


class Packing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.LSTM(3, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
        return self.head(self.cell(packed)[1][0][-1])


class Graph(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 5), nn.Linear(5, 3)

    def forward(self, nodes: Tensor, adjacency: Tensor) -> Tensor:
        return self.b(torch.tanh(adjacency @ self.a(nodes)).mean(1))


class OfOneMapping(Graph):
    def forward(self, graph: Mapping[str, Tensor]) -> dict[str, Tensor]:  # type: ignore[override]
        return {"logits": super().forward(graph["nodes"], graph["adjacency"])}


def segmenting() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.Tanh(), nn.Dropout(0.2), nn.Conv2d(4, 2, 1)
    )


def gpt2() -> nn.Module:
    sizes = {"vocab_size": 5000, "n_positions": 8, "n_embd": 8, "n_layer": 1, "n_head": 2}
    return GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=1, eos_token_id=2, pad_token_id=0))


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


N = 12
LABELS = torch.arange(N) % 3
LENGTHS = torch.tensor([5, 2, 4, 1, 3, 5, 4, 2, 1, 3, 5, 2])
TOKENS = torch.randint(3, 5000, (N, 5), generator=torch.Generator().manual_seed(1))
MASK = (torch.arange(5) < LENGTHS[:, None]).long()
GRAPHS = {"nodes": drawn(N, 4, 3), "adjacency": drawn(N, 4, 4, seed=1).abs(), "label": LABELS}


@dataclass
class Case:
    """A training.

    Attributes:
        make: The network.
        tensors: What it is trained on, as one batch.
        loss: Of the network and a batch.
        call: Outputs of the network, in its own shape, and of a batch.
    """

    make: Callable[[], nn.Module]
    tensors: Any
    loss: Callable[[nn.Module, Any], Tensor]
    call: Callable[[nn.Module, Any], Tensor]


CASES = {
    "dictionary": Case(
        Weighted,
        {"features": drawn(N, 4), "scale": drawn(N, seed=1), "label": LABELS},
        lambda net, b: F.cross_entropy(net(b["features"], b["scale"]), b["label"]),
        lambda net, b: net(b["features"], b["scale"]),
    ),
    "sequences with lengths": Case(
        Packing,
        (drawn(N, 5, 3), LENGTHS, LABELS),
        lambda net, b: F.cross_entropy(net(b[0], b[1]), b[2]),
        lambda net, b: net(b[0], b[1]),
    ),
    "graphs": Case(
        Graph,
        GRAPHS,
        lambda net, b: F.cross_entropy(net(b["nodes"], b["adjacency"]), b["label"]),
        lambda net, b: net(b["nodes"], b["adjacency"]),
    ),
    "one mapping": Case(
        OfOneMapping,
        GRAPHS,
        lambda net, b: F.cross_entropy(net(b)["logits"], b["label"]),
        lambda net, b: net(b)["logits"],
    ),
    "language model": Case(
        gpt2,
        {"input_ids": TOKENS, "attention_mask": MASK, "labels": TOKENS},
        lambda net, b: net(**b).loss,
        lambda net, b: net(b["input_ids"], attention_mask=b["attention_mask"]).logits,
    ),
    "segmentation": Case(
        segmenting,
        (drawn(N, 3, 32, 32), (drawn(N, 32, 32, seed=2) > 0).long()),
        lambda net, b: F.cross_entropy(net(b[0]), b[1]),
        lambda net, b: net(b[0]),
    ),
}


class Trains(LightningModule):
    def __init__(self, case: Case) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.network, self.case = case.make(), case

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.network(*args, **kwargs)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.case.loss(self.network, batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.3, momentum=0.5)


def part(batch: Any, rows: slice) -> Any:
    if isinstance(batch, Mapping):
        return {k: v[rows] for k, v in batch.items()}
    return tuple(v[rows] for v in batch)


def in_double(batch: Any) -> Any:
    def convert(t: Tensor) -> Tensor:
        return t.double() if t.is_floating_point() else t

    if isinstance(batch, Mapping):
        return {k: convert(v) for k, v in batch.items()}
    return tuple(map(convert, batch))


def batches(case: Case) -> DataLoader:
    return DataLoader([part(case.tensors, slice(k, k + 6)) for k in (0, 6)], batch_size=None)


def signs(outputs: int) -> Tensor:
    """Combinations `[K, O]` of the outputs of which the kernels add up to what is measured.

    All of them for their mean; of many, the eight random directions that `empirical_ntk` documents.
    """
    if outputs <= 64:
        return torch.eye(outputs).double() / outputs**0.5
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(0, 2, (8, outputs), generator=generator, dtype=torch.int8)
    return (2 * drawn - 1).double() / (8 * outputs) ** 0.5


def jacobian(net: nn.Module, case: Case, batch: Any) -> tuple[Tensor, Tensor]:
    """Outputs `[N, O]`, and the derivatives `[N, K, P]` of K combinations of them, in loops."""
    values, rows = [], []
    for n in range(6):
        out = case.call(net, part(batch, slice(n, n + 1))).reshape(-1)
        values.append(out.detach())
        for f in signs(out.numel()) @ out:
            found = torch.autograd.grad(
                f, list(net.parameters()), retain_graph=True, allow_unused=True
            )
            pairs = zip(net.parameters(), found, strict=True)
            flat = [(torch.zeros_like(p) if g is None else g).flatten() for p, g in pairs]
            rows.append(torch.cat(flat))
    outputs = torch.stack(values)
    return outputs, torch.stack(rows).reshape(6, -1, rows[0].numel())


def slopes(net: nn.Module, case: Case, batch: Any, delta: list[Tensor]) -> Tensor:
    """J δ by differences of the fourth order, at which nothing is shared with the monitor."""

    def at(h: float) -> Tensor:
        other = copy.deepcopy(net)
        with torch.no_grad():
            for p, d in zip(other.parameters(), delta, strict=True):
                p += h * d
            return case.call(other, batch).reshape(6, -1)

    h = 1e-3
    return (8 * (at(h) - at(-h)) - (at(2 * h) - at(-2 * h))) / (12 * h)


@pytest.mark.parametrize("name", CASES)
def test_no_argument(name: str, tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    case = CASES[name]
    plain = Trains(case)
    fit(tmp_path, plain, [], batches(case))
    monitor, watch, module = NTKMonitor(), Watch(), Trains(case)
    fit(tmp_path, module, [monitor, watch], batches(case))
    assert not [str(w.message) for w in recwarn if "measured" in str(w.message)]
    for (n, a), b in zip(plain.state_dict().items(), module.state_dict().values(), strict=True):
        assert torch.equal(a, b), n

    nets = []
    for step in (0, 4):
        other = Trains(case)
        other.load_state_dict(watch.at[step])
        nets.append(other.network.double().eval())
    batch = in_double(part(case.tensors, slice(0, 6)))
    (f_0, j_0), (f_t, j_t) = (jacobian(net, case, batch) for net in nets)
    theta_0, theta_t = (torch.einsum("nkp,mkp->nm", j, j) for j in (j_0, j_t))
    drift = (theta_t - theta_0).norm() / theta_0.norm()
    pairs = zip(*(net.parameters() for net in nets), strict=True)
    delta = [(b - a).detach() for a, b in pairs]
    along = slopes(nets[0], case, batch, delta)
    gap = (f_t - f_0 - along).norm() / (f_t - f_0).norm()
    history = monitor.history
    assert history["step"][-1] == 4
    assert drift > 1e-4
    is_large = name == "language model"  # and is evaluated in float32
    assert history["ntk/drift"][-1] == pytest.approx(float(drift), rel=1e-5 if is_large else 1e-9)
    error = 1e-4 if is_large else 1e-6
    assert history["ntk/linearization_gap"][-1] == pytest.approx(float(gap), rel=error)
    assert 0 < history["ntk/alignment"][-1] <= 1
    values = torch.linalg.eigvalsh(theta_t)
    # The directions are scaled in float32.
    precise = 1e-9 if f_t.shape[1] <= 64 else 1e-6
    assert history["ntk/lambda_max"][-1] == pytest.approx(float(values[-1]), rel=precise)


@pytest.mark.parametrize("name", ["sequences with lengths", "one mapping", "language model"])
def test_resumed(name: str, tmp_path: Path) -> None:
    case = CASES[name]

    def module() -> Trains:
        made = Trains(case)
        for m in made.modules():
            if isinstance(m, nn.Dropout):  # its random states do not go on
                m.p = 0.0
        return made

    whole = NTKMonitor(every_n_steps=1)
    fit(tmp_path, module(), [whole], batches(case), max_epochs=3)
    saved = ModelCheckpoint(tmp_path / "kept", save_last=True)
    options: dict[str, Any] = {"max_epochs": 2, "enable_checkpointing": True}
    half = NTKMonitor(every_n_steps=1)
    fit(tmp_path, module(), [half, saved], batches(case), **options)
    rest = NTKMonitor(every_n_steps=1)
    path = str(tmp_path / "kept" / "last.ckpt")
    fit(tmp_path, module(), [rest], batches(case), ckpt_path=path, max_epochs=3)
    assert untimed(rest.history) == untimed(whole.history)


class OfAttributes(Graph):
    def forward(self, batch: Any) -> Tensor:  # type: ignore[override]
        return super().forward(batch.nodes, batch.adjacency)


def test_a_container_that_no_checkpoint_can_hold(tmp_path: Path) -> None:
    """It is put together anew in the form of the batches of the run that goes on."""
    case = Case(
        OfAttributes,
        GRAPHS,
        lambda net, b: F.cross_entropy(net(b), b["label"]),
        lambda net, b: net(b),
    )
    loader = DataLoader(
        [BatchEncoding(part(GRAPHS, slice(k, k + 6))) for k in (0, 6)], batch_size=None
    )
    whole = NTKMonitor(every_n_steps=1)
    fit(tmp_path, Trains(case), [whole], loader, max_epochs=3)
    saved = ModelCheckpoint(tmp_path / "kept", save_last=True)
    options: dict[str, Any] = {"max_epochs": 2, "enable_checkpointing": True}
    fit(tmp_path, Trains(case), [NTKMonitor(every_n_steps=1), saved], loader, **options)
    rest = NTKMonitor(every_n_steps=1)
    path = str(tmp_path / "kept" / "last.ckpt")
    fit(tmp_path, Trains(case), [rest], loader, ckpt_path=path, max_epochs=3)
    assert untimed(rest.history) == untimed(whole.history)
    assert rest.history["ntk/drift"][-1] > 0


class Auto(LightningModule):
    """Has a forward of latent numbers, and parts of which one takes the batches."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = nn.Linear(2, 4)
        self.discriminator = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1))

    def forward(self, z: Tensor) -> Tensor:
        return self.generator(z)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        fake = self(torch.randn(len(batch[0]), 2))
        return (self.discriminator(batch[0]) - self.discriminator(fake)).mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Variational(Auto):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(4, 6), nn.Linear(3, 4)

    def encode(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.encoder(x).chunk(2, dim=1)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        mean, log_std = self.encode(x)
        return self.decoder(mean + log_std.exp() * torch.randn_like(mean)), mean, log_std

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return (self(batch[0])[0] - batch[0]).square().mean()


class Contrastive(Auto):
    def forward(self, x: Tensor) -> Tensor:
        return self.discriminator(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        (a, b), _ = batch
        return (self(a) - self(b)).square().mean()


VIEWS = [((drawn(6, 4, seed=k), drawn(6, 4, seed=k + 9)), LABELS[:6]) for k in (0, 1)]
PLAIN = [(views[0], labels) for views, labels in VIEWS]
REFUSED: dict[str, tuple[type[Auto], Any, str, dict[str, Any]]] = {
    "GAN": (
        Auto,
        PLAIN,
        r"Pass forward_fn=lambda net, x: net.discriminator\(x\), which measures that part",
        {"forward_fn": lambda net, x: net.discriminator(x)},
    ),
    "VAE": (
        Variational,
        PLAIN,
        r"Pass forward_fn=lambda net, x: net.encode\(x\)\[0\], which measures that part",
        {"forward_fn": lambda net, x: net.encode(x)[0]},
    ),
    "contrastive": (
        Contrastive,
        VIEWS,
        r"Pass input_fn=lambda batch: \(batch\[0\]\[0\], batch\[1\]\)\.",
        {"input_fn": lambda batch: (batch[0][0], batch[1])},
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_one_argument_is_named_where_one_is_needed(name: str, tmp_path: Path) -> None:
    kind, samples, text, options = REFUSED[name]
    loader = DataLoader(samples, batch_size=None)
    with pytest.raises((TypeError, ValueError), match=text):
        fit(tmp_path, kind(), [NTKMonitor()], loader)
    monitor = NTKMonitor(**options)
    fit(tmp_path, kind(), [monitor], loader)
    assert monitor.history["step"][-1] == 4
    assert monitor.history["ntk/param_drift"][-1] > 0


def test_many_outputs_are_said_once_and_not_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    case, monitor = CASES["segmentation"], NTKMonitor(every_n_steps=1)
    with caplog.at_level("INFO"):
        fit(tmp_path, Trains(case), [monitor], batches(case))
    said = [r.message for r in caplog.records if "random directions" in r.message]
    assert len(said) == 1
    assert "NTKMonitor estimates the kernel of 2,048 outputs" in said[0]
    state = monitor.state_dict()
    assert state["observer"]["output"] == "probed"
    assert state["observer"]["anchor"]["outputs"] is None
    # Of all outputs the default is float32; of their estimate it is float64.
    asked = ("drift", "linearization_gap")
    chosen = NTKMonitor(output="trace", metrics=asked, dtype=torch.float64)
    fit(tmp_path, Trains(case), [chosen], batches(case))
    assert chosen.state_dict()["observer"]["output"] == "trace"
    gap = chosen.history["ntk/linearization_gap"][-1]  # of all outputs, kept at the reference
    assert gap == pytest.approx(monitor.history["ntk/linearization_gap"][-1], rel=1e-9)
