"""The computation behind a call of `empirical_ntk`, whose arguments have been checked."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from .._checks import check_finite, has_finite_sum, value_error
from .._functional import Batch, ModelFunction, evaluating_on, model_function
from .._types import ForwardFn, Method, Output, ParameterSelection, PreconditionLike
from ..memory import limited
from ._job import KernelJob
from ._output_groups import output_groups
from ._outputs import finish
from ._parts import By, Kernels, distinct, keys_of
from ._precondition import precondition_of
from ._probed import groups, probing
from ._repetition import ChangedError, Repetition
from ._result_size import check_fits, held
from .gradient import KernelGradient, Recipe, check_gradient, connected, sources_of
from .inspect import inspect_forward
from .methods import METHODS, OnePrecisionError
from .rules import RULES
from .structured import UseRecorder

NOT_FINITE = (
    "The outputs or gradients of these samples are not finite: look for sqrt(0), log(0) or a "
    "division of zero in the forward, or, after an overflow, use dtype=torch.float64."
)


@dataclass(frozen=True)
class Computation:
    """The arguments of `empirical_ntk`, after checks, and the computation of the kernel.

    For coupled batches `model`, `x1`, `forward_fn` and `output` are those of the single sample that
    represents the batches; `given` contains the caller's `forward_fn` and `output`.
    """

    model: Any
    x1: Any
    x2: Any
    output: Output | Literal["probed"]
    method: Method
    params: ParameterSelection
    by: By | None
    batch_size: int | None
    max_memory: int | None
    progress: bool
    forward_fn: ForwardFn | None
    probes: int
    seed: int
    coupled: bool
    training: bool
    precondition: PreconditionLike
    differentiable: bool
    check: bool
    given: tuple[ForwardFn | None, str]

    def kernels(self, dtype: torch.dtype | None, accumulate: torch.dtype | None) -> Kernels:
        """Return the parts of the kernel; without `dtype` it is evaluated in the model's own."""
        with evaluating_on(self.model, self.x1, self.forward_fn, training=self.training):
            for repeats in (not self.differentiable, False):
                try:
                    try:
                        return self._computed(dtype, accumulate, repeats)
                    except OnePrecisionError:
                        return self._computed(accumulate, None, repeats)
                except ChangedError:
                    continue
        raise AssertionError("a computation that is not repeated cannot have changed")

    def _computed(
        self, dtype: torch.dtype | None, accumulate: torch.dtype | None, repeats: bool
    ) -> Kernels:
        """Return the `kernels`; with `repeats`, recorded operations may be executed."""
        fn = model_function(self.model, self.params, dtype, self.forward_fn, self.coupled)
        fn = replace(fn, accumulate=accumulate)
        if fn.products != fn.dtype and self.method == "vector_product":
            raise value_error(
                "accumulate",
                "None for method='vector_product'",
                str(accumulate),
                "It never forms the products: compute all in dtype=torch.float64.",
            )
        scales = precondition_of(self.precondition, fn)
        x1 = fn.input("x1", self.x1)
        x2 = None if self.x2 is None or self.x2 is self.x1 else second_input(fn, x1, self.x2)
        repetition = None
        if repeats and self.method != "vector_product":
            repetition = Repetition(fn, x1, x2, scales, self.given[0], self._settings)
        recorder = UseRecorder(RULES if self.method in ("auto", "structured") else {})
        known = None if repetition is None else repetition.forward
        forward = inspect_forward(fn, "x1", x1, recorder) if known is None else known
        job = KernelJob(
            fn, x1, x2, "full", forward, keys_of(fn.params, self.by), self.batch_size, self.check
        )
        job, size = self._reduced(replace(job, precondition=scales))
        allowed = self.max_memory
        left = None if allowed is None else allowed - size - held(fn) - scales.bytes
        gradient: KernelGradient | None = None
        if self.differentiable:
            gradient = KernelGradient(job, sources_of(job, self.x1, self.x2), recorder.recorded())
            if self.check:
                gradient = check_gradient(gradient)

        def run(job: KernelJob) -> Kernels:
            method = METHODS[self.method]
            if repetition is None:
                return method(job, recorder)
            return repetition.kernels(job, forward, lambda: method(job, recorder))

        with limited(left):
            if known is None:
                parts = job.parts or output_groups(job, self.method, recorder)
                job = replace(job, parts=parts)
            kernels = with_progress(job, self.progress, self.method == "vector_product", run)
        for key, kernel in kernels.items():
            found = finish(kernel, job.output, forward.outputs)
            kernels[key] = rounded(found, accumulate or fn.result_dtype)
            check_kernel(kernels[key], x1, x2)
        return kernels if gradient is None else self._connected(kernels, gradient, left)

    @property
    def _settings(self) -> tuple[Hashable, ...]:
        """The arguments that determine the operations, except tensors and functions."""
        return (
            *(self.method, self.output, self.given[1], self.by, self.batch_size, self.max_memory),
            *(self.probes, self.seed, self.coupled, self.training, self.check, self.x2 is None),
        )

    def _reduced(self, job: KernelJob) -> tuple[KernelJob, int]:
        """Return the job with the output reduction, and the bytes of its result."""
        fn, forward, output = job.fn, job.forward, self.output
        parts: tuple[slice, ...] = ()
        if output == "probed":
            output = "diagonal" if self.probes < forward.outputs else "mean"
            if self.probes < forward.outputs:
                fn = probing(fn, forward.outputs, self.probes, self.seed)
                if not self.differentiable:
                    parts = groups(fn, forward.outputs, self.probes, job.longest)
                forward = replace(forward, outputs=self.probes)
        n1, n2, count = len(job.x1), len(job.columns), len(distinct(job.keys))
        size = check_fits(fn, output, n1, n2, forward.outputs, count, self.max_memory)
        if output == "pseudo":
            fn, forward = fn.pseudo(), replace(forward, outputs=1)
        return replace(job, fn=fn, forward=forward, output=output, parts=parts), size

    def _connected(self, kernels: Kernels, gradient: KernelGradient, left: int | None) -> Kernels:
        """Return the kernels with a graph, whose backward pass may use `left` bytes."""
        job = gradient.job

        @contextlib.contextmanager
        def evaluating() -> Iterator[None]:
            keep, x = job.forward.keeps_hooks, job.x1.value
            around = evaluating_on(self.model, x, self.forward_fn, keep, training=self.training)
            with around, limited(left):
                yield

        divisor = job.outputs if job.output == "mean" else 1
        values = {key: kernel.clone() for key, kernel in kernels.items()} if self.check else {}
        return connected(kernels, Recipe(gradient, tuple(kernels), divisor, evaluating, values))


