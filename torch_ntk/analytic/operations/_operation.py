"""What every operation of an infinitely wide network has to say."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor

from ...activations import Form
from ._fused import Fused
from ._state import IdenticalImages, State, Variances


class Operation(ABC):
    """One operation on the features of every image at every position.

    For a pair of images x, x' and positions p, p' the features have the covariance K (NNGP) and
    the tangent kernel Θ, both averages over channels. A subclass is a frozen dataclass in a file
    of its own. To add one, write that file, name it in `__init__.py`, and have a rule of `lift/`
    put it into programs; the engine needs no change.

    Attributes:
        needs_variances: Whether `state` needs the variances of the inputs: it is not linear in
            the covariances.
        mixes_positions: Whether the covariances between different positions enter its result.
        differs_for_itself: Whether an image with itself is another matter than with an exact copy
            of it: something random is drawn for every image. No distances are kept then.
    """

    needs_variances: ClassVar[bool] = False
    mixes_positions: ClassVar[bool] = False
    differs_for_itself: ClassVar[bool] = False

    @abstractmethod
    def state(self, inputs: Sequence[State], variances: Sequence[Variances | None]) -> State:
        """K and Θ of the result for a block of pairs of images.

        Args:
            inputs: The values that it takes.
            variances: Of each input, where they are known: always with `needs_variances`, and
                where states are distances.
        """

    @abstractmethod
    def variance(self, inputs: Sequence[Tensor]) -> Tensor:
        """K(x, x) of the result at each position, `[N, P, Q]`, from that of the inputs.

        It is not asked after an operation that mixes positions; those follow from `state`.
        """

    def wants_full(self, full: bool, several: bool) -> bool:
        """Whether its inputs must have all pairs of positions.

        Args:
            full: Whether its result must.
            several: Whether its input or its result has more than one position.
        """
        return full

    def kept_per_image(self, positions: int) -> int:
        """How many numbers the engine keeps of each image in the place of this step's variances.

        Args:
            positions: Positions of the result.
        """
        return positions

    def with_identical(
        self, made: State, inputs: Sequence[State], identical: IdenticalImages
    ) -> State:
        """`made`, the result of `state`, with exact entries for images that are identical.

        Linear operations keep exact entries exact.
        """
        return made

    def fused(self, form: Form) -> Fused | None:
        """How it goes through a fused loop on a CPU; None if it does not.

        Without a fused form it is evaluated by `state`, and what comes before and after it in
        loops of their own.

        Args:
            form: For which loop.
        """
        return None

    def collected(self, full: bool, positions: int) -> float | None:
        """The factor of a sum over positions, if that is all that the operation does; else None.

        Args:
            full: Whether the sum would be over all pairs of positions; over the same position in
                both images otherwise.
            positions: How many positions the input has.
        """
        return None

    @property
    @abstractmethod
    def cost(self) -> float:
        """Arithmetic operations per entry of the result, for K and Θ together."""
