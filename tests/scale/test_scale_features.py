"""Features in stores, against those in memory."""

from __future__ import annotations

from pathlib import Path

import pytest
from scale_kernels import samples

pytest.importorskip("zarr")

from torch_ntk import MLP, ntk_features
from torch_ntk.scale import FeatureStore, KernelStore, compute_features


def test_features_are_those_in_memory(tmp_path: Path) -> None:
    model, x = MLP([5, 30, 3]).double(), samples(11, 5).double()
    given = {"store": tmp_path / "phi", "tile": 4, "progress": False, "seed": 3}
    store = compute_features(model, x, 40, **given)  # type: ignore[arg-type]
    expected = ntk_features(model, x, 40, seed=3)
    assert (store.to_dense() - expected).abs().max() < 1e-12
    assert store.array.shape == (11, 40)
    part = store.path / "features" / "c" / "1" / "0"
    whole = part.read_bytes()
    part.write_bytes(whole[:50])
    assert store.verify().damaged == ((1, 0),)
    assert compute_features(model, x, 40, **given).verify().ok  # type: ignore[arg-type]
    assert part.read_bytes() == whole
    for change, match in (({"seed": 4}, r"keywords\.seed is 3, not 4"), ({"dim": 41}, "columns")):
        with pytest.raises(ValueError, match=match):
            compute_features(model, x, **({"dim": 40} | given | change))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="a store of a kernel"):
        KernelStore(store.path)
    assert FeatureStore(store.path).complete
    with pytest.raises(TypeError, match="`options` must be those of ntk_features; got blocks"):
        compute_features(model, x, 40, store=tmp_path / "p", blocks=3)
