"""What may happen to processes, disks and machines, with real ones.

Every test ends with the bytes of a run to which nothing happened.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from scale_job import TILE, N
from scale_kernels import samples, slow

pytest.importorskip("zarr")
pytest.importorskip("distributed")

from distributed import Client

from torch_ntk.scale import KernelStore, _chunks, compute_kernel

HERE = Path(__file__).resolve().parent
TILES = 36
DRAW = random.Random(0)


def bytes_of(store: Path) -> dict[str, bytes]:
    """The files of the tiles, whole or not."""
    root = store / "kernel" / "c"
    return {str(f.relative_to(root)): f.read_bytes() for f in root.rglob("*") if f.is_file()}


def finish(store: Path) -> KernelStore:
    return compute_kernel(slow, samples(N, 3), store=store, tile=TILE, progress=False)


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The bytes of a run to which nothing happens."""
    path = tmp_path_factory.mktemp("whole") / "k"
    assert finish(path).complete
    return bytes_of(path)


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """How often the kernel was called, by whichever process."""
    path = tmp_path / "calls"
    path.touch()
    monkeypatch.setenv("NTK_CALLS", str(path))
    return lambda: path.stat().st_size


@contextlib.contextmanager
def job(*arguments: object) -> Iterator[subprocess.Popen[str]]:
    """A process of its own session, of which nothing is left afterwards."""
    command = [sys.executable, *(str(a) for a in arguments)]
    options: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=HERE, start_new_session=True, **options) as process:
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def wait(condition: Callable[[], bool], process: subprocess.Popen[str] | None = None) -> None:
    """Until something is so."""
    end = time.monotonic() + 60
    while not condition():
        if process is not None and process.poll() is not None:
            raise AssertionError(process.communicate()[1])
        assert time.monotonic() < end, "nothing happened in a minute"
        time.sleep(0.005)


def tiles(store: Path) -> int:
    return len(list(store.glob("kernel/c/*/*")))


def test_killed_at_any_time_it_goes_on(tmp_path: Path, expected: dict[str, bytes]) -> None:
    store = tmp_path / "k"
    for done in (0, 9):
        with job("scale_job.py", store, 0) as process:
            wait(lambda done=done: tiles(store) > done, process)  # type: ignore[misc]
            time.sleep(DRAW.uniform(0, 0.1))
            os.killpg(process.pid, signal.SIGKILL)
    assert not KernelStore(store).complete
    assert KernelStore(store).verify().damaged == ()
    assert finish(store).verify().ok
    assert {k: v for k, v in bytes_of(store).items() if "partial" not in k} == expected


@pytest.mark.slow
def test_a_killed_worker_loses_its_tile_and_a_killed_job_nothing(
    tmp_path: Path, expected: dict[str, bytes], calls: Callable[[], int]
) -> None:
    store = tmp_path / "k"
    with job("scale_job.py", store, 2) as process:
        assert process.stdout is not None
        workers = [int(pid) for pid in process.stdout.readline().split()]
        wait(lambda: tiles(store) > 4, process)
        os.kill(workers[0], signal.SIGKILL)
        wait(lambda: tiles(store) > 12, process)
        family = psutil.Process(process.pid).children(recursive=True)
        os.kill(process.pid, signal.SIGKILL)  # with it the scheduler
        psutil.wait_procs(family, timeout=20)
        left = [p.cmdline() for p in family if p.is_running() and p.status() != "zombie"]
        assert not left, "workers outlive the scheduler"
    computed = tiles(store)
    assert calls() <= computed + 1 + 2  # those that were running on what was killed
    assert finish(store).verify().ok
    assert calls() <= TILES + 3
    assert {k: v for k, v in bytes_of(store).items() if "partial" not in k} == expected


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_command_and_keeps_what_is_done(
    tmp_path: Path, expected: dict[str, bytes], number: signal.Signals, status: int
) -> None:
    from safetensors.torch import save_file

    store = tmp_path / "k"
    save_file({"x": samples(N, 3)}, tmp_path / "x.safetensors")
    command = (
        *("-m", "torch_ntk.command", "kernel", "--store", store, "--tile", TILE),
        *("--kernel", "scale_kernels:slow", "--data", tmp_path / "x.safetensors"),
    )
    with job(*command) as process:
        wait(lambda: tiles(store) > 4, process)
        process.send_signal(number)
        _, error = process.communicate(timeout=30)
    assert process.returncode == status
    last = error.replace("\r", "\n").splitlines()[-1]
    done = KernelStore(store).finished
    told = re.search(rf": (\d+) of {TILES} tiles are in {store}; the same command resumes", last)
    assert told is not None
    assert int(told[1]) in (done - 1, done)  # a tile that is just being written is still finished
    assert "Traceback" not in error
    assert finish(store).verify().ok
    assert {k: v for k, v in bytes_of(store).items() if "partial" not in k} == expected


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_to_workers_too_ends_them_quietly(
    tmp_path: Path, number: signal.Signals, status: int
) -> None:
    """As Ctrl-C in a terminal and the end of a batch job: every process gets it."""
    from safetensors.torch import save_file

    store = tmp_path / "k"
    save_file({"x": samples(N, 3)}, tmp_path / "x.safetensors")
    command = (
        *("-m", "torch_ntk.command", "kernel", "--store", store, "--tile", 1, "--workers", 1),
        *("--kernel", "scale_kernels:slow", "--data", tmp_path / "x.safetensors"),
    )
    with job(*command) as process:
        wait(lambda: tiles(store) > 4, process)
        family = psutil.Process(process.pid).children(recursive=True)
        os.killpg(process.pid, number)
        _, error = process.communicate(timeout=60)
        assert not psutil.wait_procs(family, timeout=20)[1]
    assert process.returncode == status
    assert "Traceback" not in error
    assert "the same command resumes" in error.splitlines()[-1]
    assert KernelStore(store).verify().damaged == ()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 150 KB, where we may make one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=150k", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no disk can be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk(small_disk: Path, expected: dict[str, bytes]) -> None:
    store = small_disk / "k"
    with pytest.raises(OSError, match=r"No space left on device \(\d+ of 36 tiles .* stay") as full:
        finish(store)
    assert full.value.errno == errno.ENOSPC
    done = KernelStore(store).verify()
    assert 5 < done.finished < TILES
    assert done.damaged == ()
    remount = ["mount", "-o", "remount,size=10m", str(small_disk)]
    subprocess.run(remount, check=True)
    assert finish(store).verify().ok
    assert bytes_of(store) == expected


