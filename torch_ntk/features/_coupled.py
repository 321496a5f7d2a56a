"""Features of a coupled batch: one input, whose rows of outputs are the samples."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from .._checks import type_error, value_error
from .._types import ForwardFn, ModelLike
from ..empirical._coupled import CoupledBatches
from ._projection import seed_of

_Compute = Callable[
    [ModelLike, Any, Literal["mean", "pseudo", "full"], int, ForwardFn | None], dict[str, Tensor]
]


def coupled_features(
    compute: _Compute,
    model: ModelLike,
    x: Any,
    output: Literal["mean", "pseudo", "full"],
    seed: int,
    forward_fn: ForwardFn | None,
    path: Path | None,
) -> dict[str, Tensor]:
    """Features `[N, dim]` or `[N, O, dim]` of N rows, by key.

    The batch is one sample with N·O outputs, and `"full"` projects the gradient of each of them by
    the same projection. `"mean"` needs a separate projection S_i for each of the O outputs of a
    row; it projects the gradients of one output of all rows after the other and adds them up:

        φ(n) = Σ_i S_i J[n, i] / √O,      E⟨φ(n), φ(m)⟩ = Σ_i ⟨J[n, i], J[m, i]⟩ / O.

    `compute` computes features of uncoupled samples. A store at `path` is refused.
    """
    if path is not None:
        raise value_error(
            "store",
            "None for a coupled batch",
            repr(str(path)),
            "A coupled batch is evaluated at once and not in blocks: save the returned features.",
        )
    if isinstance(x, (torch.utils.data.Dataset, torch.utils.data.DataLoader)):
        raise type_error(
            "x",
            "the batch itself with coupled=True",
            x,
            "A dataset does not say which rows depend on each other: call the function once for "
            "each batch, with the same seed.",
        )
    batches = CoupledBatches(x, None, "pseudo" if output == "pseudo" else "full")
    whole, call = batches.model(model, forward_fn)
    if output != "mean":
        found = compute(whole, batches.sample, "full", seed, call)
        n = batches.rows[0]
        return {
            k: f.view(n, -1, f.shape[-1]) if output == "full" else f[0] for k, f in found.items()
        }
    batches.only = 0
    total = compute(whole, batches.sample, "full", seed_of(f"{seed} output 0"), call)
    for i in range(1, batches.outputs):
        batches.only = i
        found = compute(whole, batches.sample, "full", seed_of(f"{seed} output {i}"), call)
        total = {key: rows + found[key] for key, rows in total.items()}
    return {key: rows[0] / batches.outputs**0.5 for key, rows in total.items()}
