"""What the benchmarks share: timing, the environment, and where results are written."""

from __future__ import annotations

import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import torch_ntk

HERE = Path(__file__).resolve().parent
DOCS = HERE.parent / "docs"


def best(run: Callable[[], object], repeats: int = 20, most: float = 15.0) -> float:
    """The shortest of some runs in seconds, after one that does not count.

    Args:
        run: What is timed.
        repeats: At most so many runs.
        most: No further run is started after these seconds.
    """
    run()
    times: list[float] = []
    begin = time.perf_counter()
    while len(times) < repeats and (not times or time.perf_counter() - begin < most):
        times.append(seconds(run))
    return min(times)


def seconds(run: Callable[[], object]) -> float:
    """That one run takes."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def peak_memory() -> int:
    """The peak memory of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def version(package: str) -> str | None:
    """The installed version, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def environment() -> dict[str, Any]:
    """What the figures depend on."""
    commit = ""
    if shutil.which("git"):
        commit = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=HERE, capture_output=True, text=True
        ).stdout.strip()
    cpu = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = lines[0].split(":", 1)[1].strip() if lines else cpu
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch_ntk": torch_ntk.__version__,
        "jax": version("jax"),
        "neural_tangents": version("neural-tangents"),
        "commit": commit,
        "load": os.getloadavg()[0],
    }


def worker(script: Path, job: dict[str, Any]) -> dict[str, Any] | None:
    """Run one job of a script in a process of its own; what it prints as JSON in its last line.

    None if the job says that something is missing.
    """
    done = subprocess.run(
        [sys.executable, str(script), "--job", json.dumps(job)],
        capture_output=True,
        text=True,
        cwd=HERE.parent,
    )
    if done.returncode != 0:
        raise RuntimeError(f"{job} failed:\n{done.stderr[-2000:]}")
    result: dict[str, Any] | None = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def read_json(path: Path) -> Any:
    """A result that `write_json` has written."""
    return json.loads(path.read_text(encoding="utf-8"))


def write_json(path: Path, result: dict[str, Any]) -> None:
    """Write a result beside the scripts."""
    path.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
