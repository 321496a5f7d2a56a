"""Random features of per-sample gradients, whose inner products estimate the empirical kernel.

`ntk_features` uses the methods of `empirical_ntk` to compute the inputs and cotangents of every use
of a parameter and to compare them with a plain backward pass. Instead of multiplying samples with
each other, `_projection` then maps the inputs and cotangents of each parameter to random features:
`_sjlt` by sparse sketches, `_dense` by products with random matrices. `_samples` reads blocks of
samples, `_store` writes blocks of features, and `_error` estimates the error of their products.
"""

from ._error import features_error as features_error
from ._ntk_features import ntk_features as ntk_features

__all__ = ["features_error", "ntk_features"]
