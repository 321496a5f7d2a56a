"""The error for samples that depend on each other, or on a state of the module."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..._checks import ArgumentError, value_error
from ..._functional import (
    Batch,
    PlainModel,
    PlainPass,
    after_evaluation,
    agree,
    call_with,
    plain_name,
)
from ..inspect import not_deterministic

# The prefix of attributes in which recurrent layers list their weights, again after each change.
_FLAT = "_flat_weight"


def depends_on_batch(plain: PlainModel, x: Batch, what: str) -> ArgumentError:
    """Return the error for a model whose samples alone differ from the same samples in a batch.

    `what` names what differs, if the outputs do not.
    """

    def outputs(found: PlainPass) -> Tensor:
        return found.outputs.detach()

    changing = state_that_changes(plain, x)
    if changing:
        listed = ", ".join(repr(n) for n in changing[:4])
        return value_error(
            "model",
            "a function of its inputs and parameters alone",
            f"a forward that changes its own state ({listed}), on which {what} depend",
            "Freeze it before (an observer of quantization, a state that a recurrent network "
            "keeps for the next call), or pass it in with the inputs.",
        )
    together = [plain.run(x, outputs) for _ in range(2)]
    alone = [torch.cat([plain.run(s, outputs) for s in x.split(1)]) for _ in range(2)]
    if not agree(together[:1], together[1:]) or not agree(alone[:1], alone[1:]):
        return not_deterministic()
    if not agree(alone[:1], together[:1]):
        what = "outputs"
    return value_error(
        "model",
        "a function of one sample at a time",
        f"{what} of a sample that change with the other samples of its batch",
        "Replace statistics over the batch (batch normalization in train mode or without running "
        "statistics, x - x.mean(0), …) by statistics over one sample, and check which "
        "dimension the model takes for the batch (batch_first=True). If the batch is meant as one "
        "input, such as the nodes of a graph: coupled=True of empirical_ntk.",
    )


def state_that_changes(plain: PlainModel, x: Batch) -> list[str]:
    """Return the names of buffers and attributes that a forward pass changes and may read."""
    module = plain.model
    if not isinstance(module, nn.Module):
        return []
    buffers = {n: b.clone() for n, b in module.named_buffers()}
    attributes = {n: dict(vars(m)) for n, m in module.named_modules()}
    fixed = {n: t for n, t in plain.fixed.items() if n not in buffers}
    try:
        values = {**fixed, **plain.selected, **buffers}
        call_with(module, values, x.to(plain.dtype).clone().value, plain.forward_fn)
    except RuntimeError:
        return []
    finally:
        changed = [
            f"{n}.{name}".lstrip(".")
            for n, m in module.named_modules()
            for name, value in vars(m).items()
            if attributes[n].get(name, value) is not value
            and not (isinstance(m, torch.nn.RNNBase) and name.startswith(_FLAT))
        ]
        after_evaluation(module)
    # Normalization in train mode writes its running statistics, but does not read them.
    statistics = {
        f"{n}.{name}".lstrip(".")
        for n, m in module.named_modules()
        if isinstance(m, nn.modules.batchnorm._NormBase)
        for name in m._buffers
    }
    written = [
        n for n, b in buffers.items() if n not in statistics and not torch.equal(b, plain.fixed[n])
    ]
    return [plain_name(n) for n in (*written, *changed)]
