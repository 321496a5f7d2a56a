"""`python -m torch_ntk.info`: versions, and what was found on this machine.

For a report of a fault, or to see which optional packages are there. `--json` prints the same as
one JSON object, with null for what is missing.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Sequence
from importlib import metadata
from typing import Any

from ._version import __version__

# Distributions by the names under which they are shown.
_REQUIRED = {
    "torch": "torch",
    "lightning": "lightning",
    "tensorboard": "tensorboard",
    "numpy": "numpy",
    "scipy": "scipy",
    "scikit-learn": "scikit-learn",
    "Numba": "numba",
}
_OPTIONAL = {
    "Triton": ("triton", "comes with PyTorch for GPUs, where torch.compile needs it"),
    "Dask": ("dask", "pip install 'torch_ntk[scale]': kernels on several machines"),
    "Zarr": ("zarr", "pip install 'torch_ntk[scale]': kernels and features on disk"),
    "transformers": ("transformers", "pip install 'torch_ntk[transformers]': its Trainer"),
    "GPyTorch": ("gpytorch", "pip install 'torch_ntk[gpytorch]': Gaussian processes"),
}


def found() -> dict[str, Any]:
    """Versions and devices, as plain values; None for what is not there.

    Returns:
        Under `"torch_ntk"`, `"python"`, `"platform"` and the names of packages strings; under
        `"gpus"` a list of `{"name", "memory_bytes"}`; under `"cuda"` the version that PyTorch is
        built for; under `"threads"` how many PyTorch computes with; under `"memory_bytes"` what is
        free, and `"memory_total_bytes"`.

    Example:
        >>> from torch_ntk.info import found
        >>> found()["torch_ntk"] == __import__("torch_ntk").__version__
        True
    """
    import psutil
    import torch

    memory = psutil.virtual_memory()
    packages = {**_REQUIRED, **{name: package for name, (package, _) in _OPTIONAL.items()}}
    return {
        "torch_ntk": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        **{name: _version(package) for name, package in packages.items()},
        "cuda": torch.version.cuda,
        "gpus": _gpus(),
        "threads": torch.get_num_threads(),
        "memory_bytes": int(memory.available),
        "memory_total_bytes": int(memory.total),
    }


def _version(package: str) -> str | None:
    """From the metadata: nothing is imported, which takes seconds for some."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _gpus() -> list[dict[str, Any]]:
    import torch

    if not torch.cuda.is_available():
        return []
    devices = (torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count()))
    return [{"name": d.name, "memory_bytes": int(d.total_memory)} for d in devices]


def in_words(values: dict[str, Any]) -> str:
    """What `found` returns, a line for each."""
    rows = [(name, values[name]) for name in ("torch_ntk", "python", "platform")]
    rows += [(name, values[name] or "missing, and needed") for name in _REQUIRED]
    rows += [
        (name, values[name] or f"not installed ({purpose})")
        for name, (_, purpose) in _OPTIONAL.items()
    ]
    gpus = [f"{gpu['name']}, {gpu['memory_bytes'] / 2**30:.0f} GiB" for gpu in values["gpus"]]
    cuda = f"PyTorch is built for CUDA {values['cuda']}" if values["cuda"] else "PyTorch for CPUs"
    rows.append(("GPU", "; ".join(gpus) or f"none found ({cuda})"))
    free, total = values["memory_bytes"] / 2**30, values["memory_total_bytes"] / 2**30
    rows.append(("CPU", f"{values['threads']} threads, {free:.0f} of {total:.0f} GiB free"))
    width = max(len(name) for name, _ in rows)
    return "".join(f"{name:<{width}}  {value}\n" for name, value in rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print what was found.

    Args:
        arguments: Of the command line; None takes those of the process.

    Returns:
        The status with which the process ends, 0.
    """
    description = "Versions, and what torch_ntk has found on this machine."
    parser = argparse.ArgumentParser("python -m torch_ntk.info", description=description)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    chosen = parser.parse_args(arguments)
    values = found()
    text = json.dumps(values, ensure_ascii=False) + "\n" if chosen.json else in_words(values)
    sys.stdout.writelines([text])
    return 0


if __name__ == "__main__":
    sys.exit(main())
