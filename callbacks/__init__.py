"""Lightning callbacks that watch the Neural Tangent Kernel during training.

`NTKMonitor` measures everything; `KernelDrift`, `KernelSpectrum`, `LinearizationGap` and
`StabilityEdge` measure one thing each, on the same core. `LossForecast` logs the loss that the
kernel at the start predicts beside the real one.
"""

if __name__ != "torch_ntk.callbacks":
    # Started from the repository root, Python would also find this folder under its own name,
    # and two copies of each class would not recognize each other.
    raise ImportError("Import this package as `torch_ntk.callbacks`, not as `callbacks`.")

from ._base import KernelCallback as KernelCallback
from ._kernel_drift import KernelDrift as KernelDrift
from ._kernel_spectrum import KernelSpectrum as KernelSpectrum
from ._linearization_gap import LinearizationGap as LinearizationGap
from ._loss_forecast import LossForecast as LossForecast
from ._ntk_monitor import NTKMonitor as NTKMonitor
from ._stability_edge import StabilityEdge as StabilityEdge

__all__ = [
    "KernelCallback",
    "KernelDrift",
    "KernelSpectrum",
    "LinearizationGap",
    "LossForecast",
    "NTKMonitor",
    "StabilityEdge",
]
