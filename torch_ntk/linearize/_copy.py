"""A deep copy of a network, also after a forward pass has left tensors behind in it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from .._checks import value_error


def copied(model: nn.Module) -> nn.Module:
    """A deep copy of `model` without gradients.

    `copy.deepcopy` refuses tensors that have a history, such as the weight that
    `torch.nn.utils.spectral_norm` computes or an activation kept for later; the copy gets their
    values.

    Raises:
        ValueError: The model holds something that cannot be copied.
    """
    computed = {
        id(t): t.detach().clone() for m in model.modules() for t in _tensors(m) if not t.is_leaf
    }
    try:
        return copy.deepcopy(model, computed)
    except (RuntimeError, TypeError) as error:
        raise value_error(
            "model",
            "a module that copy.deepcopy can copy",
            f"{type(model).__name__}, for which it fails with {error}",
            "Remove what cannot be copied (open files, locks, tensors with a history) "
            "from its attributes.",
        ) from error


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    """Tensors in the attributes of `module`, and in plain containers there, one level deep."""
    for value in vars(module).values():
        members: Any = value.values() if isinstance(value, dict) else (value,)
        if isinstance(value, (list, tuple)):
            members = value
        yield from (v for v in members if isinstance(v, Tensor))
