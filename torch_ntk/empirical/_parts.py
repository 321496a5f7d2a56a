"""The argument `by=`, which divides a kernel into contributions of groups of parameters."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from torch import Tensor

from .._functional import plain_name

By = Literal["parameter", "module"]

Keys = dict[str, str]
"""The key of the part to which a parameter contributes, by the parameter's name."""

Kernels = dict[str, Tensor]
"""The parts of a kernel by their keys; a kernel that is not divided has one part."""

WHOLE = "the whole kernel"


def keys_of(names: Iterable[str], by: By | None) -> Keys:
    """Return for each parameter the key of the whole kernel, its name, or its module's name."""
    if by is None:
        return dict.fromkeys(names, WHOLE)
    plain = {n: plain_name(n) for n in names}
    return plain if by == "parameter" else {n: k.rpartition(".")[0] for n, k in plain.items()}


def distinct(keys: Keys) -> list[str]:
    """Return the keys in the order of the parameters."""
    return list(dict.fromkeys(keys.values()))
