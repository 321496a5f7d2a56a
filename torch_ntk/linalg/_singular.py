"""The warning about kernels that have fewer directions than rows."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path

import torch

# Frames of this package, and of torch, whose decorators stand between it and the caller.
_NOT_THE_CALLER = tuple(
    f"{folder}{os.sep}" for folder in (Path(__file__).parents[1], Path(torch.__file__).parent)
)


class SingularKernelWarning(RuntimeWarning):
    """A result rests on the numerical rank of a singular kernel.

    Directions whose eigenvalue is below the noise floor were left out (a pseudo-inverse), since
    dividing by such an eigenvalue would return noise. The message states the rank.
    """


def warn_singular(text: str) -> None:
    """Issue a `SingularKernelWarning` that points at the first line outside this package."""
    level = 1
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_NOT_THE_CALLER):
        frame = frame.f_back
        level += 1
    warnings.warn(text, SingularKernelWarning, stacklevel=level + 1)
