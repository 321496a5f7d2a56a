"""The example trains, measures and reports, for each of its options, on small data."""

from __future__ import annotations

import gzip
import importlib.util
import struct
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "train_with_monitor.py"
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*treespec.*"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*"),
]


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("train_with_monitor", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def write_idx(path: Path, array: np.ndarray) -> None:
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    path.write_bytes(header + array.astype(np.uint8).tobytes())


@pytest.fixture
def tiny_fashion(tmp_path):
    """A Fashion-MNIST folder in torchvision's layout with a few random images."""
    raw = tmp_path / "data" / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for part, n in (("train", 200), ("t10k", 50)):
        write_idx(raw / f"{part}-images-idx3-ubyte", rng.integers(0, 256, (n, 28, 28)))
        write_idx(raw / f"{part}-labels-idx1-ubyte", np.arange(n) % 10)
    return tmp_path / "data"


@pytest.mark.parametrize("model", ["mlp", "cnn"])
@pytest.mark.parametrize("parameterization", ["ntk", "standard"])
def test_digits(example, tmp_path, capsys, model, parameterization):
    monitor = example.main(
        [
            *("--model", model, "--parameterization", parameterization, "--width", "8"),
            *("--max-epochs", "2", "--probe", "16", "--log-dir", str(tmp_path / "runs")),
        ]
    )
    history = monitor.history
    assert len(history["step"]) >= 10
    assert history["step"][0] == 0
    assert history["step"][-1] == 46
    assert history["ntk/drift"][0] == 0
    assert 0 < history["ntk/drift"][-1] < 10
    out = capsys.readouterr().out
    assert "Verdict: " in out
    assert out.rstrip().endswith(f"tensorboard --logdir {tmp_path / 'runs'}")
    assert list((tmp_path / "runs").rglob("events.out.tfevents.*"))


def test_fashion_mnist_from_files(example, tiny_fashion, tmp_path, capsys):
    monitor = example.main(
        [
            *("--dataset", "fashion-mnist", "--data-root", str(tiny_fashion), "--width", "8"),
            *("--max-epochs", "3", "--probe", "16", "--log-dir", str(tmp_path / "runs")),
        ]
    )
    assert monitor.history["step"][-1] == 12
    assert "200 training images" in capsys.readouterr().out


def test_missing_data_says_what_to_do(example, tmp_path):
    with pytest.raises(SystemExit, match="--data-root"):
        example.main(["--dataset", "mnist", "--data-root", str(tmp_path / "nowhere")])


def test_loss_mse_uses_zero_centred_targets(example):
    import torch

    model = example.Classifier(torch.nn.Identity(), 0.1, "mse")
    labels = torch.tensor([3])
    targets = torch.full((1, 10), -0.1)
    targets[0, 3] = 0.9
    assert float(model.loss(targets, labels)) == pytest.approx(0.0, abs=1e-12)
    assert float(model.loss(targets + 1, labels)) == pytest.approx(5.0, rel=1e-6)


def test_help_names_every_option(example, capsys):
    with pytest.raises(SystemExit):
        example.main(["--help"])
    out = capsys.readouterr().out
    for option in ("--dataset", "--data-root", "--width", "--parameterization", "--max-epochs"):
        assert option in out


def test_compressed_files_alone_are_not_enough(example, tmp_path):
    """torchvision reads the unpacked files; the packed ones alone end in the same clear message."""
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    (raw / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(b"not images"))
    with pytest.raises(SystemExit, match="fashion-mnist is not under"):
        example.main(["--dataset", "fashion-mnist", "--data-root", str(tmp_path)])


@pytest.mark.parametrize("option", ["--width", "--max-epochs", "--batch-size", "--probe"])
@pytest.mark.parametrize("value", ["0", "-3", "many"])
def test_counts_must_be_positive(example, capsys, option, value):
    with pytest.raises(SystemExit):
        example.arguments([option, value])
    assert f"argument {option}" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:The network has NaN or infinite parameters")
def test_a_diverged_run_says_so(example, tmp_path, capsys):
    monitor = example.main(
        [
            *("--model", "mlp", "--width", "8", "--max-epochs", "2", "--probe", "16"),
            *("--lr", "1e30", "--log-dir", str(tmp_path / "runs")),
        ]
    )
    assert monitor.verdict.regime == "diverged"
    out = capsys.readouterr().out
    assert "Verdict: diverged: " in out
    assert "lower the learning rate" in out
    assert "e+" not in out[out.index("Verdict") :]
