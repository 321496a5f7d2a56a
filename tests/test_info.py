"""`python -m torch_ntk.info`."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import metadata

import pytest
import torch

import torch_ntk
from torch_ntk import info


def test_it_says_what_is_installed(capsys: pytest.CaptureFixture[str]) -> None:
    assert info.main(["--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["torch_ntk"] == torch_ntk.__version__
    assert found["torch"] == metadata.version("torch")
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert len(found["gpus"]) == torch.cuda.device_count()
    assert 0 < found["memory_bytes"] <= found["memory_total_bytes"]


def test_what_is_missing_is_said_with_its_remedy(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def version(name: str) -> str:
        if name in ("zarr", "lightning"):
            raise metadata.PackageNotFoundError(name)
        return "1.2.3"

    monkeypatch.setattr(metadata, "version", version)
    assert info.found()["Zarr"] is None
    info.main([])
    lines = dict(line.split(None, 1) for line in capsys.readouterr().out.splitlines())
    assert lines["Dask"] == "1.2.3"
    assert lines["Zarr"].startswith("not installed (pip install 'torch_ntk[scale]'")
    assert lines["lightning"] == "missing, and needed"
    gpu = "none found" if not torch.cuda.is_available() else torch.cuda.get_device_name(0)
    assert lines["GPU"].startswith(gpu)


@pytest.mark.slow
def test_it_is_a_module_that_runs() -> None:
    command = [sys.executable, "-W", "error", "-m", "torch_ntk.info"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("torch_ntk ")
    assert done.stderr == ""
