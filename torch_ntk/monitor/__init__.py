"""Measurements of a training and their schedule, independent of any trainer.

`Monitor` is for your own training loop; `torch_ntk.callbacks` has the same for Lightning.

One measurement passes through the folders as follows:

1. `loop/`: `Session.is_due` asks the `Schedule` whether to measure at this step.
2. `probe/`: At the first measurement the samples are taken from the batch, unless the user has
   passed them. The `Reader` determines by the network's forward which parts of the batch are inputs
   and which are targets.
3. `reference/`: At the first measurement θ_0, the buffers, f_0 and Θ_0 are stored in a `Reference`.
4. `measure/`: `Record.measure` makes a `Moment` of the present network and the reference.
5. Each requested `Metric` of the registry computes its value from the moment. Kernel, spectrum,
   outputs and linearization are computed once by the `Evaluation`, for all metrics that need them.
   If there are several processes, each computes a part of the kernel (`SharedKernel`).
6. `stability/`: One of the metrics compares the optimizer's step with the curvature of the loss.
7. The values are added to the history, and returned to the session as an `Observation`. The session
   measures the validation probe in the same way, and adds the share of the running time.
8. `figures/` draws the observation or the whole history, and `verdict` judges the last row of it.
9. `page/` combines everything into one document, which the page of `tensorboard_plugin/` shows.
"""

from .figures._figures import kernel_heatmap as kernel_heatmap
from .figures._figures import linearization_scatter as linearization_scatter
from .figures._figures import spectrum_plot as spectrum_plot
from .figures._history import history_plot as history_plot
from .loop._monitor import Log as Log
from .loop._monitor import Monitor as Monitor
from .loop._results import Results as Results
from .measure._adapted_network import ForwardFn as ForwardFn
from .measure._evaluation import KernelOutput as KernelOutput
from .measure._metrics import MEANINGS as MEANINGS
from .measure._metrics import METRICS as METRICS
from .measure._metrics import OPTIONAL as OPTIONAL
from .measure._observation import Observation as Observation
from .measure._verdict import Verdict as Verdict
from .measure._verdict import verdict as verdict
from .page._report import write_report as write_report
from .probe._probe import InputFn as InputFn
from .probe._probe import Probe as Probe
from .probe._probe import ProbeLike as ProbeLike
from .reference._state_file import load_state as load_state
from .reference._state_file import save_state as save_state
from .stability._training_loss import LossLike as LossLike

__all__ = [
    "MEANINGS",
    "METRICS",
    "OPTIONAL",
    "ForwardFn",
    "InputFn",
    "KernelOutput",
    "Log",
    "LossLike",
    "Monitor",
    "Observation",
    "Probe",
    "ProbeLike",
    "Results",
    "Verdict",
    "history_plot",
    "kernel_heatmap",
    "linearization_scatter",
    "load_state",
    "save_state",
    "spectrum_plot",
    "verdict",
    "write_report",
]
