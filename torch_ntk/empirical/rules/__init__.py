"""Operations whose weights have structured derivatives; one file per kind of layer.

A rule is registered on the exact function that is called. It returns a use, several uses (the
scale and the shift of a normalization, or either factor of a product: those of tensors that are
no parameters are left aside), or none. What no rule covers is not an error: such a parameter
contributes through its own Jacobian.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ._bias import BiasUse as BiasUse
from ._bilinear import CALLS as _BILINEAR
from ._conv import CALLS as _CONV
from ._conv import ConvUse as ConvUse
from ._conv_transpose import CALLS as _CONV_TRANSPOSE
from ._einsum import CALLS as _EINSUM
from ._elementwise import CALLS as _ELEMENTWISE
from ._embedding import CALLS as _EMBEDDING
from ._embedding import EmbeddingUse as EmbeddingUse
from ._linear import CALLS as _LINEAR
from ._linear import LinearUse as LinearUse
from ._norm import CALLS as _NORM
from ._prelu import CALLS as _PRELU
from ._rule import RuleError as RuleError
from ._rule import Use as Use
from ._rule import laid_out as laid_out
from ._rule import product as product

Rule = Callable[[Sequence[Any], Mapping[str, Any]], Use | Sequence[Use] | None]

RULES: dict[Any, Rule] = {
    **_LINEAR,
    **_CONV,
    **_CONV_TRANSPOSE,
    **_EMBEDDING,
    **_EINSUM,
    **_NORM,
    **_BILINEAR,
    **_PRELU,
    **_ELEMENTWISE,
}

__all__ = [
    "RULES",
    "BiasUse",
    "ConvUse",
    "EmbeddingUse",
    "LinearUse",
    "Rule",
    "RuleError",
    "Use",
    "laid_out",
    "product",
]
