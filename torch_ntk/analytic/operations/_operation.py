"""The interface of every operation of an infinitely wide network."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor

from ...activations import Form
from ._fused import Fused
from ._state import IdenticalImages, State, Variances


class Operation(ABC):
    """An operation on the features of every image at every position.

    For a pair of images x, x' and positions p, p' the features have the covariance K (NNGP) and
    the tangent kernel Θ, both averages over channels. A subclass is a frozen dataclass in a file
    of its own. To add one, write that file, name it in `__init__.py`, and have a rule of `lift/`
    add it to programs; the engine needs no change.

    Attributes:
        needs_variances: Whether `state` needs the variances of the inputs, because it is not
            linear in the covariances.
        mixes_positions: Whether its result depends on covariances between different positions.
        random_per_image: Whether it draws random numbers anew for every image, as dropout does.
            The kernel of an image with itself then differs from its kernel with an exact copy,
            and the engine stores covariances and not distances.
    """

    needs_variances: ClassVar[bool] = False
    mixes_positions: ClassVar[bool] = False
    random_per_image: ClassVar[bool] = False

    @abstractmethod
    def state(self, inputs: Sequence[State], variances: Sequence[Variances | None]) -> State:
        """Return K and Θ of the result for a block of pairs of images.

        Args:
            inputs: K and Θ of the operation's inputs.
            variances: The variances of each input, or None. They are always there if the
                operation has `needs_variances` or if the inputs are stored as distances.
        """

    @abstractmethod
    def variance(self, inputs: Sequence[Tensor]) -> Tensor:
        """Return K(x, x) of the result at each position, `[N, P, Q]`, from that of the inputs.

        The engine does not call this for an operation that mixes positions, unless each of its
        inputs has one position; it takes their variances from `state`.
        """

    def wants_full(self, full: bool, several: bool) -> bool:
        """Return whether the inputs must contain all pairs of positions (p, p').

        Args:
            full: Whether the result must contain all pairs of positions. Otherwise the pairs
                with p = p' are enough.
            several: Whether the input or the result has more than one position.
        """
        return full

    def kept_per_image(self, positions: int) -> int:
        """Return how many numbers per image the engine stores as this operation's variances.

        Args:
            positions: The number of positions of the result.
        """
        return positions

    def with_identical(
        self, made: State, inputs: Sequence[State], identical: IdenticalImages
    ) -> State:
        """Return `made`, the result of `state`, with exact entries for pairs of identical images.

        Linear operations need no correction, because exact inputs give exact results.
        """
        return made

    def fused(self, form: Form) -> Fused | None:
        """Return how a fused loop evaluates the operation; None if it cannot.

        Without a fused form the operation is evaluated by `state`, and the operations before and
        after it are in separate loops.

        Args:
            form: The kind of loop: stored as covariances or as distances, and its precision.
        """
        return None

    def collected(self, full: bool, positions: int) -> float | None:
        """Return w if the operation is w times a sum over positions, and None otherwise.

        A fused loop computes such a sum while it writes the entries, and stores none of them.

        Args:
            full: Whether the sum is over all pairs of positions; otherwise it is over the same
                position in both images.
            positions: The number of positions of the input.
        """
        return None

    def averages(self) -> tuple[Tensor, Tensor] | None:
        """The matrices `[P_out, P_in]`, `[Q_out, Q_in]` of weights, if it averages positions only.

        None for every other operation.
        """
        return None

    @property
    @abstractmethod
    def cost(self) -> float:
        """The number of arithmetic operations per entry of the result, for K and Θ together."""
