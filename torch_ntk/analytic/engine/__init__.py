"""Evaluating a program: covariances and tangent kernels, block of pairs by block of pairs."""

from ._run import run as run
