"""Which method `"auto"` takes, from counts of operations and bytes."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from .._functional import CANNOT_TRANSFORM, ModelFunction
from .._types import Output
from ..memory import budget
from . import _jacobian, _structured, _vector_product
from ._parts import Kernels, Keys
from ._prepare import prepare
from ._trial import Trial


class OnePrecisionError(Exception):
    """Products over parameters cannot be added up in a precision of their own here."""


def kernel(
    fn: ModelFunction,
    x1: Tensor,
    x2: Tensor | None,
    output: Output,
    trial: Trial,
    batch_size: int | None,
    advance: Callable[[int], None],
    keys: Keys,
) -> Kernels:
    """The kernels by the structured method, or by another where that one does not fit.

    It does not fit if a parameter that no rule covers is so large that its Jacobian for a single
    sample exceeds the memory. Products with vectors never form a Jacobian; where an operation has
    no forward-mode derivative for them, the reference method is left.

    Raises:
        OnePrecisionError: The structured method does not fit, and products of more precision than
            the network's are wanted: then the network is to be evaluated in that precision.
    """
    try:
        structure = prepare(fn, x1, x2, trial.outputs, output, keys, trial.signature)
    except CANNOT_TRANSFORM:
        pass
    else:
        available = budget(fn.device)  # asked for once: that reads files
        if _structured.bytes_per_sample(fn, structure, trial) <= available:
            return _structured.kernel(
                fn, x1, x2, output, trial, batch_size, advance, keys, structure, available
            )
        structure.plan.lay_back(fn.params)
    if fn.products != fn.dtype:
        raise OnePrecisionError
    n2 = (x1 if x2 is None else x2).shape[0]
    if choose(fn, x1.shape[0], n2, output, trial) == "vector_product":
        try:
            return _vector_product.kernel(fn, x1, x2, output, trial, batch_size, advance, keys)
        except ValueError:
            pass
    return _jacobian.kernel(fn, x1, x2, output, trial, batch_size, advance, keys)


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
    fits = _jacobian.bytes_per_sample(fn, trial) <= budget(fn.device)
    recurrent = fn.module is not None and any(
        isinstance(m, (nn.RNNBase, nn.RNNCellBase)) for m in fn.module.modules()
    )
    # Forward-mode through a recurrent cell runs sample by sample, far from these counts.
    return "jacobian" if fits and (recurrent or by_jacobian <= by_product) else "vector_product"
