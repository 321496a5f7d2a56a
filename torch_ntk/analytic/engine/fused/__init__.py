"""Programs in compiled loops on a CPU: one image goes through the network before the next begins.

`_regions` says which steps go together, `_layout` where an image is in memory, `_assembly` makes
passes over images of them, whose code `_source` writes and `_module` compiles; `_evaluation` is a
region for a block of pairs, which `_pairs` has as tensors.
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
