"""Networks and kernels by depth: the table's numbers, on few digits."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType

import pytest
import torch
from PIL import Image

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(EXAMPLES)
    return importlib.import_module("cntk_table")


def test_kernels_and_networks_learn(
    example: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "out.png"
    small = ("--train", "30", "--test", "60", "--depths", "3", "--channels", "8", "--steps", "250")
    found = example.main([*small, "--out", str(picture)])
    assert found == json.loads(picture.with_suffix(".json").read_text(encoding="utf-8"))
    by_column = {(e["kind"], e["pooling"]): e for e in found["entries"]}
    assert set(by_column) == set(example.COLUMNS)
    assert min(e["accuracy"] for k, e in by_column.items() if k[0] == "CNTK") > 0.7
    vanilla = by_column["CNN", "flatten"]
    assert vanilla["fitted"] > 0.98
    assert 0.4 < vanilla["accuracy"] < 1
    assert 0 < vanilla["steps"] <= 250
    out = capsys.readouterr().out
    assert "No published number" in out  # these are not the data of the paper
    assert "64.47" not in out
    with Image.open(picture) as image:
        assert min(image.size) > 400


def test_the_network_belongs_to_the_kernel(example: ModuleType) -> None:
    """With many channels its tangent kernel is the CNTK, up to the units of the paper."""
    from torch_ntk import CNTK, empirical_ntk

    torch.manual_seed(0)
    x = torch.randn(3, 1, 4, 4)
    for pooling in ("flatten", "gap"):
        net = example.network(1, 512, 3, pooling, 16)
        finite = empirical_ntk(net, x, output="mean").double()
        limit = CNTK(3, pooling=pooling)(x)
        assert (finite - limit).norm() < 0.2 * limit.norm()


def test_published_numbers_stand_beside_their_own_data_only(
    example: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    entries = [
        example.Entry(kind, pooling, 3, 0.4, 0.01, 1.0, 0, 0.0) for kind, pooling in example.COLUMNS
    ]
    cifar = ("--dataset", "cifar10", "--train", "2000", "--depths", "3")
    example.print_table(entries, example.arguments(cifar))
    assert "49.71%" in capsys.readouterr().out
    example.print_table(entries, example.arguments([*cifar, "--train", "50000"]))
    assert "63.81%" in capsys.readouterr().out
    for other in (("--size", "16"), ("--train", "500"), ("--dataset", "fashion-mnist")):
        example.print_table(entries, example.arguments([*cifar, *other]))
        assert not {"49.71%", "63.81%"} & set(capsys.readouterr().out.split())


def test_missing_data_and_wrong_numbers(
    example: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="cifar10 is not under --data-root"):
        example.main(["--dataset", "cifar10", "--data-root", str(tmp_path)])
    with pytest.raises(SystemExit):
        example.arguments(["--depths", "1"])
    assert "at least 2" in capsys.readouterr().err
