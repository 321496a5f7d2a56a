"""Operations whose weights have structured derivatives, one file per kind of layer.

A rule is registered for the exact function that is called. It returns a use, several uses (of the
scale and the shift of a normalization, or of both factors of a product; uses of tensors that are no
parameters are ignored), or none. The Jacobian of a parameter without a rule is computed instead.
"""

from __future__ import annotations

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
from ._rule import Rule as Rule
from ._rule import RuleError as RuleError
from ._rule import Use as Use
from ._rule import laid_out as laid_out
from ._rule import product as product

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
