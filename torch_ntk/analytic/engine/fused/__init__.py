"""Fused loops: most of a network in a few passes over small buffers that stay in cache.

`fused_evaluation` is the only entrance. Two arrangements share the loops: all pairs of positions by
displacement, before a global average, and the same position in both images.
"""

from ._choose import fused_evaluation as fused_evaluation
