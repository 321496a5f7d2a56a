"""Metrics of kernels: change in training, spectrum, rank, and alignment with targets.

Every function takes torch tensors in the layouts of `torch_ntk.empirical_ntk` (`[N, N]`,
`[N, N, O]`, `[N, N, O, O]`), computes in float64 on their device, and returns a detached 0-dim
float64 tensor (`spectrum`: 1-D; `numerical_rank`: int64; `spectral_summary`: plain numbers).
Arguments are never changed. NaN and infinities in a kernel are refused, and so are arguments for
which a metric is not defined.
"""

from ._alignment import kernel_alignment as kernel_alignment
from ._cka import cka as cka
from ._drift import kernel_distance as kernel_distance
from ._drift import kernel_drift as kernel_drift
from ._drift import param_drift as param_drift
from ._linearization import linearization_gap as linearization_gap
from ._rank import effective_rank as effective_rank
from ._rank import numerical_rank as numerical_rank
from ._spectrum import condition_number as condition_number
from ._spectrum import lambda_max as lambda_max
from ._spectrum import lambda_min as lambda_min
from ._spectrum import noise_floor as noise_floor
from ._spectrum import spectrum as spectrum
from ._summary import SpectralSummary as SpectralSummary
from ._summary import spectral_summary as spectral_summary

__all__ = [
    "SpectralSummary",
    "cka",
    "condition_number",
    "effective_rank",
    "kernel_alignment",
    "kernel_distance",
    "kernel_drift",
    "lambda_max",
    "lambda_min",
    "linearization_gap",
    "noise_floor",
    "numerical_rank",
    "param_drift",
    "spectral_summary",
    "spectrum",
]
