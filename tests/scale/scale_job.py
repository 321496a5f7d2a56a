"""A process that computes a kernel: `python scale_job.py STORE WORKERS`, 0 for this process."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

from scale_kernels import samples, slow

from torch_ntk.scale import compute_kernel

N, TILE = 60, 8


def main() -> None:
    """Compute, and say before that who works."""
    store, workers = Path(sys.argv[1]), int(sys.argv[2])
    with contextlib.ExitStack() as stack:
        client = None
        if workers:
            from distributed import Client, LocalCluster

            cluster = LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=":0")
            client = stack.enter_context(Client(stack.enter_context(cluster)))
            print(*client.run(os.getpid).values(), flush=True)
        compute_kernel(slow, samples(N, 3), store=store, tile=TILE, client=client, progress=False)


if __name__ == "__main__":
    main()
