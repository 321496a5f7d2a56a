"""The history as a table, and networks of which a process holds a part."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from torch_ntk.monitor import METRICS, Monitor

X, Y = torch.randn(6, 4, generator=torch.Generator().manual_seed(3)), torch.arange(6) % 2


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2))


def test_a_history_fits_into_a_data_frame() -> None:
    """Columns of one length, also of metrics that have no value at every point."""
    pandas = pytest.importorskip("pandas")
    metrics = (*METRICS, "stability", "module_drift")
    monitor, model = Monitor((X, Y), every_n_steps=2, metrics=metrics), network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(7):
        given = None if step == 2 else optimizer
        if step == 2:
            with pytest.warns(UserWarning, match="no optimizer is known"):
                monitor.step(model, given)
        else:
            monitor.step(model, given)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(X), Y).backward()
        optimizer.step()
    monitor.finish(model, optimizer)
    table = pandas.DataFrame(monitor.history).set_index("step")
    assert table.index.tolist() == [0.0, 2.0, 4.0, 6.0, 7.0]
    assert all(kind.kind == "f" for kind in table.dtypes)
    assert table["ntk/stability"].isna().tolist() == [False, True, False, False, False]
    assert table["ntk/velocity"].isna().tolist() == [True, False, False, False, False]
    assert table["ntk/drift"].is_monotonic_increasing
    assert not math.isnan(table["ntk/module_drift/0"].iloc[-1])


@pytest.fixture
def group(tmp_path: Path) -> Iterator[Any]:
    where = f"file://{tmp_path}/store"
    dist.init_process_group("gloo", init_method=where, rank=0, world_size=1)
    try:
        yield init_device_mesh("cpu", (1,))
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("on_error", ["raise", "warn"])
def test_sharded_parameters_are_refused_by_name(on_error: str, group: Any) -> None:
    """Really sharded by FSDP2: what a process holds of a weight is not the weight."""
    model = network()
    fully_shard(model, mesh=group)
    monitor = Monitor((X, Y), on_error=on_error)
    if on_error == "raise":
        with pytest.raises(TypeError, match=r"DTensor"):
            monitor.step(model)
    else:
        with pytest.warns(UserWarning, match=r"No measurement at step 0: .*DTensor"):
            assert monitor.step(model) is None
    assert monitor.history == {}
