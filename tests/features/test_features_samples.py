"""Where samples come from and features go to, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset
from traces import snapshot

from torch_ntk import ntk_features

X = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 3))


class Labelled(Dataset[tuple[Tensor, int]]):
    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return X[i], i % 3


def of_image(model: nn.Module, batch: list[Tensor]) -> Tensor:
    return model(batch[0])


@pytest.mark.parametrize(
    ("samples", "options"),
    [
        (X, {"batch_size": 2}),
        ({"input": X}, {}),
        (TensorDataset(X), {"batch_size": 3}),
        (DataLoader(TensorDataset(X), batch_size=3), {}),
        (DataLoader(TensorDataset(X), batch_size=4), {"batch_size": 3}),
        (Labelled(), {"forward_fn": of_image}),
        (DataLoader(Labelled(), batch_size=2), {"forward_fn": of_image}),
    ],
    ids=["blocks", "mapping", "dataset", "loader", "loader-blocks", "labelled", "labelled-loader"],
)
def test_samples_of_any_kind(net, samples, options):
    expected = ntk_features(net, X, 8)
    found = ntk_features(net, samples, 8, **options)
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_rows_of_a_batch_are_rows_of_the_whole(net):
    whole = ntk_features(net, X, 8, dtype=torch.float64)
    for n in range(len(X)):
        row = ntk_features(net, X[n : n + 1], 8, dtype=torch.float64)
        assert torch.allclose(row[0], whole[n], rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("output", ["mean", "full"])
def test_a_file_is_the_same_and_says_what_it_is(net, tmp_path: Path, output: str):
    path = tmp_path / "phi.safetensors"
    expected = ntk_features(net, X, 8, output=output, seed=2)
    options = {"output": output, "seed": 2, "store": path, "batch_size": 2}
    found = ntk_features(net, X, 8, **options)
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-6)
    with safe_open(path, "pt") as file:
        assert torch.equal(file.get_slice("features")[2:4], found[2:4])
        about = file.metadata()
    assert (about["kind"], about["output"], about["dim"], about["seed"]) == (
        "sjlt",
        output,
        "8",
        "2",
    )
    assert [p.name for p in tmp_path.iterdir()] == ["phi.safetensors"]


def test_a_file_of_parts(net, tmp_path: Path):
    parts = ntk_features(net, X, 8, by="module", store=tmp_path / "phi.safetensors", batch_size=3)
    expected = ntk_features(net, X, 8, by="module")
    assert list(parts) == list(expected)
    for name, own in parts.items():
        assert torch.allclose(own, expected[name], rtol=1e-5, atol=1e-6)


def test_a_failure_leaves_the_old_file(net, tmp_path: Path):
    path = tmp_path / "phi.safetensors"
    ntk_features(net, X, 8, store=path)
    before = path.read_bytes()
    bad = X.clone()
    bad[6] = torch.inf
    with pytest.raises(ValueError, match="`x` must be finite"):
        ntk_features(net, bad, 8, store=path, batch_size=2)
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("by", [None, "module"])
def test_a_zarr_store(net, tmp_path: Path, by):
    zarr = pytest.importorskip("zarr", reason="zarr 3 needs Python 3.11")
    path = tmp_path / "phi.zarr"
    expected = ntk_features(net, X, 8, by=by, seed=2)
    for _ in range(2):  # the second one takes the place of the first
        found = ntk_features(net, X, 8, by=by, seed=2, store=path, batch_size=2)
        pairs = zip(*(f.values() if by else [f] for f in (found, expected)), strict=True)
        for own, wanted in pairs:
            assert isinstance(own, zarr.Array)
            assert torch.allclose(torch.from_numpy(own[:]), wanted, rtol=1e-5, atol=1e-6)
        assert [p.name for p in tmp_path.iterdir()] == ["phi.zarr"]
    assert dict(zarr.open_group(path, mode="r").attrs)["seed"] == "2"
    bad = X.clone()
    bad[6] = torch.inf
    with pytest.raises(ValueError, match="`x` must be finite"):
        ntk_features(net, bad, 8, by=by, store=path, batch_size=2)
    assert [p.name for p in tmp_path.iterdir()] == ["phi.zarr"]
    (tmp_path / "mine.zarr").mkdir()
    with pytest.raises(ValueError, match="exists and is not one"):
        ntk_features(net, X, 8, store=tmp_path / "mine.zarr")


def test_no_trace(net):
    net.train()
    x = X.clone()
    before = snapshot(net, x)
    ntk_features(net, DataLoader(TensorDataset(x), batch_size=3), 8)
    assert snapshot(net, x) == before


class Endless(IterableDataset[Tensor]):
    def __iter__(self):
        return iter(X)


@pytest.mark.parametrize(
    ("samples", "options", "error", "text"),
    [
        (X, {"dim": 1000}, ValueError, "`dim` must be at most the number of parameters, 147"),
        (X, {"dim": 1000, "kind": "gaussian"}, ValueError, "exact: empirical_ntk"),
        (X, {"dim": 0}, ValueError, "`dim` must be a positive integer"),
        (X, {"dim": 8.0}, TypeError, "`dim`"),
        (X, {"kind": "fourier"}, ValueError, "`kind` must be one of 'sjlt', 'gaussian'"),
        (X, {"output": "trace"}, ValueError, "`output` must be one of 'mean', 'pseudo', 'full'"),
        (X, {"seed": -1}, ValueError, "`seed`"),
        (X, {"by": "layer"}, ValueError, "`by`"),
        (X, {"store": "features.pt"}, ValueError, "ends in .safetensors or .zarr"),
        (X, {"store": "no/such/folder/f.safetensors"}, ValueError, "a folder that exists"),
        (X, {"store": 3}, TypeError, "`store`"),
        (X, {"max_memory": "1KB"}, ValueError, "max_memory"),
        (X, {"max_memory": 100}, ValueError, "store='features.safetensors'"),
        (X[:, :4], {}, ValueError, "model"),
        (3, {}, TypeError, "`x`"),
        (Endless(), {}, ValueError, "Call ntk_features for one batch after the other"),
        (DataLoader(Endless()), {}, ValueError, "samples of a known number"),
        (DataLoader(TensorDataset(X), shuffle=True), {}, ValueError, "shuffle=False"),
        (DataLoader(TensorDataset(X), 2, drop_last=True), {}, ValueError, "leaves out 1"),
        (DataLoader([X[0], X[1], X[2, :4]], batch_size=2), {}, ValueError, "Pad all batches"),
        (DataLoader(TensorDataset(X), batch_sampler=[[0], [1]]), {}, ValueError, "2 of them"),
        (DataLoader(Labelled(), 2), {}, TypeError, "forward_fn"),
        (TensorDataset(X[:0]), {}, ValueError, "at least one sample"),
        (nn.BatchNorm1d(5), {}, TypeError, "`x`"),
    ],
)
def test_refusals(net, samples, options, error, text):
    with pytest.raises(error) as caught:
        ntk_features(net, samples, **{"dim": 8, **options})
    assert text in str(caught.value)


def test_models_that_kernels_refuse(net):
    coupled = nn.Sequential(net, nn.BatchNorm1d(3, track_running_stats=False))
    with pytest.raises(ValueError, match="track_running_stats"):
        ntk_features(coupled, X, 8)


def test_many_outputs_are_refused_before_a_projection_is_drawn(net, monkeypatch):
    monkeypatch.setattr("torch_ntk.features._ntk_features.budget", lambda device: 1000)
    with pytest.raises(ValueError, match=r"'mean' of 3 outputs, .*output='pseudo'"):
        ntk_features(net, X, 8)
    assert ntk_features(net, X, 8, output="pseudo").shape == (7, 8)
