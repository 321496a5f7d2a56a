"""The operations that a network is made of once it is infinitely wide, one file each.

An operation is a frozen dataclass with what the engine needs to know of it: how it maps states of
pairs of images, how variances, what is exact for identical images, how it goes through a fused
loop, and what it costs (`_operation.py`). The engine asks for these and not for its type.
"""

from ._activation import Activation as Activation
from ._activation import Gained as Gained
from ._affine import Affine as Affine
from ._apart import Apart as Apart
from ._attention import Attention as Attention
from ._attention import AttentionWeights as AttentionWeights
from ._attention import ManyHeads as ManyHeads
from ._dropout import Dropout as Dropout
from ._flatten import Flatten as Flatten
from ._fused import Fused as Fused
from ._gather import Gather as Gather
from ._given import Given as Given
from ._given import Mixing as Mixing
from ._given import Weighting as Weighting
from ._input import FEW_CHANNELS as FEW_CHANNELS
from ._input import Input as Input
from ._input import close_pairs as close_pairs
from ._input import products as products
from ._normalization import Normalization as Normalization
from ._operation import Operation as Operation
from ._pool import Pool as Pool
from ._product import Product as Product
from ._recurrence import Recurrence as Recurrence
from ._state import IdenticalImages as IdenticalImages
from ._state import State as State
from ._state import Variances as Variances
from ._state import at_same_positions as at_same_positions
from ._state import spread as spread
from ._state import zero as zero
from ._taps import ONE as ONE
from ._taps import Taps as Taps
from ._taps import folded as folded
from ._taps import taps as taps
from ._taps import transposed_taps as transposed_taps
from ._unshared import Unshared as Unshared
from ._weighted_sum import WeightedSum as WeightedSum
