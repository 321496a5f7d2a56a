"""`F.prelu`: a scale of the negative entries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from ._elementwise import ScaleUse
from ._rule import Rule, Use, argument


def prelu(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Sequence[Use]:
    """Return the use in `F.prelu(input, weight)`, with one weight or one per channel."""
    x, weight = argument(args, kwargs, 0, "input"), argument(args, kwargs, 1, "weight")
    if weight.ndim > 1 or (weight.numel() > 1 and x.ndim < 2):
        return ()
    along = (1,) if weight.numel() > 1 else ()
    return [ScaleUse(x.clamp(max=0), weight, along)]


CALLS: dict[Any, Rule] = {
    F.prelu: prelu,
    Tensor.prelu: prelu,
}
