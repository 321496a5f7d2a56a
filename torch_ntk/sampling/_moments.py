"""Mean and standard error of a stream of tensors, in one pass."""

from __future__ import annotations

import torch
from torch import Tensor


class RunningMoments:
    """Mean and variance by Welford's recurrences, without cancellation even for a small variance.

    Attributes:
        count: The number of tensors so far.
    """

    def __init__(self) -> None:
        self.count = 0
        self._mean: Tensor | None = None
        self._squares: Tensor | None = None

    def add(self, value: Tensor) -> None:
        """Add a tensor of the same shape as those before."""
        value = value.detach().to(torch.float64)
        self.count += 1
        if self._mean is None or self._squares is None:
            self._mean, self._squares = value.clone(), torch.zeros_like(value)
            return
        change = value - self._mean
        self._mean += change / self.count
        self._squares += change * (value - self._mean)

    @property
    def mean(self) -> Tensor:
        """The mean of the tensors so far, in float64."""
        assert self._mean is not None
        return self._mean

    @property
    def standard_error(self) -> Tensor:
        """The standard error of the mean, `√(Σ(v - mean)² / (n - 1) / n)`; needs two tensors."""
        assert self._squares is not None
        return torch.sqrt(self._squares / ((self.count - 1) * self.count))
