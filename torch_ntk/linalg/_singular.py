"""The warning about kernels that have fewer directions than rows."""

from __future__ import annotations

import warnings

from .._checks import frames_to_caller


class SingularKernelWarning(RuntimeWarning):
    """A result depends on the numerical rank of a singular kernel.

    Directions whose eigenvalue is below the noise floor were left out (a pseudo-inverse), because
    dividing by such an eigenvalue would return noise. The message states the rank.
    """


def warn_singular(text: str) -> None:
    """Issue a `SingularKernelWarning` that points at the first line outside of this package."""
    warnings.warn(text, SingularKernelWarning, stacklevel=frames_to_caller())
