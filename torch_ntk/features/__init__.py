"""Random features of per-sample gradients, whose inner products estimate the empirical kernel.

A call of `ntk_features` takes the way of `empirical_ntk` as far as inputs and cotangents of every
use of a parameter are known, and compared with a plain backward pass. Then, in place of products
between samples, `_projection` maps what is known of each parameter to the features: `_sjlt` by
sparse sketches, `_dense` by products with random matrices. `_samples` reads blocks of samples,
`_store` writes blocks of features, `_error` says how exact their products are.
"""

from ._error import features_error as features_error
from ._ntk_features import ntk_features as ntk_features

__all__ = ["features_error", "ntk_features"]
