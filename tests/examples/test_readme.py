"""The README's code runs, and its commands are what they promise to be."""

from __future__ import annotations

import re

import pytest
import torch
from doc_pages import ROOT, code_of, text_of
from lightning.pytorch import LightningModule
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from torch_ntk import MLP

README = text_of("README.md")
SNIPPETS = code_of(README)


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
def test_snippet_runs_alone_and_is_short(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = [line for line in code.splitlines() if line.strip()]
    assert len(lines) <= 10
    x, y = torch.randn(64, 8), torch.randint(0, 3, (64,))
    names = {"model": Tiny(), "loader": DataLoader(TensorDataset(x, y), batch_size=32)}
    exec(compile(code, "README.md", "exec"), names)
    if "monitor" in names:
        assert names["monitor"].history["ntk/drift"][0] == 0.0
        assert names["monitor"].history["step"][-1] == 10
    elif "theta" in names:
        assert names["theta"].shape == (5, 4, 3, 3)
        assert torch.equal(names["mean"], names["mean"].T)
    else:
        assert torch.linalg.eigvalsh(names["limit"])[0] > 0
        assert 0 < names["curve"].loss[-1] < names["curve"].loss[0]


def test_it_is_short_and_begins_with_a_picture():
    assert README.count("\n") < 150
    assert README.index("![") < README.index("## ")
    assert len(SNIPPETS) == README.count("```python") == 3


@pytest.mark.parametrize("heading", ["Quickstart", "Tests"])
def test_command_is_one_line(heading):
    section = README.split(f"## {heading}\n")[1].split("\n## ")[0]
    commands = re.findall(r"```bash\n(.*?)```", section, flags=re.S)
    assert len(commands) == 1
    assert commands[0].count("\n") == 1
    assert commands[0].startswith("pip install ")


def test_links_and_pictures_exist():
    links = re.findall(r"\]\(([^)]+)\)", README + text_of("CONTRIBUTING.md"))
    local = [link.partition("#") for link in links if not link.startswith("http")]
    assert len(local) > 20
    for path, _, anchor in local:
        assert (ROOT / path).exists(), path
        assert not anchor or anchor in _anchors(text_of(path)), (path, anchor)


def _anchors(page):
    """What GitHub makes of headings."""
    headings = re.findall(r"^#+ (.*)$", page, flags=re.M)
    kept = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {words.strip().replace(" ", "-") for words in kept}
