"""The plan that the structured method makes for a model."""

from __future__ import annotations

from torch import Tensor, nn

from torch_ntk._functional import evaluating, model_function
from torch_ntk.empirical._job import KernelJob
from torch_ntk.empirical._parts import keys_of
from torch_ntk.empirical.inspect import inspect_forward
from torch_ntk.empirical.structured import Plan, StructuredMethod, UseRecorder

OUTPUTS = ["full", "trace", "mean", "diagonal", "pseudo"]


def method_of(model: nn.Module, x: Tensor, output: str = "full") -> StructuredMethod:
    with evaluating(model, x):
        fn, recorder = model_function(model), UseRecorder()
        x = fn.input("x1", x)
        forward = inspect_forward(fn, "x1", x, recorder)
        job = KernelJob(fn, x, None, output, forward, keys_of(fn.params, None))
        return StructuredMethod(job, recorder.recorded())


def plan_of(model: nn.Module, x: Tensor, output: str = "full") -> Plan:
    return method_of(model, x, output).plan


def covered(model: nn.Module, x: Tensor) -> set[str]:
    """Names of the parameters that rules cover; the others must be in the rest, once."""
    plan = plan_of(model, x)
    names = set(plan.groups) | set(plan.uses.rest)
    assert names == {n for n, p in model.named_parameters() if p.requires_grad}
    assert not set(plan.groups) & set(plan.uses.rest)
    assert len(plan.uses.rest) == len(set(plan.uses.rest))
    return set(plan.groups)
