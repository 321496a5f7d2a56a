"""Translate a PyTorch module to a program of operations on covariances.

`read` traces a module with `torch.fx` and evaluates the nodes of the graph in order. A node that
does not depend on random weights is computed with the inputs (`Data`). Every other node is
translated by the rule for its exact module type (`_modules.py`) or its function (`_functions.py`)
to steps of the program, and its result is a `Value`, an `Elementwise` or a `Joined` (`_values.py`).
A node without a rule is refused with its name.
"""

from ._builder import Builder as Builder
from ._elementwise import activation as activation
from ._elementwise import resolve as resolve
from ._positions import adaptive as adaptive
from ._positions import average as average
from ._read import read as read
from ._standard import ORDINARY as ORDINARY
from ._standard import Scheme as Scheme
from ._standard import StandardLike as StandardLike
from ._standard import checked_standard as checked_standard
from ._values import Data as Data
from ._values import Layout as Layout
