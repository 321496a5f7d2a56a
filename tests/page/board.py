"""A real TensorBoard with the tab, whether the package is installed with its entry point or not."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # loopback needs no proxy
_SERVE = """
import sys
from tensorboard import default, program
from torch_ntk.tensorboard_plugin import NTKPlugin
board = program.TensorBoard([*default.get_static_plugins(), NTKPlugin])
board.configure(argv=["tensorboard", *sys.argv[1:]])
sys.exit(board.main())
"""


def get(address: str) -> bytes:
    with _DIRECT.open(address, timeout=10) as reply:
        body: bytes = reply.read()
    return body


@contextlib.contextmanager
def board(logdir: Path) -> Iterator[str]:
    """The address of a server for this folder."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-W", "ignore", "-c", _SERVE, "--logdir", str(logdir)]
    server = subprocess.Popen(
        [*command, "--host", "127.0.0.1", "--port", str(port), "--load_fast", "false"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        address, until = f"http://127.0.0.1:{port}", time.monotonic() + 60.0
        while True:
            assert server.poll() is None, "the server ended by itself"
            with contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError):
                if json.loads(get(f"{address}/data/plugins_listing")):
                    break
            assert time.monotonic() < until, "TensorBoard did not answer within a minute"
            time.sleep(0.1)
        yield address
    finally:
        server.terminate()
        try:
            server.wait(timeout=20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
