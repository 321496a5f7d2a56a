"""Kernels that are sums over outputs, taken from a few of the outputs at a time.

Of every sample the factors of all outputs are kept until its pairs with the others are multiplied:
memory in proportion to O. `Σ_i Θ[n, m, i, i]` needs those of one output at a time. Where memory is
short, some outputs of all samples are therefore taken together, which adds a forward pass for each
group of outputs; blocks of samples would take each sample several times.
"""

from __future__ import annotations

from ..memory import aim, budget
from ._job import KernelJob
from .structured import StructuredMethod, UseRecorder

_BY_OUTPUTS = ("trace", "mean", "diagonal")
_METHODS = ("auto", "structured")
_FEWEST = 4  # outputs in a group: fewer are not worth the passes of their own
_CACHED = 8  # outputs whose passes of their own cost no more than what caches gain
_MANY_BYTES = 2**26  # of factors that are kept, from which on that holds on a CPU


def output_groups(job: KernelJob, method: str, recorder: UseRecorder) -> tuple[slice, ...]:
    """Outputs that are taken together; none are named where all of them are.

    Args:
        job: The kernel.
        method: As the caller wants it.
        recorder: Of the uses of parameters in a forward pass.
    """
    o = job.outputs
    is_sum = job.output in _BY_OUTPUTS and job.fn.transform is None
    if not is_sum or method not in _METHODS or o < 2 * _FEWEST:
        return ()
    sparing, fewest = aim(), _FEWEST
    most = budget(job.fn.device) // 4
    if sparing is not None:
        most = min(most, sparing // 3)
    elif job.fn.device.type == "cpu" and o >= 2 * _CACHED:
        most, fewest = min(most, _MANY_BYTES), _CACHED
    each = o * (job.forward.activation_bytes + job.fn.parameter_bytes)
    if job.samples * each <= most:  # more than there can be
        return ()
    plan = StructuredMethod(job, recorder.recorded()).plan
    kept = plan.numbers_per_sample(job.fn.params, alone=job.x2 is None) * job.item * job.samples
    count = min(-(-kept // most), o // fewest)
    if count <= 1:
        return ()
    size = -(-o // count)
    return tuple(slice(a, min(a + size, o)) for a in range(0, o, size))
