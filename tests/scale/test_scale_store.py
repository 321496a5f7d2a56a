"""Stores of kernels: what is in them, what is refused, and what is computed again."""

from __future__ import annotations

import functools
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scale_kernels import oracle, quadratic, samples, skew
from torch import Tensor
from torch.utils.data import TensorDataset

from torch_ntk import CNTK, MLP, empirical_ntk, mlp_kernels

pytest.importorskip("zarr")
pytest.importorskip("dask.array")

import dask.array as da
import zarr

from torch_ntk.scale import KernelStore, _run, compute_kernel


def compute(path: Path, x1: Any, x2: Any = None, **options: Any) -> KernelStore:
    given = {"kernel": quadratic, "tile": 4, "progress": False} | options
    return compute_kernel(given.pop("kernel"), x1, x2, store=path / "k.zarr", **given)


def chunks(path: Path) -> dict[str, bytes]:
    """The files of the tiles."""
    root = path / "k.zarr" / "kernel" / "c"
    return {str(f.relative_to(root)): f.read_bytes() for f in root.rglob("*") if f.is_file()}


def mlp(a: Tensor, b: Tensor | None = None) -> Tensor:
    return mlp_kernels(a, b, depth=2).ntk


@pytest.mark.parametrize(("n1", "n2"), [(10, None), (8, None), (3, None), (10, 6), (5, 9)])
def test_it_holds_the_kernel(tmp_path: Path, n1: int, n2: int | None) -> None:
    x, z = samples(n1, 2, 3), None if n2 is None else samples(n2, 2, 3, seed=1)
    store = compute(tmp_path, x, z)
    expected = oracle(x, z)
    assert store.shape == expected.shape
    assert store.complete
    assert store.verify().ok
    np.testing.assert_allclose(store.to_dense().numpy(), expected, rtol=1e-12, atol=1e-12)
    assert np.array_equal(store.array.compute(), store.to_dense().numpy())
    if n2 is None:
        assert torch.equal(store.to_dense(), store.to_dense().T)
        rows = -(-n1 // 4)
        assert len(chunks(tmp_path)) == store.total == rows * (rows + 1) // 2
    a, b = store.array[1:, ::2], expected[1:, ::2]
    np.testing.assert_allclose(a.compute(), b, rtol=1e-12, atol=1e-12)
    assert np.array_equal(KernelStore(store.path).to_dense(), store.to_dense())


def test_kernels_of_this_package(tmp_path: Path) -> None:
    x = samples(7, 1, 5, 5)
    model = MLP([25, 8, 3])
    mean = functools.partial(empirical_ntk, model, output="mean", dtype=torch.float64)
    flat = x.flatten(1)
    cases: dict[str, tuple[Any, Tensor, Tensor]] = {
        "cntk": (CNTK(3), x, CNTK(3)(x)),
        "empirical": (mean, flat, mean(flat)),
        "limit": (_mlp, flat, mlp_kernels(flat).ntk),
    }
    for name, (kernel, given, expected) in cases.items():
        found = compute_kernel(kernel, given, store=tmp_path / name, tile=3, progress=False)
        assert (found.to_dense() - expected).abs().max() < 1e-12 * expected.max()


def _mlp(a: Tensor, b: Tensor) -> Tensor:
    return mlp_kernels(a, b).ntk


def test_samples_from_everywhere(tmp_path: Path) -> None:
    x = samples(9, 3)
    expected = compute(tmp_path, x).to_dense()
    np.save(tmp_path / "x.npy", x.numpy())
    zarr.create_array(store=str(tmp_path / "x.zarr"), data=x.numpy())
    given: list[Any] = [
        x.numpy(),
        x.clone().requires_grad_(),
        da.from_array(x.numpy(), chunks=(2, 3)),
        TensorDataset(x, torch.arange(9)),
        tmp_path / "x.npy",
        str(tmp_path / "x.zarr"),
        zarr.open_array(str(tmp_path / "x.zarr"), mode="r"),
    ]
    for each in given:  # the same samples, and so the same store
        assert torch.equal(compute(tmp_path, each).to_dense(), expected)
    integers = (10 * x).to(torch.uint8)
    store = compute_kernel(quadratic, integers, store=tmp_path / "i", tile=4, progress=False)
    np.testing.assert_allclose(store.to_dense().numpy(), oracle(integers), rtol=1e-12)


def test_another_kernel_data_tile_or_type_is_refused(tmp_path: Path) -> None:
    x = samples(6, 2)
    store = compute(tmp_path, x, labels=torch.arange(6))
    before = chunks(tmp_path)
    cases: list[tuple[str, dict[str, Any]]] = [
        (r"tile: 4, not 5", {"tile": 5}),
        (r"dtype: float64, not float32", {"dtype": torch.float32}),
        (r"x1: float32 \[6, 2\] with hash \w+, not float32 \[6, 2\]", {"x1": x + 1}),
        (r"x1: .* not float64", {"x1": x.double()}),
        (r"x2: none, not float32 \[6, 2\]", {"x2": x}),
        (r"kernel: .*code is .*, not ", {"kernel": skew}),
        (r"kernel: .*name is None, not 'mine'", {"name": "mine"}),
        (r"labels: int64", {"labels": torch.ones(6, dtype=torch.int64)}),
    ]
    for match, change in cases:
        given = {"x1": x} | change
        with pytest.raises(ValueError, match=match):
            compute(tmp_path, **given)
    assert chunks(tmp_path) == before
    assert store.labels is not None
    assert store.labels.tolist() == list(range(6))


def test_what_is_missing_or_damaged_is_computed_again(tmp_path: Path) -> None:
    x = samples(10, 2)
    store = compute(tmp_path, x, labels=range(10))
    whole = chunks(tmp_path)
    root = store.path / "kernel" / "c"
    flipped = bytearray(whole["0/1"])
    flipped[40] ^= 1
    (root / "0/1").write_bytes(flipped)
    (root / "1/1").write_bytes(whole["1/1"][:-9])
    (root / "2/2").write_bytes(b"")
    (root / "0/0").unlink()
    assert not store.complete
    found = store.verify()
    assert (found.finished, found.missing, found.damaged) == (2, 1, ((0, 1), (1, 1), (2, 2)))
    with pytest.raises(ValueError, match=r"`store` must be complete"):
        store.array  # noqa: B018
    (root / "0/0").write_bytes(whole["0/0"])
    with pytest.raises(ValueError, match=r"tile \(\d, \d\) is missing or damaged"):
        store.array.compute()
    with pytest.raises(ValueError, match=r"tile \(1, 1\) is missing or damaged"):
        store.read_tile(1, 1)
    kept = (root / "0/2").stat().st_mtime_ns
    sample = store.path / "x1" / "c" / "1" / "0"
    sample.write_bytes(sample.read_bytes()[::-1])
    labels = store.path / "labels" / "c" / "0"
    labels.write_bytes(labels.read_bytes()[1:])
    (store.path / "x1" / "c" / "0" / "0").unlink()
    damaged = KernelStore(store.path).verify()
    assert damaged.samples == (("x1", 0), ("x1", 1), ("labels", 0))
    with pytest.raises(ValueError, match=r"block 0 of labels is damaged.*same samples and labels"):
        store.labels  # noqa: B018
    again = compute(tmp_path, x, labels=range(10))
    assert again.verify().ok
    assert again.labels is not None
    assert again.labels.tolist() == list(range(10))
    assert chunks(tmp_path) == whole
    assert (root / "0/2").stat().st_mtime_ns == kept


def _change(path: Path, change: dict[str, Any]) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | change))


