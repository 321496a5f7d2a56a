"""The caller's tensors with respect to which a kernel is differentiated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..._checks import value_error
from ..._functional import Batch
from .._job import KernelJob


@dataclass(frozen=True)
class Sources:
    """The tensors that require grad.

    Attributes:
        tensors: The parameters (and buffers), then the tensors of x1, then those of x2.
        names: The names of the parameters, and of buffers that require grad.
        first, second: The indices of the tensors in the batches x1 and x2.
    """

    tensors: tuple[Tensor, ...]
    names: tuple[str, ...]
    first: tuple[int, ...] = ()
    second: tuple[int, ...] = ()

    def placed(self, job: KernelJob, tensors: Sequence[Tensor]) -> KernelJob:
        """Return the job with copies of `tensors` as its sources, through which autograd goes."""
        k, m = len(self.names), len(self.names) + len(self.first)
        fn = job.fn.connected(dict(zip(self.names, tensors[:k], strict=True)))
        x1 = _put(job.x1, self.first, tensors[k:m], fn.dtype)
        x2 = None if job.x2 is None else _put(job.x2, self.second, tensors[m:], fn.dtype)
        return replace(job, fn=fn, x1=x1, x2=x2)


def sources_of(job: KernelJob, x1: object, x2: object) -> Sources:
    """Return the tensors that require grad among the caller's parameters and batches."""
    own = {**job.fn.plain.own, **job.fn.plain.buffers}
    names = tuple(n for n, t in own.items() if t.requires_grad)
    batches = [Batch.of("x1", x1), *([] if job.x2 is None else [Batch.of("x2", x2)])]
    found = [tuple(i for i, t in enumerate(b.tensors) if t.requires_grad) for b in batches]
    inputs = [b.tensors[i] for b, places in zip(batches, found, strict=True) for i in places]
    tensors = (*(own[n] for n in names), *inputs)
    if not tensors:
        raise value_error(
            "differentiable",
            "False where no parameter and no input requires grad",
            "True",
            "Call requires_grad_() on what the kernel is to be differentiated by.",
        )
    return Sources(tensors, names, *found)


def _put(x: Batch, places: Sequence[int], tensors: Sequence[Tensor], dtype: torch.dtype) -> Batch:
    every = list(x.tensors)
    for i, t in zip(places, tensors, strict=True):
        every[i] = t.to(dtype, copy=True)
    return x.with_tensors(every)
