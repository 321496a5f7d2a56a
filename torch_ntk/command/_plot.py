"""`torch-ntk plot`: draw a stored kernel as a picture."""

from __future__ import annotations

import argparse
from pathlib import Path

from ._options import add_output, add_store, answer

HELP = "draw a stored kernel and its leading eigenvalues"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this subcommand."""
    add_store(parser)
    parser.add_argument(
        *("-o", "--output"),
        type=Path,
        default=Path("kernel.png"),
        help="the file to write (default: %(default)s)",
    )
    parser.add_argument(
        "--samples",
        type=int,
        default=512,
        help="the most samples to draw, evenly chosen (%(default)s)",
    )
    parser.add_argument(
        "--eigenvalues",
        type=int,
        default=50,
        help="how many leading eigenvalues to draw; 0 for none (%(default)s)",
    )
    add_output(parser)


def run(chosen: argparse.Namespace) -> int:
    """Draw the kernel."""
    import numpy as np
    from matplotlib.figure import Figure

    from ..plotting import plot_kernel, plot_spectrum
    from ..scale import KernelStore

    for name, value, least in (
        ("samples", chosen.samples, 1),
        ("eigenvalues", chosen.eigenvalues, 0),
    ):
        if value < least:
            raise ValueError(f"--{name} must be at least {least}; got {value}.")
    store = KernelStore(chosen.store)
    rows, columns = (
        np.unique(np.linspace(0, n - 1, min(n, chosen.samples)).astype(int)) for n in store.shape
    )
    values = store.array[rows][:, columns].compute()
    labels = store.labels
    classes = None
    if labels is not None and labels.ndim == 1 and labels.dtype.kind != "f" and store.symmetric:
        classes = labels[rows]
    spectrum = store.symmetric and chosen.eigenvalues > 0
    figure = Figure(figsize=(12 if spectrum else 5.6, 4.8), layout="constrained")
    axes = figure.subplots(1, 2 if spectrum else 1, squeeze=False)[0]
    plot_kernel(values, classes, title=store.path.name, ax=axes[0])
    if spectrum:
        found = store.eigsh(min(chosen.eigenvalues, store.shape[0]))
        plot_spectrum(found.values, title="leading eigenvalues", ax=axes[1])
    figure.savefig(chosen.output)
    answer(chosen, {"output": str(chosen.output), "samples": len(rows)})
    return 0
