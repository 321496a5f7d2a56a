"""Which method `"auto"` takes, from counts of operations and bytes."""

from __future__ import annotations

from torch import nn

from .._functional import ModelFunction
from .._types import Output
from . import _jacobian
from ._blocks import _MOST_BYTES, _SHARE, free_memory
from ._trial import Trial


def choose(fn: ModelFunction, n1: int, n2: int, output: Output, trial: Trial) -> str:
    """`"jacobian"` or `"vector_product"`, whichever needs fewer operations and fits in memory.

    With F the operations of one forward pass and P the number of parameters, Jacobians take
    2 F O per sample and their contraction 2 P O² per pair of samples ("full"; 2 P O for
    "trace", "mean" and "diagonal"). Products with vectors take 2 F O per column sample and then
    3 F O per pair: less where the weights are many and each is used once.
    """
    o = trial.outputs
    p = sum(t.numel() for t in fn.params.values())
    forward = max(trial.flops, 2 * p)
    contraction = 2 * p * (o * o if output == "full" else o)
    by_jacobian = 2 * forward * o * (n1 + n2) + contraction * n1 * n2
    by_product = 2 * forward * o * n2 + 3 * forward * o * n1 * n2
    budget = min(_MOST_BYTES, int(_SHARE * free_memory(fn.device)))
    fits = _jacobian.bytes_per_sample(fn, trial) <= budget
    recurrent = fn.module is not None and any(
        isinstance(m, (nn.RNNBase, nn.RNNCellBase)) for m in fn.module.modules()
    )
    # Forward-mode through a recurrent cell runs sample by sample, far from these counts.
    return "jacobian" if fits and (recurrent or by_jacobian <= by_product) else "vector_product"
