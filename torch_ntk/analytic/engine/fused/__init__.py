"""Programs in compiled loops on a CPU: one image goes through the network before the next begins.

`_regions` decides which steps go together, and `_layout` where their values are in memory.
`_assembly` makes passes over an image of them, whose code `_source` writes and `_module` compiles.
`_evaluation` runs these passes for a block of pairs; `_pairs` makes its arrays from tensors, and
tensors from its results.
"""

from ._assembly import Assembly as Assembly
from ._evaluation import RegionEvaluation as RegionEvaluation
from ._layout import Place as Place
from ._packed import Extent as Extent
from ._packed import Packed as Packed
from ._packed import Value as Value
from ._pairs import Pairs as Pairs
from ._region import Region as Region
from ._region import Shape as Shape
from ._regions import Partition as Partition
from ._regions import partition as partition
from ._regions import unfused as unfused
from ._source import TOGETHER as TOGETHER
from ._source import Pass as Pass
from ._source import Slot as Slot
from ._source import Stage as Stage
from ._windows import Windows as Windows