def test_an_error_of_the_disk(
    tmp_path: Path, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same where no disk can be mounted: the sixth write fails."""
    writes = iter(range(100))
    plain = _chunks.Chunks.write

    def write(self: Any, values: Any, *index: int) -> None:
        if self.path.name == "kernel" and next(writes) >= 5:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        plain(self, values, *index)

    monkeypatch.setattr(_chunks.Chunks, "write", write)
    with pytest.raises(OSError, match=r"No space left on device \(5 of 36 tiles"):
        finish(tmp_path / "k")
    monkeypatch.undo()
    assert finish(tmp_path / "k").complete
    assert bytes_of(tmp_path / "k") == expected


def test_a_disk_that_is_too_small_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = shutil.disk_usage(tmp_path)._replace(free=9000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: free)
    with pytest.raises(OSError, match=r"take 18\.1 KiB, and 8\.8 KiB are free"):
        finish(tmp_path / "k")
    assert not list(tmp_path.iterdir())


def test_two_jobs_make_one_store(
    tmp_path: Path, expected: dict[str, bytes], calls: Callable[[], int]
) -> None:
    store = tmp_path / "k"
    with job("scale_job.py", store, 0) as one:
        wait(lambda: tiles(store) > 4, one)
        with job("scale_job.py", store, 0) as two:
            for process in (one, two):
                _, error = process.communicate(timeout=60)
                assert process.returncode == 0, error
    assert bytes_of(store) == expected
    # Both may compute a tile at once, but none that was there when the second began.
    assert TILES <= calls() <= 2 * TILES - 4
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


@pytest.mark.slow
def test_processes_that_share_a_folder_and_an_address(
    tmp_path: Path, expected: dict[str, bytes]
) -> None:
    """As on several machines: a scheduler, a worker that knows its address, and this process."""
    file, store = tmp_path / "scheduler.json", tmp_path / "k"
    address = ("--scheduler-file", file)
    scheduler = ("-m", "distributed.cli.dask_scheduler", "--port", 0, "--dashboard-address", ":0")
    worker = ("-m", "distributed.cli.dask_worker", "--nthreads", 1, "--dashboard-address", ":0")
    with job(*scheduler, *address) as s, job(*worker, *address) as w:
        wait(file.exists, s)
        with Client(scheduler_file=str(file), timeout="60s") as client:
            client.wait_for_workers(1, timeout=60)
            given = {"store": store, "tile": TILE, "progress": False, "client": client}
            found = compute_kernel(slow, samples(N, 3), **given)
            assert found.verify().ok
            assert set(client.run(os.getpid).values()).isdisjoint({os.getpid(), s.pid, w.pid})
    assert bytes_of(store) == expected
