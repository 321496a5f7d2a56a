"""Two real processes under Fabric, Accelerate and transformers: nothing hangs, nothing changes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from two_processes import run_both

HERE = Path(__file__).parent


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_two_processes(tmp_path: Path) -> None:
    run_both(HERE / "loops_run.py", tmp_path)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in "01")
    assert first.keys() == second.keys() == {"by_fabric", "by_accelerate", "by_transformers"}
    for name, found in first.items():
        assert found["same"], name
        assert second[name]["same"], name
        assert found["weights"] == second[name]["weights"], name
        assert found["history"]["step"] == found["history"]["ntk/batches"] == [0, 1, 2, 3, 4], name
        assert found["history"]["ntk/drift"][0] == 0.0
        assert min(found["history"]["ntk/drift"][1:]) > 0.0, name
        assert second[name]["history"] == {}, name
        assert first[name]["answers"] == [], name
        assert second[name]["answers"] == [2, 3, 4], name  # of a share in the kernel of each
    files = list(tmp_path.glob("checkpoint-*/ntk_monitor-ntk.safetensors"))
    assert len(files) == 2
