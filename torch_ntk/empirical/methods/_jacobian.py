"""The Jacobian method: the Jacobian of each sample, and the contraction of Jacobians.

Θ[n, m, i, j] = Σ_p J1[n, i, p] · J2[m, j, p] is computed for one parameter after the other.
"""

from __future__ import annotations

from torch import Tensor
from torch.func import jacrev

from ..._functional import (
    Batch,
    CannotTransformError,
    ModelFunction,
    RightOperations,
    transforming,
)
from ..._types import Parameters
from ...memory import check_enough, plan
from .._checked_blocks import FactorMethod
from .._job import KernelJob
from .._outputs import row_bytes
from .._stages import stage
from ..checksum import BlockCheck, plain_jacobians
from ..contract import Factors


def jacobians(fn: ModelFunction, x: Batch) -> tuple[Tensor, Parameters]:
    """Return the outputs `[N, O]`, and by name the Jacobians `[N, O, p]`, of all samples.

    They are computed at once under vmap; or by plain loops if an operation has no batching rule
    (GRU, data-dependent control flow) or cannot be transformed (an old-style autograd.Function).
    """
    with stage("jacobian"):
        try:
            return _batched(fn, x)
        except CannotTransformError:
            return plain_jacobians(fn, x, fn.params)


def _batched(fn: ModelFunction, x: Batch) -> tuple[Tensor, Parameters]:
    def of_sample(sample: Batch) -> tuple[Parameters, Tensor]:
        def single(params: Parameters) -> tuple[Tensor, Tensor]:
            out = fn.single(params, sample)
            return out, out

        found: tuple[Parameters, Tensor] = jacrev(single, has_aux=True)(fn.params)
        return found

    with transforming(), RightOperations():
        jac, out = fn.of_each(x, of_sample)
    n, o = len(x), out.shape[-1]
    # Some batching rules confuse axes.
    shapes = {k: (n, o, *p.shape) for k, p in fn.params.items()}
    if out.shape != (n, o) or any(j.is_sparse or j.shape != shapes[k] for k, j in jac.items()):
        raise CannotTransformError("vmap changes the shape of a Jacobian")
    return out, {k: j.reshape(n, o, fn.params[k].numel()) for k, j in jac.items()}


def jacobian_bytes(job: KernelJob) -> int:
    """Return the memory that one sample's Jacobian takes while it is computed and contracted.

    There are two copies of the Jacobian (the result of the backward pass, and the factor), and the
    batched backward pass stores each activation once per output.
    """
    size = sum(p.numel() for p in job.fn.params.values()) * job.item
    activations = job.forward.activation_bytes
    return job.outputs * (2 * size + activations) + 2 * activations


class JacobianMethod(FactorMethod):
    """Computes the Jacobians of all parameters as factors."""

    def sizes(self) -> tuple[int, int]:
        """Choose the sizes from the free memory."""
        job, longest = self.job, self.job.longest
        each = jacobian_bytes(job)
        check_enough(each + each // 2 if longest > 1 else each)  # a row, and a column beside it
        row = row_bytes(job.output, longest, job.outputs, job.fn.products)
        fits = plan(longest, each + row, job.fn.device)
        return job.batch_size or fits, job.batch_size or max(1, fits // 4)

    def without(self, names: frozenset[str]) -> JacobianMethod | None:
        """Return the method with plain loops for these parameters."""
        return self._with(self.job, self.by_loops | names)

    def of_job(self, job: KernelJob) -> JacobianMethod:
        """Return the method for another job."""
        return self._with(job, self.by_loops)

    def _with(self, job: KernelJob, by_loops: frozenset[str]) -> JacobianMethod:
        return JacobianMethod(job, by_loops)

    def factors(self, x: Batch, start: int, alone: bool, check: BlockCheck | None) -> Factors:
        """Return the Jacobians of all parameters that plain loops do not compute."""
        outputs, found = jacobians(self.job.fn, x)
        if check is not None:
            check.add_outputs(outputs)
        factors: Factors = {}
        for name in list(found):
            j = found.pop(name)
            if name in self.by_loops:
                continue
            if check is not None:
                check.sums.add_jacobian(name, start, j)
            j = self.job.precondition.columns(name, j)
            factors[self.job.keys[name], name] = self.of_jacobian(name, j)
        return factors
