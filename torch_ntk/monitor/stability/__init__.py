"""The step size of an optimizer against the curvature of the loss that it goes down on.

`read_optimizers` says what the optimizer does, `find_loss` which loss is trained, and `stability`
computes lr·λ_max of that loss's Gauss-Newton matrix on a probe.
"""

from ._step_rule import read_optimizers as read_optimizers
from ._training_loss import find_loss as find_loss