def second_input(fn: ModelFunction, a: Batch, x2: object) -> Batch:
    """Return the samples `x2` for the computation, after comparing their structure with x1."""
    b = fn.input("x2", x2)
    if not fn.coupled and not b.is_like(a):
        raise value_error(
            "x2",
            f"of samples like x1's, {a}",
            str(b),
            "Both are inputs of the same model; only their number may differ.",
        )
    return b


def with_progress(
    job: KernelJob, show: bool, over_columns: bool, run: Callable[[KernelJob], Kernels]
) -> Kernels:
    """Return the result of `run` for the job, with a progress bar over its samples."""
    from tqdm.auto import tqdm  # slow to import

    total = len(job.columns if over_columns else job.x1)
    with tqdm(
        total=total, desc="empirical NTK", unit="sample", disable=not show, leave=False
    ) as bar:

        def advance(samples: int) -> None:
            bar.update(samples)

        return run(replace(job, advance=advance))


def check_kernel(kernel: Tensor, x1: Batch, x2: Batch | None) -> None:
    """Raise an error if entries are not finite; it names the inputs if these are not."""
    if has_finite_sum(kernel):
        return
    for name, x in (("x1", x1), ("x2", x2)):
        if x is not None:
            x.check_finite(name, "Remove or impute those entries.")
    check_finite("kernel", kernel, NOT_FINITE)


def rounded(kernel: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the kernel in `dtype`, in which it must be finite."""
    if kernel.dtype == dtype:
        return kernel
    found = kernel.to(dtype)
    if has_finite_sum(kernel):
        check_finite(
            "kernel", found, f"Its entries exceed the range of {dtype}; use dtype=torch.float32."
        )
    return found
