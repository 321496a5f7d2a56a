"""`compute_features`: compute random features of many samples' gradients into a store."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import nn

from .._checks import check_choice, check_positive_int, type_error
from .._types import ModelLike
from ..features import ntk_features
from ._run import Request, StorePath, run
from ._sources import source_of
from ._tile_store import TileStore


class FeatureStore(TileStore):
    """Features φ(x) `[N, dim]` in a folder that `compute_features` has made.

    Args:
        path: The folder.

    Raises:
        ImportError: The extra `scale` is not installed.
        ValueError: There is no such folder, or its content does not fit its manifest.
    """


def compute_features(
    model: ModelLike,
    x: Any,
    dim: int,
    *,
    store: StorePath,
    output: Literal["mean", "pseudo"] = "mean",
    tile: int = 256,
    client: Any = None,
    progress: bool = True,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
    name: str | None = None,
    **options: Any,
) -> FeatureStore:
    """Random projections φ(x) of gradients, `⟨φ(x), φ(x')⟩ ≈ Θ(x, x')`, in blocks of samples.

    The features are those of `torch_ntk.ntk_features`. They are computed and stored as kernels are
    by `compute_kernel`, whose documentation applies: on all workers of a cluster if a client is
    given, and resumed after a crash. A tile holds all features of `tile` samples.

    Args:
        model: A module, or a function `f(params, batch)` with `params={name: tensor}`.
        x: N samples, as in `compute_kernel`.
        dim: The number of features of a sample.
        store: The folder, which is made if it does not exist.
        output: The kernel that the features approximate, `"mean"` or `"pseudo"`.
        tile: The number of samples of a tile.
        client: A `dask.distributed.Client`; None computes in this process.
        progress: Whether to show a progress bar.
        dtype: The dtype of the stored features; None means that of the model's parameters.
        device: The device to which samples and model are moved.
        name: A name that identifies the features, in place of a description of the model.
        options: Further arguments of `ntk_features`: `kind`, `seed`, `params`, `forward_fn`,
            `batch_size`, `check`.

    Returns:
        The store, whose `.array` is a Dask array `[N, dim]`.

    Raises:
        TypeError, ValueError: As `compute_kernel` and `ntk_features`.

    Example:
        >>> import tempfile, torch
        >>> from torch_ntk.scale import compute_features
        >>> model, x = torch.nn.Linear(50, 1), torch.randn(9, 50)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     phi = compute_features(
        ...         model, x, 20, store=f"{folder}/phi.zarr", tile=4, progress=False
        ...     )
        ...     phi.shape, phi.finished, phi.array.chunks
        ((9, 20), 3, ((4, 4, 1), (20,)))
    """
    check_positive_int("dim", dim)
    check_choice("output", output, ("mean", "pseudo"), "One row of features for each sample.")
    unknown = set(options) - {"kind", "seed", "params", "forward_fn", "batch_size", "check"}
    if unknown:
        raise type_error("options", "those of ntk_features", ", ".join(sorted(unknown)))
    if dtype is None:
        dtype = _dtype_of(model, options.get("params"))
    request = Request(
        kind="features",
        kernel=functools.partial(ntk_features, model, dim=dim, output=output, **options),
        x1=source_of("x", x),
        x2=None,
        columns=dim,
        store=store,
        tile=tile,
        dtype=dtype,
        device=device,
        name=name,
        labels=None,
    )
    return FeatureStore(run(request, client, progress).path)


def _dtype_of(model: object, params: object) -> torch.dtype:
    """The dtype of the features: float64 if any parameter is float64, otherwise float32."""
    tensors: list[Any] = list(model.parameters()) if isinstance(model, nn.Module) else []
    if isinstance(params, Mapping):
        tensors += params.values()
    wide = any(getattr(p, "dtype", None) == torch.float64 for p in tensors)
    return torch.float64 if wide else torch.float32
