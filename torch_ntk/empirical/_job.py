"""`KernelJob`: a kernel to be computed, the argument of every method."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from .._functional import Batch, ModelFunction
from .._types import Output
from ._outputs import shape
from ._parts import Kernels, Keys, distinct
from ._precondition import Precondition
from .inspect import Inspection


@dataclass(frozen=True)
class KernelJob:
    """The kernel `Θ(x1, x2)` of a function, or the exactly symmetric `Θ(x1, x1)`.

    Attributes:
        fn: The function and its parameters.
        x1: The N1 samples of the rows.
        x2: The N2 samples of the columns; None means x1.
        output: The kernel's output.
        forward: The shapes and costs of one forward pass.
        keys: The key of each parameter; contributions with the same key are added up.
        batch_size: The caller's number of samples per block; None chooses from the memory.
        check: Whether every block is compared with a plain backward pass.
        precondition: √P of the kernel J P Jᵀ.
        advance: Called with the number of samples that have been finished since the last call.
        parts: Groups of outputs that are computed one after the other; see `_output_groups`.
    """

    fn: ModelFunction
    x1: Batch
    x2: Batch | None
    output: Output
    forward: Inspection
    keys: Keys
    batch_size: int | None = None
    check: bool = True
    precondition: Precondition = field(default_factory=Precondition)
    advance: Callable[[int], None] = lambda samples: None
    parts: tuple[slice, ...] = ()

    @property
    def outputs(self) -> int:
        """The number O of outputs of a sample."""
        return self.forward.outputs

    @property
    def columns(self) -> Batch:
        """The samples of the columns."""
        return self.x1 if self.x2 is None else self.x2

    @property
    def longest(self) -> int:
        """The larger number of samples of x1 and x2."""
        return max(len(self.x1), len(self.columns))

    @property
    def samples(self) -> int:
        """The number of samples whose derivatives are needed."""
        return len(self.x1) + (0 if self.x2 is None else len(self.x2))

    @property
    def pairs(self) -> float:
        """The number of pairs of samples that are computed: half of them in a symmetric kernel."""
        pairs = len(self.x1) * len(self.columns)
        return pairs / 2 if self.x2 is None else float(pairs)

    @property
    def item(self) -> int:
        """The bytes of a number in the dtype of the evaluation."""
        return torch.finfo(self.fn.dtype).bits // 8

    def empty_kernels(self) -> Kernels:
        """Return zeros for every part of the kernel, in the dtype of the products."""
        dims = shape(self.output, len(self.x1), len(self.columns), self.outputs)
        like = torch.zeros((), dtype=self.fn.products, device=self.fn.device)
        return {key: like.new_zeros(dims) for key in distinct(self.keys)}

    def of_outputs(self, part: slice) -> KernelJob:
        """Return the job for some of the outputs."""
        forward = replace(self.forward, outputs=part.stop - part.start)
        earlier = self.fn.transform

        def transform(out: Tensor) -> Tensor:
            return (out if earlier is None else earlier(out))[:, part]

        fn = self.fn.with_outputs(transform)
        return replace(self, fn=fn, forward=forward, parts=())

    def in_dtype(self, dtype: torch.dtype) -> KernelJob:
        """Return the job for an evaluation in another dtype."""
        x2 = None if self.x2 is None else self.x2.to(dtype)
        fn, scales = self.fn.in_dtype(dtype), self.precondition.in_dtype(dtype)
        return replace(self, fn=fn, x1=self.x1.to(dtype), x2=x2, precondition=scales)
