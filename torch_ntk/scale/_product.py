"""A stored kernel in the form in which the iterative algorithms take a matrix: by its products."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..empirical.operator._symmetric_product import SymmetricProduct
from ..memory import budget
from ._packages import package
from ._tile_store import TileStore

_SMALL = 2000  # up to so many samples an eigendecomposition is faster than tens of products


def product_of(store: TileStore, client: Any) -> SymmetricProduct:
    """Products with a symmetric kernel, computed in float64 whatever the dtype of the entries.

    They are computed in memory if the kernel fits there. Otherwise each tile is read once for each
    product, by this process or by the workers of a client.
    """
    size = store.shape[0]
    kept: list[Tensor] = []

    def dense() -> Tensor:
        if not kept:
            kept.append(store.to_dense().double())
        return kept[0]

    def multiply(v: Tensor) -> Tensor:
        if size**2 * 8 <= budget(torch.device("cpu")) // 2 or kept:
            return dense() @ v
        return store @ v if client is None else _on_workers(store, v.numpy(), client)

    return SymmetricProduct(
        size,
        torch.float64,
        torch.device("cpu"),
        multiply,
        dense,
        lambda: torch.from_numpy(store.diagonal()),
        lambda: size <= _SMALL,
    )


def _on_workers(store: TileStore, v: NDArray[Any], client: Any) -> Tensor:
    array = store.array
    vectors = package("dask.array").from_array(v, chunks=(array.chunks[1], v.shape[1]))
    product = array.astype(np.float64) @ vectors
    return torch.from_numpy(np.asarray(client.compute(product, sync=True)))