def _pickling(path: Path) -> None:
    """As arrays of objects are described, in the older format and in the new one."""
    codecs = [{"name": "numcodecs.pickle", "configuration": {}}, {"name": "crc32c"}]
    _change(path / "kernel" / "zarr.json", {"codecs": codecs})
    (path / "kernel" / ".zarray").write_text(json.dumps({"filters": [{"id": "pickle"}]}))


def _linked(path: Path) -> None:
    shutil.move(path / "kernel" / "c", path.parent / "outside")
    (path / "kernel" / "c").symlink_to(path.parent / "outside")


HOSTILE = {
    "huge": (lambda p: _change(p / "manifest.json", {"columns": 2**60}), "sizes from 1"),
    "wide": (lambda p: _change(p / "manifest.json", {"columns": 2**40}), "of 6 columns"),
    "tile": (lambda p: _change(p / "manifest.json", {"tile": 2**40}), "other shape|chunk_grid"),
    "object": (lambda p: _change(p / "manifest.json", {"dtype": "object"}), "of type float32"),
    "kind": (lambda p: _change(p / "manifest.json", {"kind": "../../etc"}), "kind '../../etc'"),
    "kernel": (lambda p: _change(p / "manifest.json", {"kernel": {"a": 1}}), "do not agree"),
    "format": (lambda p: _change(p / "manifest.json", {"format": 99}), "format 99"),
    "text": (lambda p: (p / "manifest.json").write_text("[" * 9**6), "manifest.json"),
    "pickle": (_pickling, "other codecs"),
    "link": (_linked, "a link at"),
    "none": (lambda p: (p / "manifest.json").unlink(), "has no manifest.json"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_store_is_refused(tmp_path: Path, name: str) -> None:
    x = samples(6, 2)
    store = compute(tmp_path, x)
    attack, match = HOSTILE[name]
    attack(store.path)
    with pytest.raises(ValueError, match=match):
        compute(tmp_path, x)
    if name != "link":  # which is seen when a tile is looked for
        with pytest.raises(ValueError, match=match):
            KernelStore(store.path)


def test_a_chunk_in_place_of_another_file_is_not_followed(tmp_path: Path) -> None:
    x = samples(6, 2)
    store = compute(tmp_path, x)
    secret = tmp_path / "secret"
    secret.write_bytes(b"s" * (4 * 4 * 8 + 4))
    tile = store.path / "kernel" / "c" / "0" / "1"
    tile.unlink()
    tile.symlink_to(secret)
    assert store.verify().damaged == ((0, 1),)
    assert compute(tmp_path, x).verify().ok
    assert secret.read_bytes() == b"s" * (4 * 4 * 8 + 4)


def test_entries_that_are_not_finite_name_their_samples(tmp_path: Path) -> None:
    x = samples(10, 2)
    x[6] = torch.nan
    match = r"4 entries .*first between samples 0 and 6, .* all those of sample 6 of x1"
    with pytest.raises(ValueError, match=match):
        compute(tmp_path, x)
    assert KernelStore(tmp_path / "k.zarr").finished == 1  # the tile before


def test_samples_that_a_kernel_refuses_are_named_as_the_caller_counts_them(tmp_path: Path) -> None:
    x, others = samples(10, 3), samples(9, 3, seed=1)
    x[6, 1], others[8] = torch.nan, torch.inf
    cases = (
        (x, None, "2, 1", "6 of x1"),
        (x, samples(9, 3), "2, 1", "6 of x1"),
        (samples(10, 3), others, "0, 0", "8 of x2"),
    )
    for i, (x1, x2, index, named) in enumerate(cases):
        match = rf"first at index \({index}\).* Counted from 0 .*: {named}\. This tile"
        with pytest.raises(ValueError, match=match):
            compute_kernel(mlp, x1, x2, store=tmp_path / str(i), tile=4, progress=False)


def test_a_function_that_is_no_kernel_is_refused(tmp_path: Path) -> None:
    x = samples(6, 2)
    with pytest.raises(ValueError, match=r"symmetric: .* entries \d, \d and \d, \d that differ"):
        compute(tmp_path, x, kernel=skew)
    assert not list(tmp_path.glob("k.zarr/kernel/c/*/*"))
    rectangular = compute_kernel(skew, x, x, store=tmp_path / "r", tile=4, progress=False)
    assert torch.equal(rectangular.to_dense(), skew(x, x))
    full = functools.partial(empirical_ntk, MLP([2, 3, 2]))
    with pytest.raises(ValueError, match=r"\[4, 4\] for so many samples.*output='mean'"):
        compute_kernel(full, x, store=tmp_path / "f", tile=4, progress=False)


def test_wrong_arguments_are_refused_before_anything_is_made(tmp_path: Path) -> None:
    x = samples(6, 2)
    cases: list[tuple[type[Exception], str, dict[str, Any]]] = [
        (TypeError, "`kernel` must be a function", {"kernel": "cntk"}),
        (TypeError, "`x1` must be a tensor or array", {"x1": [1.0, 2.0]}),
        (ValueError, "`x1` must be a path that exists", {"x1": tmp_path / "none.npy"}),
        (ValueError, "`x1` must be of at least one sample", {"x1": x[:0]}),
        (TypeError, "`x1` must be of real numbers", {"x1": x.to(torch.complex64)}),
        (ValueError, "`tile` must be a positive integer", {"tile": 0}),
        (ValueError, "`dtype` must be torch.float64", {"dtype": torch.float16}),
        (TypeError, "`client` must be None or a dask", {"client": "tcp://somewhere"}),
        (ValueError, "`labels` must be of 6 samples", {"labels": [1, 2]}),
        (
            TypeError,
            r"`labels` must be numbers .*; got <U1 of shape \[6\]",
            {"labels": list("abcdef")},
        ),
        (TypeError, "`name` must be None or a string that is not empty", {"name": ""}),
        (ValueError, "`device` must be None or the name of a device", {"device": "quda"}),
        (ValueError, "`device` must be a device that this process has", {"device": "hpu"}),
        (OSError, "a tile of at most 6, the number of samples", {"tile": 10**9}),
    ]
    for error, match, change in cases:
        with pytest.raises(error, match=match):
            compute(tmp_path, **({"x1": x} | change))
    with pytest.raises(ValueError, match="in a folder that exists"):
        compute(tmp_path / "none", x)
    assert not list(tmp_path.iterdir())


def test_a_pickle_is_not_read_as_samples(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"an \.npy file of numbers.*Python objects"):
        compute(tmp_path, path)


def test_what_a_killed_process_began_is_removed(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        pass
    host = socket.gethostname()
    names = {
        f".k.zarr.{'0' * 32}.{host}-{ended.pid}.part": False,
        f".k.zarr.{'0' * 32}.{host}-{os.getpid()}.part": True,
        f".k.zarr.{'0' * 32}.elsewhere-{ended.pid}.part": True,
        f".other.zarr.{'0' * 32}.{host}-{ended.pid}.part": True,
    }
    for name in names:
        (tmp_path / name).mkdir()
    store = compute(tmp_path, samples(6, 2))
    assert {name: (tmp_path / name).exists() for name in names} == names
    tile = store.path / "kernel" / "c" / "0" / "1"
    for age, name in ((7200, "1.a.partial"), (0, "1.b.partial")):
        shutil.copy(tile, tile.with_name(name))
        os.utime(tile.with_name(name), (time.time() - age,) * 2)
    assert compute(tmp_path, samples(6, 2)).finished == 3
    assert sorted(p.name for p in tile.parent.iterdir()) == ["0", "1", "1.b.partial"]


def test_modules_are_moved_as_copies(tmp_path: Path) -> None:
    model, x = MLP([3, 4, 2]), samples(6, 3)
    meta = functools.partial(empirical_ntk, model, output="mean")
    found = compute(tmp_path, x, kernel=meta, device="cpu")
    assert (found.to_dense() - meta(x)).abs().max() < 1e-6
    with pytest.raises(TypeError, match="on the meta device"):
        compute_kernel(meta, x, store=tmp_path / "m", tile=4, device="meta", progress=False)
    assert {p.device.type for p in model.parameters()} == {"cpu"}


def test_a_tile_that_does_not_fit_in_memory_says_what_to_do(tmp_path: Path) -> None:
    def large(a: Tensor, b: Tensor) -> Tensor:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 PB")

    with pytest.raises(MemoryError, match="tile of 4 samples: choose a smaller `tile`"):
        compute(tmp_path, samples(6, 2), kernel=large)


def test_float32_halves_the_disk(tmp_path: Path) -> None:
    x = samples(8, 2)
    store = compute(tmp_path, x, dtype=torch.float32)
    assert store.dtype == torch.float32
    assert torch.equal(store.to_dense(), torch.from_numpy(oracle(x)).float())
    assert sum(len(c) for c in chunks(tmp_path).values()) == 3 * (16 * 4 + 4)
    assert store.about["bytes"] == 3 * (16 * 4 + 4)


def test_the_time_left_is_estimated_without_tiles_that_were_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bars: list[Any] = []

    class Bar(_run.tqdm):  # type: ignore[type-arg]
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            bars.append(self)

    monkeypatch.setattr(_run, "tqdm", Bar)
    x = samples(10, 2)
    store = compute(tmp_path, x, progress=True)
    for tile in ("0/1", "2/2"):
        (store.path / "kernel" / "c" / tile).unlink()
    compute(tmp_path, x, progress=True)
    assert [(bar.total, bar.n, bar.initial) for bar in bars] == [(68, 68, 0), (68, 68, 48)]


def test_an_empty_folder_is_taken_and_a_store_without_tiles_may_be_removed(tmp_path: Path) -> None:
    x = samples(6, 2)
    x[0, 0] = torch.nan
    (tmp_path / "k.zarr").mkdir()
    with pytest.raises(ValueError, match="not \\(the first between samples 0 and 0"):
        compute(tmp_path, x)
    with pytest.raises(
        ValueError, match="another path, or remove the store: none of its tiles is finished"
    ):
        compute(tmp_path, samples(6, 2))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "k.zarr").mkdir()
    (tmp_path / "other" / "k.zarr" / "file").touch()
    with pytest.raises(ValueError, match=r"which has no manifest\.json"):
        compute(tmp_path / "other", samples(6, 2))
    assert [p.name for p in (tmp_path / "other").iterdir()] == ["k.zarr"]
