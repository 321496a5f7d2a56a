"""The README's code runs, and its commands are what they promise to be."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from torch_ntk import MLP, empirical_ntk

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"<!-- tested -->\n```python\n(.*?)```", README, flags=re.S)


class Tiny(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = MLP([8, 16, 3])

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, _):
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.filterwarnings("ignore:.*:UserWarning", "ignore:.*treespec.*:FutureWarning")
@pytest.mark.parametrize("code", SNIPPETS, ids=lambda c: c.strip().splitlines()[-1][:30])
def test_snippet_runs_and_is_short(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = [line for line in code.splitlines() if line.strip()]
    assert len(lines) <= 16
    x, y = torch.randn(64, 8), torch.randint(0, 3, (64,))
    names = {"model": Tiny(), "loader": DataLoader(TensorDataset(x, y), batch_size=32)}
    exec(compile(code, "README.md", "exec"), names)
    if "of_loss" in names:
        assert names["kernel"].shape == (6, 6, 3, 3)
        assert names["of_loss"].shape == (6, 6, 1, 1)
    elif "coupled" in names:
        assert names["coupled"].shape == (16, 16, 2, 2)
        assert names["kernel"].shape == names["error"].shape == (6, 6)
        assert bool((names["error"] > 0).all())
    elif "kernel" in names:
        assert names["kernel"].requires_grad
        assert names["x"].grad is not None
    elif "of_adam" in names:
        assert names["of_adam"].shape == (8, 8, 2, 2)
        assert not torch.allclose(names["of_adam"], empirical_ntk(names["net"], names["x"]))
    elif "operator" in names:
        kernel = empirical_ntk(names["net"], names["x"]).permute(0, 2, 1, 3).reshape(600, 600)
        ridge = 0.01 * kernel.trace() / 600 * torch.eye(600).double()
        expected = torch.linalg.solve(kernel + ridge, names["y"].flatten())
        assert (names["solution"].x.flatten() - expected).norm() < 1e-5 * expected.norm()
        off = names["determinant"] - torch.logdet(kernel + ridge)
        assert abs(off) < 5 * names["standard_error"] + 1e-6
        assert names["prediction"].shape == (5, 3)
    elif "phi" in names:
        net, x = names["net"], names["images"].tensors[0]
        kernel = empirical_ntk(net, x[:5], x[:7], output="mean")
        off = (names["estimate"] - kernel).abs()
        assert float((off <= 2 * names["error"]).float().mean()) > 0.9
        assert (tmp_path / "phi.safetensors").stat().st_size > 1000 * 512 * 4
    elif "cntk" in names:
        assert names["theta"].shape == names["cntk"].shape == (4, 4)
        assert torch.linalg.eigvalsh(names["theta"])[0] > 0
    elif "predict" in names:
        start, end = (names["net"](names["x"]), names["f_train"])
        assert (end - names["y"]).norm() < 0.5 * (start - names["y"]).norm()
        assert names["f_test"].shape == (5, 3)
    elif "theta" in names:
        assert names["theta"].shape == (5, 4, 3, 3)
        assert torch.equal(names["mean"], names["mean"].T)
    elif "monitor" in names:
        assert names["monitor"].history["ntk/drift"][0] == 0.0
        assert names["monitor"].history["step"][-1] == 10
    else:
        assert names["net"](torch.randn(2, 64)).shape == (2, 10)


def test_all_snippets_are_found():
    assert len(SNIPPETS) == README.count("```python") == 11


@pytest.mark.parametrize("heading", ["Quickstart", "Tests"])
def test_command_is_one_line(heading):
    section = README.split(f"## {heading}\n")[1].split("\n## ")[0]
    commands = re.findall(r"```bash\n(.*?)```", section, flags=re.S)
    assert len(commands) == 1
    assert commands[0].count("\n") == 1
    assert commands[0].startswith("pip install ")


def test_links_and_pictures_exist():
    targets = re.findall(r"\]\(([^)#]+)\)", README)
    local = [t for t in targets if not t.startswith("http")]
    assert local
    assert [t for t in local if not (ROOT / t).exists()] == []
