"""`torch-ntk kernel`: compute a kernel into a store, or resume an unfinished store."""

from __future__ import annotations

import argparse
import contextlib
import math
import time
from collections.abc import Iterator
from pathlib import Path

from ._options import Terminated, add_output, add_samples, add_store, add_workers, answer, client

HELP = "compute a kernel tile by tile into a store; the same command again resumes it"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this subcommand."""
    add_store(parser)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--preset", help="cntk-gap-D, cntk-v-D or mlp-D, with D layers")
    which.add_argument(
        "--kernel", metavar="MODULE:FUNCTION", help="a function of two batches, (a, b) -> [n1, n2]"
    )
    which.add_argument(
        "--model",
        metavar="MODULE:FACTORY",
        help="a function that returns a module; computes its infinite-width kernel, or with "
        "--state or --empirical the kernel of the network itself",
    )
    parser.add_argument("--state", type=Path, help="the model's state, a .safetensors file")
    parser.add_argument("--empirical", action="store_true", help="the kernel at initialization")
    parser.add_argument(
        "--output",
        choices=["mean", "trace", "pseudo"],
        help="how the network's outputs are combined (mean); with --state or --empirical",
    )
    parser.add_argument(
        "--standard",
        type=_scheme,
        metavar="{torch,kaiming,lecun,SIGMA_W,SIGMA_B}",
        help="how ordinary layers of --model are drawn, for the kernel at their widths",
    )
    add_samples(parser)
    parser.add_argument(
        "--against",
        type=Path,
        metavar="STORE",
        help="compute the kernel between these samples and those of another store, for predictions",
    )
    parser.add_argument(
        "--tile", type=int, default=256, help="samples per side of a tile (%(default)s)"
    )
    parser.add_argument("--dtype", choices=["float64", "float32"], default="float64")
    parser.add_argument("--device", help="where tiles are computed: cuda, for example")
    parser.add_argument("--name", help="identifies the kernel in place of its description")
    add_workers(parser)
    add_output(parser)


def _scheme(text: str) -> str | tuple[float, float]:
    """Parse how layers are drawn: a name, or two numbers with a comma between them."""
    if text in ("torch", "kaiming", "lecun"):
        return text
    try:
        sigma_w, sigma_b = map(float, text.split(","))
        if 0 < sigma_w < math.inf and 0 <= sigma_b < math.inf:
            return sigma_w, sigma_b
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(
        f"{text!r} is neither torch, kaiming or lecun nor a pair SIGMA_W,SIGMA_B with SIGMA_W > 0."
    )


def run(chosen: argparse.Namespace) -> int:
    """Compute the kernel."""
    import torch

    from ..scale import TileStore, compute_kernel
    from ._datasets import samples
    from ._kernels import kernel

    found, data = kernel(chosen), samples(chosen)
    other = None if chosen.against is None else TileStore(chosen.against).path / "x1"
    begin = time.perf_counter()
    with _stopping(chosen.store), client(chosen) as where:
        store = compute_kernel(
            found,
            data.x,
            other,
            store=chosen.store,
            tile=chosen.tile,
            client=where,
            progress=not chosen.quiet,
            dtype=getattr(torch, chosen.dtype),
            device=chosen.device,
            name=chosen.name,
            labels=data.labels,
        )
    result = {
        "store": str(store.path),
        "shape": list(store.shape),
        "tiles": store.total,
        "bytes": store.about["bytes"],
        "seconds": time.perf_counter() - begin,
    }
    answer(chosen, result)
    return 0


@contextlib.contextmanager
def _stopping(path: Path) -> Iterator[None]:
    """If the command is stopped within it, add to the message how many tiles are finished."""
    from ..scale import KernelStore

    try:
        yield
    except (KeyboardInterrupt, Terminated) as stop:
        if not (path / "manifest.json").is_file():
            raise
        store = KernelStore(path)
        done = f": {store.finished} of {store.total} tiles are in {path}; the same command resumes"
        raise type(stop)(done) from None
