"""Kernels that are sums over outputs, computed for a group of outputs at a time.

The factors of a sample for all outputs are stored until they are multiplied by those of the other
samples, which takes memory in proportion to O. But `Σ_i Θ[n, m, i, i]` needs the factors of only
one output at a time. If memory is short, all samples are evaluated for one group of outputs after
the other, which adds a forward pass for each group. Blocks of samples would evaluate each sample
several times.
"""

from __future__ import annotations

from ..memory import aim, budget, ranges
from ._job import KernelJob
from .structured import StructuredMethod, UseRecorder

_BY_OUTPUTS = ("trace", "mean", "diagonal")
_METHODS = ("auto", "structured")
_FEWEST = 4  # the smallest group of outputs that is worth further passes
# A group of outputs for which better use of the caches outweighs further passes, on a CPU and if
# the factors take more bytes than these. Without it a CNN with 100 outputs takes 17 % longer.
_CACHED, _MANY_BYTES = 8, 2**26


def output_groups(job: KernelJob, method: str, recorder: UseRecorder) -> tuple[slice, ...]:
    """Return the groups of outputs that are computed together; empty for a single group."""
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
    if job.samples * each <= most:  # an upper bound of the memory fits
        return ()
    plan = StructuredMethod(job, recorder.recorded()).plan
    kept = plan.numbers_per_sample(job.fn.params, alone=job.x2 is None) * job.item * job.samples
    count = min(-(-kept // most), o // fewest)
    if count <= 1:
        return ()
    return tuple(slice(a, b) for a, b in ranges(0, o, -(-o // count)))
