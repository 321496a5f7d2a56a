"""What is measured of a training and when, independent of any trainer.

`Monitor` watches a training loop of your own; `torch_ntk.callbacks` has the same for Lightning.
"""

from ._adapted import AdaptedNetwork as AdaptedNetwork
from ._adapted import ForwardFn as ForwardFn
from ._anchor import Anchor as Anchor
from ._anchor import has_diverged as has_diverged
from ._anchor import snapshot as snapshot
from ._figures import kernel_heatmap as kernel_heatmap
from ._figures import linearization_scatter as linearization_scatter
from ._figures import spectrum_plot as spectrum_plot
from ._history_plot import history_plot as history_plot
from ._monitor import Log as Log
from ._monitor import Monitor as Monitor
from ._observation import Observation as Observation
from ._observer import Observer as Observer
from ._options import CommonOptions as CommonOptions
from ._options import WatchOptions as WatchOptions
from ._probe import DEFAULT_PROBE as DEFAULT_PROBE
from ._probe import InputFn as InputFn
from ._probe import Probe as Probe
from ._probe import ProbeLike as ProbeLike
from ._probe import check_probe as check_probe
from ._probe import probe_from_batch as probe_from_batch
from ._probe import read_probe as read_probe
from ._scalars import METRICS as METRICS
from ._scalars import OPTIONAL as OPTIONAL
from ._scalars import SPECTRAL as SPECTRAL
from ._schedule import Schedule as Schedule
from ._side_file import SideFile as SideFile
from ._side_file import moved_in as moved_in
from ._stability import Training as Training
from ._training_loss import LossLike as LossLike
from ._verdict import Verdict as Verdict
from ._verdict import verdict as verdict
from ._watch import Watch as Watch

__all__ = [
    "DEFAULT_PROBE",
    "METRICS",
    "OPTIONAL",
    "SPECTRAL",
    "AdaptedNetwork",
    "Anchor",
    "CommonOptions",
    "ForwardFn",
    "InputFn",
    "Log",
    "LossLike",
    "Monitor",
    "Observation",
    "Observer",
    "Probe",
    "ProbeLike",
    "Schedule",
    "SideFile",
    "Training",
    "Verdict",
    "Watch",
    "WatchOptions",
    "check_probe",
    "has_diverged",
    "history_plot",
    "kernel_heatmap",
    "linearization_scatter",
    "moved_in",
    "probe_from_batch",
    "read_probe",
    "snapshot",
    "spectrum_plot",
    "verdict",
]
