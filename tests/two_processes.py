"""Two processes that train together: how a test starts its script in both, and what both do."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def run_both(script: Path, folder: Path) -> None:
    """Run `script RANK PORT FOLDER` in two processes to their end, or kill both."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    paths = os.pathsep.join(map(str, (HERE.parent, HERE)))
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    processes = []
    for rank in ("0", "1"):
        with open(folder / f"log{rank}.txt", "wb") as log:
            command = [sys.executable, str(script), rank, port, str(folder)]
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
            processes.append(process)
    try:
        codes = [process.wait(timeout=180) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    logs = "\n".join((folder / f"log{rank}.txt").read_text()[-3000:] for rank in "01")
    assert codes == [0, 0], logs


def join(rank: str, port: str) -> None:
    """Be the process of this rank among the two, for whatever connects them."""
    os.environ.update(
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=port,
        WORLD_SIZE="2",
        RANK=rank,
        LOCAL_RANK=rank,
        NODE_RANK="0",
    )


def noted_answers() -> list[int]:
    """The steps at which this process sends a share of a kernel from now on."""
    from torch_ntk.monitor.loop._sharing import Sharing

    answers: list[int] = []
    original = Sharing.answer

    def noting(self: Sharing, step: int, *given: Any) -> None:
        answers.append(step)
        original(self, step, *given)

    Sharing.answer = noting  # type: ignore[method-assign]
    return answers
