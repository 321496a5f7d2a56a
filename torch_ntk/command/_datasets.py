"""Read the samples and labels that the arguments of the command line name."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

_TORCHVISION = {"fashion-mnist": "FashionMNIST", "mnist": "MNIST", "cifar10": "CIFAR10"}


class Samples(NamedTuple):
    """The samples that a subcommand computes with.

    Attributes:
        x: The samples, in a form that `torch_ntk.scale` takes. A file is read into memory only if
            its samples are to be resized or standardized.
        labels: The labels of the samples, or None.
    """

    x: Any
    labels: Any


def samples(chosen: argparse.Namespace) -> Samples:
    """The samples that are chosen by the arguments of `add_samples`."""
    if chosen.split is not None and chosen.data not in _TORCHVISION:
        raise ValueError(f"--split is for {', '.join(_TORCHVISION)}; {chosen.data} has no splits.")
    if chosen.size is not None and chosen.size < 1:
        raise ValueError(f"--size must be at least 1; got {chosen.size}.")
    x, labels = _read(chosen)
    if x.ndim == 0:
        raise ValueError(f"--data must be of samples [N, ...]; {chosen.data} has one number.")
    if chosen.labels is not None:
        labels = _array(chosen.labels)
    count = x.shape[0]
    first = chosen.skip
    end = count if chosen.n is None else first + chosen.n
    if not 0 <= first < end <= count:
        raise ValueError(
            f"--skip and --n ask for samples {first} to {end}; {chosen.data} has {count}."
        )
    if labels is not None and (labels.ndim == 0 or len(labels) != count):
        had = len(labels) if labels.ndim else "no"
        raise ValueError(f"--labels has {had} labels; {chosen.data} has {count} samples.")
    x = x[first:end] if (first, end) != (0, count) else x
    labels = None if labels is None else np.asarray(labels)[first:end]
    if chosen.size is not None or chosen.standardize:
        whole = x if isinstance(x, Tensor) else torch.from_numpy(np.array(x))
        x = _preprocessed(whole, chosen.size, chosen.standardize)
    return Samples(x, labels)


def _read(chosen: argparse.Namespace) -> tuple[Any, Any]:
    name, path = chosen.data, Path(chosen.data)
    if name == "digits":
        from sklearn.datasets import load_digits  # type: ignore[import-untyped]

        x, y = load_digits(return_X_y=True)
        return torch.as_tensor(x, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16, y
    if name in _TORCHVISION:
        return _torchvision(name, chosen.data_root, chosen.split != "test")
    if path.suffix == ".safetensors":
        return _tensors(path)
    if path.suffix == ".npy":
        return _array(path), None
    if (path / "zarr.json").is_file():
        import zarr

        try:
            return zarr.open_array(str(path), mode="r", zarr_format=3), None
        except ValueError as error:
            where = f"The samples of a store are in {path / 'x1'}."
            raise ValueError(f"--data {path} is no Zarr array ({error}). {where}") from error
    known = ", ".join(["digits", *_TORCHVISION])
    raise ValueError(
        f"--data must be {known}, an .npy or .safetensors file or a Zarr array; got {name!r}."
    )


def _torchvision(name: str, root: Path, train: bool) -> tuple[Tensor, Any]:
    """The images `[N, C, P, Q]` of a torchvision dataset, pixels from 0 to 1, and their labels."""
    from torchvision import datasets  # type: ignore[import-untyped]

    try:
        data = getattr(datasets, _TORCHVISION[name])(root, train=train)
    except RuntimeError as error:
        raise ValueError(f"{name} is not below --data-root {root} ({error}).") from error
    pixels = torch.as_tensor(data.data)
    pixels = pixels.unsqueeze(1) if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2)
    return pixels.float() / 255, np.asarray(data.targets)


def _tensors(path: Path) -> tuple[Any, Any]:
    """The tensor `x` of a file, or its only one besides `labels`; and `labels`, if it is there."""
    found = safetensors(path)
    labels = found.pop("labels", None)
    if "x" not in found and len(found) != 1:
        listed = ", ".join(sorted(found)) or "none"
        raise ValueError(f"{path} must have a tensor x, and may have labels; it has {listed}.")
    return found.get("x", next(iter(found.values()))), labels


def safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file; `ValueError` if it is none."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        remedy = "Write one with safetensors.torch.save_file(model.state_dict(), path)."
        raise ValueError(f"{path} is no .safetensors file ({error}). {remedy}") from error


def _array(path: Path) -> Any:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:  # NumPy regards any other content as a pickle
        remedy = "Write one with numpy.save; Python objects are not read."
        raise ValueError(f"{path} is no .npy file of numbers. {remedy}") from error


def _preprocessed(x: Tensor, size: int | None, standardize: bool) -> Tensor:
    x = x if x.is_floating_point() else x.float()
    if size is not None:
        if x.ndim != 4:
            raise ValueError(f"--size needs images [N, C, P, Q]; got shape {tuple(x.shape)}.")
        x = F.interpolate(x, (size, size), mode="bilinear", antialias=True)
    return (x - x.mean()) / x.std() if standardize else x
