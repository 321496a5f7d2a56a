"""The structured method: contract each weight's inputs and cotangents in the cheapest order."""

from ._kernel import StructuredMethod as StructuredMethod
from ._parameter_uses import ParameterUses as ParameterUses
from ._parameter_uses import UseRecorder as UseRecorder
from ._parameter_uses import UsesChangedError as UsesChangedError
from ._plan import Plan as Plan

__all__ = ["ParameterUses", "Plan", "StructuredMethod", "UseRecorder", "UsesChangedError"]
