"""Programs as Triton kernels on a GPU, from the same passes as the loops of a CPU.

A program instance takes one image after the other through the network: as there, an image is one
displacement of a pair of images, or the same positions in both. Its values are in memory of its
own that stays in the caches. `_suitable` says which regions have a kernel, `_formulas` and
`_source` write it, `_module` loads it, and `_evaluation` is a region for a block of pairs.
"""

from ._evaluation import KernelEvaluation as KernelEvaluation
from ._suitable import suitable as suitable
from ._suitable import unusable as unusable
