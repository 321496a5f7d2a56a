"""The recipes of `docs/loops.md` run, and their trainings are what they are without the monitor."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from doc_pages import code_of, text_of
from lightning.fabric import Fabric
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from transformers import BertConfig, BertForSequenceClassification

from torch_ntk.monitor import METRICS, Monitor

PAGE = "loops.md"
SECTIONS = text_of(f"docs/{PAGE}").split("\n## ")[1:]
RECIPES = [(section.split("\n")[0], code) for section in SECTIONS for code in code_of(section)]


def network() -> nn.Module:
    torch.manual_seed(5)
    return nn.Sequential(
        nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 3)
    )


def bert() -> nn.Module:
    torch.manual_seed(5)
    size = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    return BertForSequenceClassification(BertConfig(vocab_size=9, intermediate_size=8, **size))


def loader() -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(11)
    x = torch.randn(56, 6, generator=generator)
    return DataLoader(TensorDataset(x, x[:, :3].argmax(1)), batch_size=8, shuffle=True)


def texts() -> list[dict[str, Any]]:
    ids = torch.randint(0, 9, (56, 5), generator=torch.Generator().manual_seed(11))
    return [{"input_ids": i, "labels": i[0] % 2} for i in ids]


def run(code: str) -> dict[str, Any]:
    net = bert() if "transformers" in code else network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    names = {"net": net, "optimizer": optimizer, "loader": loader(), "data": texts(), "F": F}
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    exec(compile(code, PAGE, "exec"), names)
    if "fabric" in names:  # whose writer is a thread, and its folder relative to where we are now
        names["fabric"].logger.finalize("success")
    names["random"] = (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist())  # noqa: NPY002
    names["state"] = net.state_dict()
    return names


@pytest.mark.parametrize(("title", "code"), RECIPES, ids=lambda text: text[:8].strip())
def test_the_recipe_trains_as_without_it(
    title: str, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    plain = "\n".join(s for s in code.splitlines() if not re.search("(?i)monitor(?!\\])", s))
    plain = plain.replace("callbacks=[monitor]", "callbacks=[]")
    assert "onitor" not in plain
    assert len(plain.splitlines()) >= 5
    without, watched = run(plain), run(code)
    steps = 4 if "accumulation" in code else 7
    assert watched["monitor"].history["step"][0] == 0
    assert watched["monitor"].history["step"][-1] == steps
    assert watched["monitor"].verdict.regime != "unknown"
    for name, value in without["state"].items():
        assert torch.equal(value, watched["state"][name]), name
    assert torch.equal(without["random"][0], watched["random"][0])
    assert without["random"][1:] == watched["random"][1:]
    if "runs" in code:
        assert list((tmp_path / "runs").rglob("events.out.tfevents*"))


def test_wrapped_by_fabric_it_says_the_same() -> None:
    """Every metric, with those that read the optimizer, of the network inside of all wrappers."""
    found = []
    for kind in ("plain", "fabric", "compiled"):
        net = network()
        model, optimizer = net, torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        if kind == "compiled":
            model = torch.compile(net, backend="eager")
        if kind != "plain":
            model, optimizer = Fabric(accelerator="cpu", devices=1).setup(model, optimizer)
        monitor = Monitor(8, every_n_steps=2, metrics=(*METRICS, "stability"))
        torch.manual_seed(0)
        for x, y in loader():
            monitor.step(model, optimizer, (x, y))
            optimizer.zero_grad()
            F.cross_entropy(net(x), y).backward()
            optimizer.step()
        monitor.finish(model, optimizer)
        found.append(monitor.history)
    for name in found[0].keys() - {"ntk/seconds", "ntk/overhead"}:
        for other in found[1:]:
            assert np.array_equal(found[0][name], other[name], equal_nan=True), name
