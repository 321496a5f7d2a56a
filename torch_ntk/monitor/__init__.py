"""What is measured of a training and when, independent of any trainer."""

from ._anchor import Anchor as Anchor
from ._anchor import has_diverged as has_diverged
from ._anchor import snapshot as snapshot
from ._figures import kernel_heatmap as kernel_heatmap
from ._figures import linearization_scatter as linearization_scatter
from ._figures import spectrum_plot as spectrum_plot
from ._observer import Observation as Observation
from ._observer import Observer as Observer
from ._probe import DEFAULT_PROBE as DEFAULT_PROBE
from ._probe import InputFn as InputFn
from ._probe import Probe as Probe
from ._probe import ProbeLike as ProbeLike
from ._probe import check_probe as check_probe
from ._probe import probe_from_batch as probe_from_batch
from ._scalars import METRICS as METRICS
from ._scalars import SPECTRAL as SPECTRAL
from ._schedule import Schedule as Schedule
from ._verdict import Verdict as Verdict
from ._verdict import verdict as verdict

__all__ = [
    "DEFAULT_PROBE",
    "METRICS",
    "SPECTRAL",
    "Anchor",
    "InputFn",
    "Observation",
    "Observer",
    "Probe",
    "ProbeLike",
    "Schedule",
    "Verdict",
    "check_probe",
    "has_diverged",
    "kernel_heatmap",
    "linearization_scatter",
    "probe_from_batch",
    "snapshot",
    "spectrum_plot",
    "verdict",
]
