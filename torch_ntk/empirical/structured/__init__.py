"""The structured method: per weight the cheapest contraction of its inputs and cotangents."""

from ._kernel import StructuredMethod as StructuredMethod
from ._parameter_uses import ParameterUses as ParameterUses
from ._parameter_uses import UseRecorder as UseRecorder
from ._parameter_uses import UsesChangedError as UsesChangedError
from ._plan import Plan as Plan

__all__ = ["ParameterUses", "Plan", "StructuredMethod", "UseRecorder", "UsesChangedError"]
