"""Check the methods against a plain autograd loop on the user's own model."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from .._checks import ArgumentError, check_choice
from .._functional import Batch, evaluating_on, model_function
from .._types import (
    BatchLike,
    ForwardFn,
    Method,
    ModelLike,
    Output,
    ParameterSelection,
    PreconditionLike,
)
from ._coupled import CoupledBatches
from ._empirical_ntk import check_settings, empirical_ntk
from ._oracle import Loop, kernel_by_loops
from ._outputs import OUTPUTS
from ._precondition import precondition_of
from .inspect import inspect_forward

_METHODS: tuple[Method, ...] = ("auto", "structured", "jacobian", "vector_product")
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}


@dataclass(frozen=True)
class Check:
    """The result of one method in one precision.

    Attributes:
        method: As in `torch_ntk.empirical_ntk`.
        dtype: The dtype of the computation.
        error: The largest difference from the loop, divided by the loop's largest entry; NaN if the
            method refused the model.
        seconds: The wall time.
        refusal: The message of the method if it refused the model.
        coarse: Whether the loop itself has the precision of float32, because the module has float32
            parameters and cannot be copied, or because its forward rounds to float32.
    """

    method: str
    dtype: torch.dtype
    error: float
    seconds: float
    refusal: str = ""
    coarse: bool = False

    @property
    def is_right(self) -> bool:
        """Whether the error can be explained by rounding (1e-9 in float64, 1e-4 in float32)."""
        return self.error <= _TOLERANCE[torch.float32 if self.coarse else self.dtype]


@dataclass(frozen=True)
class Verification:
    """The result of `verify`; prints as a table.

    Attributes:
        checks: An entry for each method and precision.
        samples, outputs: The size of the kernel.
    """

    checks: tuple[Check, ...]
    samples: int
    outputs: int

    @property
    def is_right(self) -> bool:
        """Whether every method agrees with the loop or refuses the model."""
        return all(c.is_right or c.refusal for c in self.checks)

    def __str__(self) -> str:
        """Return a table with a line for each method and precision."""
        lines = [
            f"kernel of {self.samples} samples and {self.outputs} outputs, "
            "against an autograd loop in float64",
            f"{'method':<16}{'dtype':<10}{'error':>10}{'ms':>10}",
        ]
        for c in self.checks:
            error = "refused" if c.refusal else f"{c.error:.1e}"
            mark = "" if c.is_right or c.refusal else "  WRONG"
            name = str(c.dtype).removeprefix("torch.")
            lines.append(f"{c.method:<16}{name:<10}{error:>10}{1e3 * c.seconds:>10.1f}{mark}")
            if c.refusal:
                lines.append(f"    {c.refusal}")
        return "\n".join(lines)


def verify(
    model: ModelLike,
    x: BatchLike,
    *,
    output: Output = "full",
    params: ParameterSelection = None,
    samples: int = 4,
    forward_fn: ForwardFn | None = None,
    coupled: bool = False,
    training: bool = False,
    precondition: PreconditionLike = None,
) -> Verification:
    """Compare every method with a plain `torch.autograd` loop on `model` itself.

    The loop makes one backward pass of the module itself, with its own parameters, for each sample
    and output, and shares no code with the methods. A float32 module is copied to float64 for the
    loop, unless the copy still uses parameters of the original. The loop is slow, so only the first
    samples are used.

    Args:
        model: As in `torch_ntk.empirical_ntk`.
        x: A batch of N samples.
        output: The kernel's output.
        params: As in `torch_ntk.empirical_ntk`.
        samples: The number of samples of `x` that are used; of a coupled batch all rows are used.
        forward_fn: As in `torch_ntk.empirical_ntk`.
        coupled: As in `torch_ntk.empirical_ntk`.
        training: As in `torch_ntk.empirical_ntk`.
        precondition: As in `torch_ntk.empirical_ntk`; the loop uses the same P.

    Returns:
        The errors of every method in float64 and float32; `print` shows them as a table.

    Raises:
        TypeError, ValueError: As in `torch_ntk.empirical_ntk`.

    Example:
        >>> import torch
        >>> net = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
        >>> verify(net, torch.randn(4, 3)).is_right
        True
    """
    check_choice("output", output, OUTPUTS, "Of 'probed', verify 'mean', which it estimates.")
    check_settings(coupled, training)
    few = Batch.coupled("x", x) if coupled else Batch.of("x", x)[:samples]
    x = few.value
    checked, call, sample = model, forward_fn, x
    if coupled:
        batches = CoupledBatches(x, None, output)
        (checked, call), sample = batches.model(model, forward_fn), batches.sample
    with evaluating_on(checked, sample, call, training=training):
        # Mistakes in the model or its inputs are reported before the slow loop.
        fn = model_function(checked, params, forward_fn=call, coupled=coupled)
        batch = fn.input("x", sample)
        inspect_forward(fn, "x", batch)
        exact, batch = fn.in_dtype(torch.float64), batch.to(torch.float64)
        precision = inspect_forward(exact, "x", batch).precision
        scales = precondition_of(precondition, exact)
        roots = [
            torch.as_tensor(scales.root(n), dtype=p.dtype, device=p.device).expand_as(p)
            for n, p in exact.params.items()
        ]
    loop = Loop(few, forward_fn, coupled, training)
    reference, outputs = kernel_by_loops(model, loop, output, params, roots)
    coarse = torch.float32 in (reference.dtype, precision)
    reference = reference.double()
    scale = float(reference.abs().max()) or 1.0
    checks = []
    for dtype in (torch.float64, torch.float32):
        for method in _METHODS:
            started = time.perf_counter()
            error, refusal = float("nan"), ""
            try:
                kernel = empirical_ntk(
                    model,
                    x,
                    output=output,
                    method=method,
                    params=params,
                    dtype=dtype,
                    forward_fn=forward_fn,
                    coupled=coupled,
                    training=training,
                    precondition=precondition,
                )
                error = float((kernel.double() - reference).abs().max()) / scale
            except ArgumentError as refused:
                refusal = str(refused)
            seconds = time.perf_counter() - started
            checks.append(Check(method, dtype, error, seconds, refusal, coarse))
    return Verification(tuple(checks), len(reference), outputs)
