"""The outputs of a network after training with a constant kernel, predicted without training.

The outputs of a network that trains lazily obey ḟ = -Θ ∂loss/∂f with a constant kernel Θ. For
squared error this has a closed form; for any other loss it is an ordinary differential equation.
All functions take kernels `[N, N]`, which act on every output alike, and full kernels
`[N, N, O, O]` indexed Θ[n, m, i, j]. They compute in float64 on the kernel's device and never
change their arguments.
"""

from ..linalg import SingularKernelWarning as SingularKernelWarning
from ._ensemble_mse import EnsemblePredictor as EnsemblePredictor
from ._ensemble_mse import ensemble_mse as ensemble_mse
from ._flow_predictor import FlowPredictor as FlowPredictor
from ._gaussian import Gaussian as Gaussian
from ._gaussian import KernelPair as KernelPair
from ._gp_inference import GaussianProcess as GaussianProcess
from ._gp_inference import gp_inference as gp_inference
from ._gradient_descent_mse import gradient_descent_mse as gradient_descent_mse
from ._gradient_flow import gradient_flow as gradient_flow
from ._gradient_flow_mse import gradient_flow_mse as gradient_flow_mse
from ._max_learning_rate import max_learning_rate as max_learning_rate
from ._one_hot import one_hot as one_hot
from ._operator_process import OperatorProcess as OperatorProcess
from ._predictor import MSEPredictor as MSEPredictor

__all__ = [
    "EnsemblePredictor",
    "FlowPredictor",
    "Gaussian",
    "GaussianProcess",
    "KernelPair",
    "MSEPredictor",
    "OperatorProcess",
    "SingularKernelWarning",
    "ensemble_mse",
    "gp_inference",
    "gradient_descent_mse",
    "gradient_flow",
    "gradient_flow_mse",
    "max_learning_rate",
    "one_hot",
]
