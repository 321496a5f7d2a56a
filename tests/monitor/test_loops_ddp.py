"""Two real processes under Fabric, Accelerate and transformers: nothing hangs, nothing changes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_two_processes(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = {**os.environ, "PYTHONPATH": str(HERE.parents[1]), "OMP_NUM_THREADS": "1"}
    processes = []
    for rank in ("0", "1"):
        with open(tmp_path / f"log{rank}.txt", "wb") as log:
            command = [sys.executable, str(HERE / "loops_run.py"), rank, port, str(tmp_path)]
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
            processes.append(process)
    try:
        codes = [process.wait(timeout=180) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert codes == [0, 0], "\n".join(
        (tmp_path / f"log{rank}.txt").read_text()[-3000:] for rank in "01"
    )
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
