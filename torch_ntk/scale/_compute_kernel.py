"""`compute_kernel`: compute a kernel of any size, tile by tile, into a store."""

from __future__ import annotations

from typing import Any

import torch

from ._job import Kernel
from ._kernel_store import KernelStore
from ._run import Request, StorePath, run
from ._sources import source_of


def compute_kernel(
    kernel: Kernel,
    x1: Any,
    x2: Any = None,
    *,
    store: StorePath,
    tile: int = 256,
    client: Any = None,
    progress: bool = True,
    dtype: torch.dtype = torch.float64,
    device: str | torch.device | None = None,
    name: str | None = None,
    labels: Any = None,
) -> KernelStore:
    """Compute the kernel of many samples tile by tile, into a folder that survives any crash.

    Each tile of `tile` × `tile` entries is computed by one call `kernel(a, b)`, and written
    whole or not at all, with a checksum. Of a symmetric kernel (`x2=None`) only tiles on and above
    the diagonal are computed and written. Memory does not grow with the number of samples.

    Calling the function again with the same store resumes the computation: finished tiles are
    checked and kept, damaged ones are computed again. The result is bitwise that of a single run,
    provided that the machines and their numbers of threads compute alike. Several calls, also from
    several machines, may work on one store at the same time; each begins at a different row of
    tiles and skips the tiles that it finds finished.

    With a client, tiles are tasks of its workers. A worker computes one tile at a time with as many
    PyTorch threads as it has Dask threads. Client and workers must all see the folder under the
    same path. The kernel is sent to the workers as Dask sends functions, by pickle between
    processes that trust each other. The store holds only numbers and text; nothing that is read
    from it is executed.

    Args:
        kernel: A function of two batches, `(a, b) -> [n1, n2]`: a `CNTK`,
            `functools.partial(analytic_ntk, model)`,
            `functools.partial(empirical_ntk, model, output="mean")`, or any other that can be
            pickled. Tiles on the diagonal are computed as `kernel(a)` if the kernel is one of this
            package, and as `kernel(a, a)` otherwise.
        x1: N1 samples: a tensor, an array, a Dask or Zarr array, the path of an `.npy` file or of a
            Zarr array; or a map-style dataset of tensors or arrays, or of tuples that begin with
            one (the other elements are ignored). They are read twice, once for their hash and once
            to be copied into the store. The kernel gets tensors of their dtype.
        x2: N2 samples; None means x2 = x1.
        store: The folder, which is made if it does not exist. It holds a Zarr group (format 3).
        tile: The number of samples along each side of a tile.
        client: A `dask.distributed.Client`; None computes in this process, one tile after the
            other with all threads of PyTorch.
        progress: Whether to show a progress bar.
        dtype: The dtype of the stored entries, `torch.float64` or `torch.float32`. The kernel
            computes in its own dtype.
        device: The device to which samples, and the modules of the kernel, are moved before it is
            called. `"cuda"` with a client means one device for each worker: the only one that it
            sees, or, of several, the one with the number at the end of the worker's name.
        name: A name that identifies the kernel, in place of the description that is otherwise made
            of it from its settings, the hash of its tensors, and the code of functions and classes
            that are not PyTorch's. If you pass a name, you yourself assert that two kernels of the
            same name are the same.
        labels: Class labels or targets of x1, `[N1]` or `[N1, O]`, which are stored beside the
            samples.

    Returns:
        The store, with all of its tiles.

    Raises:
        TypeError, ValueError: An argument is wrong. The store is of another kernel, other samples,
            another tile size, dtype or version of PyTorch; the message lists the differences. The
            kernel does not return one number for each pair, or some that are not finite; the
            message names the samples.
        OSError: The disk is full, or has too little room for all tiles. Finished tiles stay.
        ImportError: The extra `scale` is not installed.

    Example:
        >>> import tempfile, torch
        >>> from torch_ntk import CNTK
        >>> from torch_ntk.scale import compute_kernel
        >>> images = torch.rand(10, 1, 8, 8)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     store = compute_kernel(
        ...         CNTK(3), images, store=f"{folder}/k.zarr", tile=4, progress=False
        ...     )
        ...     store.shape, store.finished, store.complete
        ((10, 10), 6, True)
    """
    second = None if x2 is None else source_of("x2", x2)
    request = Request(
        kind="kernel",
        kernel=kernel,
        x1=source_of("x1", x1),
        x2=second,
        columns=0,
        store=store,
        tile=tile,
        dtype=dtype,
        device=device,
        name=name,
        labels=labels,
    )
    return KernelStore(run(request, client, progress).path, kernel=kernel)
