"""Kernels larger than memory and larger than one machine.

`compute_kernel` divides a kernel into tiles and computes them in this process or on the workers of
a Dask cluster, in this order:

1. `_sources` reads samples a block at a time, from wherever they are; `_describe` says what the
   kernel is, and `_manifest` has both, and with what they are compared when a store is there.
2. `_folder` makes the store, with copies of the samples; `_chunks` writes one chunk of a Zarr
   array, whole or not at all, with its checksum, and reads it only as what it must be.
3. `_job` computes a tile of the `_grid` and checks it; `_run` goes over all, `_cluster` and
   `_worker` do so on other machines.
4. `KernelStore` is the result: a Dask array, products, linear systems, eigenpairs, predictions.

`compute_features` does the same for random features of gradients.

Needs the extra `scale` (Dask and Zarr), which is loaded when it is first used.
"""

from ._compute_features import FeatureStore as FeatureStore
from ._compute_features import compute_features as compute_features
from ._compute_kernel import compute_kernel as compute_kernel
from ._kernel_store import KernelStore as KernelStore
from ._predict import Prediction as Prediction
from ._tile_store import TileStore as TileStore
from ._tile_store import Verified as Verified

__all__ = [
    "FeatureStore",
    "KernelStore",
    "Prediction",
    "TileStore",
    "Verified",
    "compute_features",
    "compute_kernel",
]
