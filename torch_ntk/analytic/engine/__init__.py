"""Evaluating a program: covariances and tangent kernels, block of pairs by block of pairs."""

from ._options import Options as Options
from ._options import checked_options as checked_options
from ._run import divided as divided
from ._run import run as run
