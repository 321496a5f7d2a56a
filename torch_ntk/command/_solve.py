"""`torch-ntk solve`: kernel regression with a stored kernel, and its accuracy on test samples."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._options import add_output, add_store, add_workers, answer, client

if TYPE_CHECKING:
    from torch import Tensor

HELP = "fit the labels of a store by kernel regression, and print the accuracy on test samples"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this subcommand."""
    add_store(parser)
    test = parser.add_mutually_exclusive_group()
    test.add_argument(
        "--train", type=int, help="train on the first so many samples, and test on the others"
    )
    test.add_argument(
        "--test", type=Path, metavar="STORE", help="test samples: a store made with --against"
    )
    parser.add_argument(
        "--diag-reg",
        type=float,
        default=1e-6,
        help="regularization of the diagonal, in units of its mean (%(default)s)",
    )
    parser.add_argument(
        "--time", type=float, help="time of training by gradient flow (default: the limit)"
    )
    parser.add_argument(
        "--method", choices=["auto", "lapack", "dask", "iterative"], help="how to solve (auto)"
    )
    add_workers(parser)
    add_output(parser)


def run(chosen: argparse.Namespace) -> int:
    """Solve, predict the test samples, and compare with their labels."""
    from ..scale import KernelStore

    if chosen.method is not None and chosen.time is not None:
        raise ValueError("--method is used without --time only; leave one of them out.")
    whole = KernelStore(chosen.store)
    if chosen.train is not None and not 1 <= chosen.train <= whole.shape[0]:
        raise ValueError(
            f"--train must be from 1 to {whole.shape[0]}, the samples of {chosen.store}; got "
            f"{chosen.train}."
        )
    labels = whole.labels
    if labels is None:
        raise ValueError(f"{chosen.store} has no labels: compute it with --labels.")
    store = whole if chosen.train is None else whole.leading(chosen.train)
    targets, classes = _targets(labels[: store.shape[0]])
    begin = time.perf_counter()
    result: dict[str, Any] = {"train": store.shape[0]}
    with client(chosen) as where:
        if chosen.time is None:
            options = {"method": chosen.method or "auto", "client": where}
            solution = store.solve(targets, chosen.diag_reg, **options)
            result |= {"residual": solution.residual, "products": solution.products}
        tests = _tests(chosen, whole, labels)
        if tests is not None:
            cross, truth = tests
            if chosen.time is None:
                outputs = _products(cross, solution.x)
            else:
                found = store.predict(
                    targets, cross, chosen.time, diag_reg=chosen.diag_reg, client=where
                )
                outputs = found.mean
                result["remainder"] = float(found.remainder.max())
            result |= {"test": len(truth), **_compared(outputs, truth, classes)}
    result["seconds"] = time.perf_counter() - begin
    answer(chosen, result)
    return 0


def _targets(labels: Any) -> tuple[Tensor, Any]:
    """The targets of the regression, and the classes if the labels are integers."""
    import numpy as np
    import torch

    from ..predict import one_hot

    if labels.dtype.kind == "f" or labels.ndim > 1:
        return torch.as_tensor(np.array(labels, dtype=np.float64)), None
    classes, index = np.unique(labels, return_inverse=True)
    encoded = one_hot(torch.as_tensor(index), len(classes), zero_centered=True)
    return encoded.double(), classes


def _tests(chosen: argparse.Namespace, whole: Any, labels: Any) -> tuple[Any, Any] | None:
    """The kernel between test and training samples, and the labels of the test samples."""
    from ..scale import KernelStore

    if chosen.test is not None:
        store = KernelStore(chosen.test)
        if store.labels is None:
            raise ValueError(f"{chosen.test} has no labels.")
        whole.check_test(store)
        return store, store.labels
    n = chosen.train
    if n is None or n == whole.shape[0]:
        return None
    return whole.array[n:, :n], labels[n:]


def _products(cross: Any, alpha: Tensor) -> Tensor:
    import numpy as np
    import torch

    from ..scale import KernelStore

    if isinstance(cross, KernelStore):
        return cross @ alpha
    return torch.as_tensor(np.asarray((cross @ alpha.numpy()).compute()))


def _compared(outputs: Tensor, truth: Any, classes: Any) -> dict[str, float]:
    """The accuracy if there are classes, else the root of the mean squared error."""
    import numpy as np

    if classes is None:
        off = outputs.numpy().reshape(truth.shape) - truth
        return {"rmse": float(np.sqrt(np.square(off).mean()))}
    right = classes[outputs.numpy().argmax(axis=1)] == truth
    return {"accuracy": float(right.mean())}
