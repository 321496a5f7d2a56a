"""Two real processes that train together: nothing hangs, nothing changes, one of them logs."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from two_processes import run_both

HERE = Path(__file__).parent


def train(folder: Path) -> list[Any]:
    """Run both processes to their end, or kill both; what each of them found."""
    run_both(HERE / "ddp_run.py", folder)
    return [torch.load(folder / f"found{rank}.pt", weights_only=True) for rank in "01"]


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_two_processes(tmp_path: Path) -> None:
    both = train(tmp_path)
    plain, found = ([each[name] for each in both] for name in ("alone", "watched"))

    for a, b in zip(plain, found, strict=True):
        # Also the batch statistics, which each process has of its own.
        assert a["weights"].keys() == b["weights"].keys()
        assert all(torch.equal(a["weights"][n], b["weights"][n]) for n in a["weights"])
        assert len(a["moments"]) == len(b["moments"]) == 6
        assert all(torch.equal(v, w) for v, w in zip(a["moments"], b["moments"], strict=True))
        assert torch.equal(a["random"], b["random"])
        # The values are told after the first step, at the ends of two epochs and at the end.
        more = {"broadcast_object_list": a["collectives"].get("broadcast_object_list", 0) + 4}
        assert sum(a["collectives"].values()) > 0
        assert {**a["collectives"], **more} == b["collectives"]
    assert found[0]["stopped"] == found[1]["stopped"]
    assert 0 < found[0]["stopped"][0] < 150
    assert not found[1]["stopped"][1].startswith("unknown")

    assert found[0]["answers"] == []
    assert found[1]["answers"] == [2, 3, 4, 5, 6]  # of what was asked for one step ahead
    for name, values in found[0]["alone"].items():
        if name not in ("ntk/seconds", "ntk/overhead"):
            assert found[0]["together"][name] == pytest.approx(values, rel=1e-6), name

    history = found[0]["history"]
    assert history["step"] == list(range(len(history["step"])))
    assert len(history["step"]) == 7  # two epochs of three steps, and the end
    assert history["ntk/drift"][0] == 0.0
    assert min(history["ntk/drift"][1:]) > 0.0
    assert found[1]["history"] == {}

    # The other process waited for a slow measurement, and was told how long it would have.
    assert history["ntk/seconds"][3] > 2.0
    (said,) = found[0]["said"]
    assert "they fail after 6 s" in said
    assert found[1]["said"] == plain[0]["said"] == []

    with open(
        tmp_path / "watched" / "lightning_logs" / "version_0" / "metrics.csv", newline=""
    ) as file:
        points = [row for row in csv.DictReader(file) if row["ntk/drift"]]
    assert [float(row["ntk/drift"]) for row in points] == history["ntk/drift"]

    resumed = found[0]["resumed"]
    assert resumed["step"] == list(range(10))
    assert resumed["ntk/drift"][:6] == history["ntk/drift"][:6]
    for name in ("probe", "validation"):
        assert torch.equal(found[0][name], found[1][name])

    forecast = found[0]["forecast"]
    assert forecast["step"] == [0, 5, 10, 15, 20]
    assert forecast["forecast/predicted"] == pytest.approx(forecast["forecast/actual"], rel=1e-4)
    assert forecast["forecast/actual"][-1] < 0.1 * forecast["forecast/actual"][0]
    assert found[1]["forecast"] == {}
