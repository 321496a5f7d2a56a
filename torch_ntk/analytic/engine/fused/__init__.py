"""Programs in compiled loops on a CPU: one image goes through the network before the next begins.

`_regions` says which steps go together, `_layout` where an image is in memory, `_assembly` makes
passes over images of them, whose code `_source` writes and `_module` compiles; `_evaluation` is a
region for a block of pairs.
"""

from ._evaluation import RegionEvaluation as RegionEvaluation
from ._regions import Partition as Partition
from ._regions import Region as Region
from ._regions import Shape as Shape
from ._regions import partition as partition
from ._regions import unfused as unfused
