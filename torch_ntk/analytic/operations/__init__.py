"""The operations of which the kernels of infinitely wide networks are composed, one per file.

An operation is a frozen dataclass. Its methods (`_operation.py`) state how it maps the covariances
and tangent kernels of pairs of samples, how it maps variances, which entries are known exactly
for identical samples, how a fused loop evaluates it, and what it costs. The engine uses only these
methods and never asks for an operation's type.

Every sample is called an image here: its features have two axes of positions, `(P, Q)`. A sequence
has positions `(T, 1)`, a vector `(1, 1)`.
"""

from ._activation import Activation as Activation
from ._activation import Gained as Gained
from ._affine import Affine as Affine
from ._attention import Attention as Attention
from ._attention import AttentionWeights as AttentionWeights
from ._attention import ManyHeads as ManyHeads
from ._dropout import Dropout as Dropout
from ._flatten import Flatten as Flatten
from ._fused import Fused as Fused
from ._gather import Gather as Gather
from ._image_data import ImageData as ImageData
from ._image_data import Mixing as Mixing
from ._image_data import Weighting as Weighting
from ._independent_units import IndependentUnits as IndependentUnits
from ._input import CLOSE as CLOSE
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
