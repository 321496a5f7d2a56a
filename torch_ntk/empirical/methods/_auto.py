"""Which method `"auto"` takes, from counts of operations and bytes."""

from __future__ import annotations

from torch import nn

from ..._checks import ArgumentError
from ..._functional import CannotTransformError
from ...memory import budget
from .._job import KernelJob
from .._parts import Kernels
from ..inspect import forward_operations
from ..structured import StructuredMethod, UseRecorder, UsesChangedError
from ._jacobian import JacobianMethod, jacobian_bytes
from ._vector_product import by_vector_products


class OnePrecisionError(Exception):
    """Products over parameters cannot be added up in a precision of their own here."""


def by_structure(job: KernelJob, recorder: UseRecorder) -> Kernels:
    """The kernels by the structured method.

    A model whose operations torch.func cannot transform at all, or whose uses of its parameters
    depend on the sample, has its kernel taken by the Jacobian method.
    """
    return _structured(StructuredMethod(job, recorder.recorded()))


def _structured(method: StructuredMethod) -> Kernels:
    try:
        return method.kernel()
    except (CannotTransformError, UsesChangedError):
        return JacobianMethod(method.job).kernel()


def by_auto(job: KernelJob, recorder: UseRecorder) -> Kernels:
    """The kernels by the structured method, or by another where that one does not fit.

    It does not fit if a parameter that no rule covers is so large that its Jacobian for a single
    sample exceeds the memory. Products with vectors never form a Jacobian; where they are refused,
    the Jacobian method is left.

    Raises:
        OnePrecisionError: The structured method does not fit, and products of more precision than
            the network's are wanted: then the network is to be evaluated in that precision.
    """
    method = StructuredMethod(job, recorder.recorded())
    one = method if not job.parts else method.of_job(job.of_outputs(job.parts[0]))
    if one.bytes_per_sample() <= budget(job.fn.device):
        return _structured(method)
    if job.fn.products != job.fn.dtype:
        raise OnePrecisionError
    if choose(job) == "vector_product":
        try:
            return by_vector_products(job)
        except ArgumentError:
            pass
    return JacobianMethod(job).kernel()


def choose(job: KernelJob) -> str:
    """`"jacobian"` or `"vector_product"`, whichever needs fewer operations and fits in memory.

    With F the operations of one forward pass and P the number of parameters, Jacobians take
    2 F O per sample and their contraction 2 P O² per pair of samples ("full"; 2 P O for
    "trace", "mean" and "diagonal"). Products with vectors take 2 F O per column sample and then
    3 F O per pair: less where the weights are many and each is used once.
    """
    o, n1, n2 = job.outputs, len(job.x1), len(job.columns)
    p = sum(t.numel() for t in job.fn.params.values())
    forward = max(forward_operations(job.fn, job.x1), 2 * p)
    contraction = 2 * p * (o * o if job.output == "full" else o)
    by_jacobian = 2 * forward * o * (n1 + n2) + contraction * n1 * n2
    by_product = 2 * forward * o * n2 + 3 * forward * o * n1 * n2
    fits = jacobian_bytes(job) <= budget(job.fn.device)
    module = job.fn.module
    recurrent = module is not None and any(
        isinstance(m, (nn.RNNBase, nn.RNNCellBase)) for m in module.modules()
    )
    # Forward-mode through a recurrent cell runs sample by sample, far from these counts.
    return "jacobian" if fits and (recurrent or by_jacobian <= by_product) else "vector_product"
