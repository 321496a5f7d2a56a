"""The packages of the extra `scale`, imported when they are first used."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_REMEDY = (
    "Kernels in a store need {name}: pip install zarr 'dask[array,distributed]' (the extra "
    "`scale` of torch_ntk; Python 3.11 or later)."
)


def package(name: str) -> Any:
    """`zarr`, `dask.array`, or `distributed`, Dask's scheduler for several machines."""
    try:
        return import_module(name)
    except ImportError as error:
        raise ImportError(_REMEDY.format(name=name.partition(".")[0])) from error
