"""Jacobians by one backward pass of the user's own module per sample and output."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from ..._checks import ArgumentError
from ..._functional import Batch, ModelFunction, PlainPass, RightOperations, failure
from ..._types import Parameters
from ...memory import is_out_of_memory


def plain_jacobians(fn: ModelFunction, x: Batch, names: Iterable[str]) -> tuple[Tensor, Parameters]:
    """Return the outputs `[N, O]`, and by name the Jacobians `[N, O, p]` of these parameters.

    They are right for every model that autograd can differentiate, and take N·O backward passes.
    """
    plain = fn.exact_plain
    wanted = list(names)

    def of_sample(found: PlainPass) -> tuple[Tensor, Parameters]:
        basis = torch.eye(found.outputs.shape[1], dtype=found.outputs.dtype, device=fn.device)
        rows = [found.gradients(e[None], only=wanted) for e in basis]
        return found.outputs.detach(), {
            n: torch.stack([row[n].detach().reshape(-1) for row in rows]) for n in wanted
        }

    try:
        # Some operations of torch are wrong for single samples.
        right = lambda leaves: RightOperations()  # noqa: E731
        each = [plain.run(x[n : n + 1], of_sample, right) for n in range(len(x))]
    except (ArgumentError, MemoryError):
        raise
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        raise failure(error, "differentiate the outputs of the model") from error
    return torch.cat([e[0] for e in each]), {
        n: torch.stack([e[1][n] for e in each]) for n in wanted
    }
