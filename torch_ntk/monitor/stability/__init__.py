"""Comparison of an optimizer's step size with the curvature of the loss that it minimizes.

`read_optimizers` reads learning rates and momentum from the optimizer, `find_loss` determines which
loss is trained, and `stability` computes lr·λ_max of its Gauss-Newton matrix on a probe.
"""

from ._stability import Training as Training
from ._step_rule import read_optimizers as read_optimizers
from ._training_loss import find_loss as find_loss
