"""Operations whose weights have structured derivatives; one file per kind of layer.

A rule is registered on the exact function that is called. What no rule covers is not an error:
such a parameter contributes through its own Jacobian.
"""

from ._conv import CALLS as _CONV
from ._embedding import CALLS as _EMBEDDING
from ._linear import CALLS as _LINEAR
from ._rule import Use as Use

RULES = {**_LINEAR, **_CONV, **_EMBEDDING}

__all__ = ["RULES", "Use"]
