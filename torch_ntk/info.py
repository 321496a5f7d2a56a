"""`python -m torch_ntk.info`: print the versions of packages and the devices of this machine.

It is meant for bug reports, and shows which optional packages are installed. `--json` prints the
same as one JSON object, with null for what is missing.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Sequence
from importlib import metadata
from typing import Any

from ._version import __version__

# The distributions of packages, by the names under which they are shown.
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
        A dictionary. Under `"torch_ntk"`, `"python"`, `"platform"` and the names of packages it has
        strings; under `"gpus"` a list of `{"name", "memory_bytes"}`; under `"cuda"` the version of
        CUDA that PyTorch is built for; under `"threads"` the number of PyTorch's threads; under
        `"memory_bytes"` the free and under `"memory_total_bytes"` the total memory.

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
    """A package's version from its metadata; importing some of them would take seconds."""
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
    """The values of `found` as text, with a line for each."""
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
    """Print the values of `found`.

    Args:
        arguments: The arguments of the command line; None takes those of the process.

    Returns:
        The exit status of the process: 0, or 1 if the values cannot be written.
    """
    description = "Versions, and what torch_ntk has found on this machine."
    parser = argparse.ArgumentParser("python -m torch_ntk.info", description=description)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    chosen = parser.parse_args(arguments)
    values = found()
    text = json.dumps(values, ensure_ascii=False) + "\n" if chosen.json else in_words(values)
    try:
        write(text)
    except OSError as error:
        sys.stderr.writelines(["torch_ntk.info: ", str(error), "\n"])
        return 1
    return 0


def write(text: str) -> None:
    """Write to the standard output. It is no error if the reader of a pipe has closed it.

    Raises:
        OSError: The standard output is closed, or its device is full.
    """
    if sys.stdout is None:  # as after `>&-` in a shell
        raise OSError("the standard output is closed.")
    try:
        sys.stdout.writelines([text])
        sys.stdout.flush()
    except BrokenPipeError:
        # Python flushes what is left once more when it ends, and would then print the error.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
