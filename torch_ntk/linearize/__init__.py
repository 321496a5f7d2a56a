"""Linearize networks, or expand them to higher order, in their parameters."""

from ._expansion import expand as expand
from ._model import LinearizedModel as LinearizedModel
from ._model import TaylorModel as TaylorModel
from ._model import linearize as linearize
from ._model import taylor_expand as taylor_expand

__all__ = ["LinearizedModel", "TaylorModel", "expand", "linearize", "taylor_expand"]
