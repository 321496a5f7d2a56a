"""Kernels of finite networks at their current parameters."""

from ._api import empirical_ntk as empirical_ntk
from ._nngp import empirical_nngp as empirical_nngp

__all__ = ["empirical_nngp", "empirical_ntk"]
