"""Contract the factors of each weight for some samples to the kernel between these samples."""

from ._factors import SMALL as SMALL
from ._factors import Call as Call
from ._factors import Factor as Factor
from ._factors import Factors as Factors
from ._factors import GramFactor as GramFactor
from ._factors import JacobianFactor as JacobianFactor
from ._factors import join as join
from ._factors import joined_features as joined_features
from ._jacobian_pieces import Unformed as Unformed
from ._pair_blocks import PairBlocks as PairBlocks
from ._piece_sizes import piece_sizes as piece_sizes
from ._tied import TiedFactor as TiedFactor
from ._weighted import in_one_piece as in_one_piece
from ._weighted import mapped as mapped
from ._weighted import weighted as weighted

__all__ = [
    "SMALL",
    "Call",
    "Factor",
    "Factors",
    "GramFactor",
    "JacobianFactor",
    "PairBlocks",
    "TiedFactor",
    "Unformed",
    "in_one_piece",
    "join",
    "joined_features",
    "mapped",
    "piece_sizes",
    "weighted",
]
