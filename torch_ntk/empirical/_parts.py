"""Which parameters' contributions to a kernel are returned together: `by=`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from torch import Tensor

from .._functional import plain_name

By = Literal["parameter", "module"]

Keys = dict[str, str]
"""By parameter name the key of the part that it belongs to."""

Kernels = dict[str, Tensor]
"""The parts of a kernel by their keys; a whole kernel is one part."""

WHOLE = "the whole kernel"


def keys_of(names: Iterable[str], by: By | None) -> Keys:
    """One key for all parameters, or each parameter's name, or that of the module it is in."""
    if by is None:
        return dict.fromkeys(names, WHOLE)
    plain = {n: plain_name(n) for n in names}
    return plain if by == "parameter" else {n: k.rpartition(".")[0] for n, k in plain.items()}


def distinct(keys: Keys) -> list[str]:
    """The keys in the order of the parameters."""
    return list(dict.fromkeys(keys.values()))
