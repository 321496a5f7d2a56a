"""Kernels larger than memory and larger than one machine.

`compute_kernel` divides a kernel into tiles and computes them in this process or on the workers of
a Dask cluster, in this order:

1. `_sources` reads samples a block at a time, whatever form they are in. `_describe` describes the
   kernel as plain values. `_manifest` records both; if the store exists already, it is compared
   with the manifest that is there.
2. `_folder` makes the store, with copies of the samples. `_chunks` writes one chunk of a Zarr
   array, whole or not at all, with its checksum, and checks size and checksum when it reads one.
3. `_job` computes one tile of the `_grid` and checks it. `_run` loops over all tiles in this
   process; `_cluster` and `_worker` distribute them to other machines.
4. `KernelStore` is the result. It offers the kernel as a Dask array, products, linear systems,
   eigenpairs and predictions.

`compute_features` does the same for random features of gradients.

The extra `scale` (Dask and Zarr) must be installed; it is imported when it is first used.
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
