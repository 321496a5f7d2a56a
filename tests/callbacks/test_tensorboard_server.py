"""What a user sees in the browser: a real TensorBoard server, asked over HTTP."""

from __future__ import annotations

import io
import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from typing import Any

import matplotlib.image
import pytest
from lightning.pytorch.loggers import TensorBoardLogger
from lightning_runs import LIGHTNING_SAYS, classifier, fit

from torch_ntk.callbacks import NTKMonitor

pytestmark = [pytest.mark.filterwarnings(text) for text in LIGHTNING_SAYS]
RUN = "lightning_logs/version_0"
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # loopback needs no proxy


def get(address: str, path: str, **query: str) -> bytes:
    with _DIRECT.open(f"{address}/{path}?{urllib.parse.urlencode(query)}", timeout=10) as reply:
        body: bytes = reply.read()
    return body


def wait_for_runs(server: subprocess.Popen[bytes], address: str, seconds: float = 60.0) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        assert server.poll() is None, "the server ended by itself"
        try:
            if RUN in json.loads(get(address, "data/runs")):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            pass  # not yet listening
        time.sleep(0.2)
    raise AssertionError(f"TensorBoard did not load the run within {seconds} s")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, NTKMonitor]]:
    """A short training, and the address of a server that shows it."""
    path = tmp_path_factory.mktemp("board")
    monitor = NTKMonitor(6, every_n_steps=1)
    fit(path, classifier(), [monitor], logger=TensorBoardLogger(path))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-W", "ignore", "-m", "tensorboard.main"]
    where = ["--logdir", str(path), "--host", "127.0.0.1", "--port", str(port)]
    server = subprocess.Popen(
        [*command, *where, "--load_fast", "false", "--reload_interval", "1"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        address = f"http://127.0.0.1:{port}"
        wait_for_runs(server, address)
        yield address, monitor
    finally:
        server.terminate()
        try:
            server.wait(timeout=20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def test_the_curves(served: tuple[str, NTKMonitor]) -> None:
    address, monitor = served
    tags = json.loads(get(address, "data/plugin/scalars/tags"))[RUN]
    history = monitor.history
    assert {tag for tag in tags if tag.startswith("ntk/")} == set(history) - {"step"}
    for name in set(history) - {"step"}:
        points = json.loads(get(address, "data/plugin/scalars/scalars", run=RUN, tag=name))
        start = 1 if name == "ntk/velocity" else 0  # no measurement before the first one
        assert [step for _, step, _ in points] == history["step"][start:]
        assert [value for *_, value in points] == pytest.approx(history[name][start:], rel=1e-6)


def test_the_groups_of_curves(served: tuple[str, NTKMonitor]) -> None:
    address, _ = served
    (section,) = json.loads(get(address, "data/plugin/custom_scalars/layout"))["category"]
    assert section["title"] == "ntk"
    charts = {chart["title"]: chart["multiline"]["tag"] for chart in section["chart"]}
    (tag,) = charts["speed of the kernel per step"]
    found = json.loads(
        get(address, "data/plugin/custom_scalars/scalars", run=RUN, tag=tag)  # by its pattern
    )
    assert [len(found["tag_to_events"][name]) for name in found["tag_to_events"]] == [10]


@pytest.mark.parametrize("tag", ["ntk/kernel", "ntk/spectrum", "ntk/linearization"])
def test_the_images(served: tuple[str, NTKMonitor], tag: str) -> None:
    address, _ = served
    found: list[dict[str, Any]] = json.loads(
        get(address, "data/plugin/images/images", run=RUN, tag=tag, sample="0")
    )
    assert [entry["step"] for entry in found] == [0, 1, 3, 7, 10]
    pictures = []
    for entry in found:
        png = get(address, f"data/plugin/images/individualImage?{entry['query']}")
        pictures.append(matplotlib.image.imread(io.BytesIO(png), format="png"))
    for picture in pictures:
        assert picture.shape == pictures[0].shape
        assert min(picture.shape[:2]) > 300
        assert picture.std() > 0.05  # something is drawn
    assert not (pictures[0][..., :3] == pictures[-1][..., :3]).all()


def test_the_verdict(served: tuple[str, NTKMonitor]) -> None:
    address, monitor = served
    *_, entry = json.loads(
        get(address, "data/plugin/text/text", run=RUN, tag="ntk/verdict/text_summary")
    )
    assert entry["step"] == 10
    assert monitor.verdict.regime in entry["text"].lower()
