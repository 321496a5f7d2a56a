"""Explain how the structured method computes a model's kernel."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from .._checks import check_choice
from .._functional import evaluating_on, model_function, plain_name
from .._types import BatchLike, ForwardFn, ModelLike, Output, ParameterSelection, PreconditionLike
from ..memory import size_in_words
from ._coupled import CoupledBatches
from ._empirical_ntk import check_settings
from ._job import KernelJob
from ._outputs import OUTPUTS
from ._parts import keys_of
from ._precondition import precondition_of
from .inspect import inspect_forward
from .structured import Plan, StructuredMethod, UseRecorder


@dataclass(frozen=True)
class Line:
    """How the contribution of one parameter is computed.

    Attributes:
        parameter: The name of the parameter.
        rule: The kind of operation in which it is used, or "own Jacobian" without a rule.
        uses: The number of calls in which it is used.
        contraction: `"gram"` for the entrywise product of the Gram matrices of inputs and
            cotangents; `"features"` if the Gram matrix of the inputs multiplies the cotangents
            first; `"jacobian"` for products of Jacobians; `"pairs"` for products of inputs with a
            P for each entry; `"tied"` for an embedding that is also a linear layer; `"joined"` for
            a bias that is contracted together with the weight of its calls.
        operations: The floating-point operations of the contraction for the whole kernel.
        bytes_per_sample: The bytes of its factors for one sample, if all samples fit in memory.
        formed_for_p: Whether its Jacobian is formed only because P has a value for each entry; the
            table then has "jacobian, P".
    """

    parameter: str
    rule: str
    uses: int
    contraction: str
    operations: float
    bytes_per_sample: int
    formed_for_p: bool = False


@dataclass(frozen=True)
class Explanation:
    """The plan for a kernel; prints as a table.

    Attributes:
        lines: A line for each selected parameter, in the order of the model.
        samples, outputs: The size of the kernel.
        output: The kernel's output.
    """

    lines: tuple[Line, ...]
    samples: int
    outputs: int
    output: str

    def __str__(self) -> str:
        """Return a table with a line for each parameter."""
        width = max(9, *(len(line.parameter) for line in self.lines))
        head = (
            f"{'parameter':<{width}}  {'rule':<14}{'uses':>5}  {'contraction':<12}"
            f"{'GFLOP':>9}{'per sample':>12}"
        )
        rows = [
            f"{line.parameter:<{width}}  {line.rule:<14}{line.uses:>5}  "
            f"{line.contraction + (', P' if line.formed_for_p else ''):<12}"
            f"{line.operations / 1e9:>9.3f}{size_in_words(line.bytes_per_sample):>12}"
            for line in self.lines
        ]
        title = f"output={self.output!r} for {self.samples} samples, {self.outputs} outputs"
        return "\n".join([title, head, *rows])


def explain(
    model: ModelLike,
    x: BatchLike,
    *,
    output: Output = "full",
    params: ParameterSelection = None,
    dtype: torch.dtype | None = None,
    forward_fn: ForwardFn | None = None,
    coupled: bool = False,
    training: bool = False,
    precondition: PreconditionLike = None,
) -> Explanation:
    """Explain how `empirical_ntk(model, x, method="structured")` computes the kernel.

    Every selected parameter has exactly one line, with the rule that covers all of its uses, or
    with its own Jacobian.

    Args:
        model: As in `torch_ntk.empirical_ntk`.
        x: A batch of N samples; the operations are those of their symmetric kernel.
        output: The kernel's output.
        params: As in `torch_ntk.empirical_ntk`.
        dtype: As in `torch_ntk.empirical_ntk`.
        forward_fn: As in `torch_ntk.empirical_ntk`.
        coupled: As in `torch_ntk.empirical_ntk`. The batch is then one sample, and the operations
            are those of its kernel between all rows and outputs.
        training: As in `torch_ntk.empirical_ntk`.
        precondition: As in `torch_ntk.empirical_ntk`.

    Raises:
        TypeError, ValueError: As in `torch_ntk.empirical_ntk`.

    Example:
        >>> import torch
        >>> plan = explain(torch.nn.Linear(3, 2), torch.randn(4, 3))
        >>> [(line.parameter, line.rule) for line in plan.lines]
        [('weight', 'LinearUse'), ('bias', 'BiasUse')]
    """
    remedy = "'probed' goes about it as 'mean' does, with its directions in place of the outputs."
    check_choice("output", output, OUTPUTS, remedy)
    check_settings(coupled, training)
    kept, batches = output, CoupledBatches(x, None, output) if coupled else None
    if batches is not None:
        model, forward_fn = batches.model(model, forward_fn)
        x, kept = batches.sample, "full"
    with evaluating_on(model, x, forward_fn, training=training):
        fn = model_function(model, params, dtype, forward_fn, coupled)
        scales = precondition_of(precondition, fn)
        a = fn.input("x", x)
        recorder = UseRecorder()
        forward = inspect_forward(fn, "x", a, recorder)
        samples, outputs = len(a), forward.outputs
        if batches is not None:
            samples, outputs = batches.rows[0], batches.outputs
        if kept == "pseudo":
            fn, forward = fn.pseudo(), replace(forward, outputs=1)
        job = KernelJob(fn, a, None, kept, forward, keys_of(fn.params, None))
        uses = recorder.recorded()
        free = StructuredMethod(job, uses).plan
        job = replace(job, precondition=scales)
        plan = StructuredMethod(job, uses).plan
        lines = tuple(_line(job, plan, free, name) for name in fn.params)
        return Explanation(lines, samples, outputs, output)


def _line(job: KernelJob, plan: Plan, free: Plan, name: str) -> Line:
    """Return the line of a parameter, from the plan and from the plan for P = 1."""
    indices, cost = plan.groups.get(name, []), plan.costs.get(name, plan.tied.get(name))
    entries, o = job.fn.params[name].numel(), job.outputs
    rule = type(plan.uses_of(name)[0]).__name__ if indices else "own Jacobian"
    weight = {bias: weight for weight, bias in plan.biases.items()}.get(name)
    if weight is not None:
        operations, contraction = job.pairs * plan.positions(weight) ** 2, "joined"
    elif cost is not None:
        operations, contraction = cost.operations, str(cost.contraction)
    else:
        operations = 2.0 * job.pairs * (o * o if job.output == "full" else o) * entries
        contraction = "jacobian"
    size = plan.size(name, entries, alone=True) * job.item
    for_p = contraction == "jacobian" and (free.is_gram(name) or name in free.tied)
    return Line(plain_name(name), rule, len(indices), contraction, operations, size, for_p)
