"""Reading a real module as a program of operations on covariances.

`read` traces a module and goes through its nodes. Whatever does not depend on random weights is
computed at once; every other node is read by the rule for its exact type (`_modules.py`) or
function (`_functions.py`), and what no rule reads is refused with the node's name.
"""

from ._builder import Builder as Builder
from ._elementwise import activation as activation
from ._elementwise import resolve as resolve
from ._positions import average as average
from ._positions import over_all_positions as over_all_positions
from ._read import read as read
from ._standard import ORDINARY as ORDINARY
from ._standard import Scheme as Scheme
from ._standard import StandardLike as StandardLike
from ._standard import checked_standard as checked_standard
from ._values import Data as Data
