"""The choice of the method for `"auto"`, from numbers of operations and bytes."""

from __future__ import annotations

from torch import nn

from ..._checks import ArgumentError
from ..._functional import CannotTransformError
from ...memory import budget
from .._job import KernelJob
from .._parts import Kernels
from .._recorder import refuse_recording
from ..inspect import forward_operations
from ..structured import StructuredMethod, UseRecorder, UsesChangedError
from ._jacobian import JacobianMethod, jacobian_bytes
from ._vector_product import by_vector_products


class OnePrecisionError(Exception):
    """This method cannot add up products over parameters in another precision."""


def by_structure(job: KernelJob, recorder: UseRecorder) -> Kernels:
    """Return the kernels by the structured method.

    The Jacobian method is used for a model whose operations torch.func cannot transform, or whose
    uses of its parameters depend on the sample.
    """
    return _structured(StructuredMethod(job, recorder.recorded()))


def _structured(method: StructuredMethod) -> Kernels:
    try:
        return method.kernel()
    except (CannotTransformError, UsesChangedError):
        return JacobianMethod(method.job).kernel()


def by_auto(job: KernelJob, recorder: UseRecorder) -> Kernels:
    """Return the kernels by the structured method, or by another if that one does not fit.

    It does not fit if the Jacobian of a parameter without a rule exceeds the memory for a single
    sample. Products with vectors never form a Jacobian; if they are refused, the Jacobian method is
    used. If products have a higher precision than the network, `OnePrecisionError` is raised
    instead, because the network must be evaluated in that precision.
    """
    method = StructuredMethod(job, recorder.recorded())
    one = method if not job.parts else method.of_job(job.of_outputs(job.parts[0]))
    if one.bytes_per_sample() <= budget(job.fn.device):
        return _structured(method)
    if job.fn.products != job.fn.dtype:
        raise OnePrecisionError
    if choose(job) == "vector_product":
        refuse_recording()
        try:
            return by_vector_products(job)
        except ArgumentError:
            pass
    return JacobianMethod(job).kernel()


def choose(job: KernelJob) -> str:
    """Return `"jacobian"` or `"vector_product"`: the one with fewer operations that fits in memory.

    With F the operations of one forward pass and P the number of parameters, Jacobians take
    2 F O per sample and their contraction 2 P O² per pair of samples ("full"; 2 P O for
    "trace", "mean" and "diagonal"). Products with vectors take 2 F O per column sample and then
    3 F O per pair, which is less for many weights that are used once each.
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
    # Forward mode evaluates a recurrent cell sample by sample, for which these counts do not hold.
    return "jacobian" if fits and (recurrent or by_jacobian <= by_product) else "vector_product"
