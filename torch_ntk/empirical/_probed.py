"""The mean kernel of many outputs, estimated from the kernels of a few of their combinations.

For v of random signs, E[v vᵀ] is the identity, so that

    E[⟨J(x)ᵀ v, J(x')ᵀ v⟩] = tr(J(x) J(x')ᵀ) = Σ_i Θ[x, x', i, i]

(Hutchinson 1990). Because the directions are the same for every sample, the estimate is a Gram
matrix, which is symmetric and positive semi-definite. It costs K backward passes instead of O.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .._functional import ModelFunction
from ..memory import aim, ranges


class ProbedKernel(NamedTuple):
    """An estimate of `output="mean"`.

    Attributes:
        kernel: The unbiased estimate `[N1, N2]`.
        standard_error: The standard error of every entry `[N1, N2]`, from the variation between the
            K directions. For about 19 of 20 entries the mean kernel lies within twice this error
            (with 8 directions within 2.4 times, by Student's distribution). It is 0 if all outputs
            were used.
    """

    kernel: Tensor
    standard_error: Tensor


_TOGETHER = 2**29  # bytes of the directions' derivatives by the outputs that are in memory at once


def probing(fn: ModelFunction, outputs: int, probes: int, seed: int) -> ModelFunction:
    """Return the function whose K outputs are `Σ_i v[k, i] f_i / sqrt(O)` for random signs v.

    The signs depend only on the seed, on O and on K.
    """
    signs = random_signs(outputs, probes, seed).to(fn.device, fn.dtype)
    return fn.with_outputs(lambda out: along(out, signs))


def groups(fn: ModelFunction, outputs: int, probes: int, samples: int) -> tuple[slice, ...]:
    """Return groups of directions that are computed together; empty for a single group.

    Groups are small for very many outputs, because each direction has a derivative of the size of
    all outputs of all samples, such as the logits of a vocabulary at every position.
    """
    each = samples * outputs * torch.empty((), dtype=fn.dtype).element_size()
    sparing = aim()
    most = _TOGETHER if sparing is None else min(_TOGETHER, sparing // 4)
    count = -(-probes // max(1, most // each))
    if count == 1:
        return ()
    return tuple(slice(a, b) for a, b in ranges(0, probes, -(-probes // count)))


def along(outputs: Tensor, directions: Tensor) -> Tensor:
    """Return `Σ_i v[k, i] f_i / sqrt(O)` `[N, K]` of outputs `[N, O]` and directions v `[K, O]`."""
    return outputs @ directions.to(outputs).T / math.sqrt(outputs.shape[1])


def random_signs(outputs: int, probes: int, seed: int) -> Tensor:
    """Return directions `[K, O]` of ±1, int8."""
    generator = torch.Generator().manual_seed(seed)
    shape, kind = (probes, outputs), torch.int8
    return 2 * torch.randint(0, 2, shape, generator=generator, device="cpu", dtype=kind) - 1


def estimate(diagonal: Tensor) -> ProbedKernel:
    """Return the estimate from kernels `[N1, N2, K]`, or from the mean kernel `[N1, N2]` itself."""
    if diagonal.ndim == 2:
        return ProbedKernel(diagonal, torch.zeros_like(diagonal))
    error, mean = torch.std_mean(diagonal, dim=2)
    return ProbedKernel(mean, error / diagonal.shape[2] ** 0.5)
