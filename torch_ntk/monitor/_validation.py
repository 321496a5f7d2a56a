"""The same questions on samples that are not trained on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from .._checks import value_error
from ._anchor import Anchor
from ._observer import Observer
from ._probe import InputFn, Probe, ProbeLike, probe_from_batch, read_probe

OF_VALIDATION = ("drift", "alignment", "linearization_gap")
"""Metrics that are measured on a validation probe as well."""

PREFIX = "val_"


class Validation:
    """A second probe beside the one of the training samples, from the same anchor.

    Args:
        probe: As in `torch_ntk.callbacks.NTKMonitor`.
        input_fn: From a batch to `x` or `(x, y)`.
        of: The observer of the training probe, whose settings are taken.

    Raises:
        TypeError, ValueError: The probe is none, or no metric is measured on it.
    """

    def __init__(self, probe: ProbeLike, input_fn: InputFn | None, of: Observer) -> None:
        self._given = read_probe("validation_probe", probe, input_fn)
        self._input_fn = input_fn
        metrics = [name for name in of.metrics if name in OF_VALIDATION]
        if not metrics:
            raise value_error(
                "validation_probe",
                f"given with one of the metrics {', '.join(OF_VALIDATION)}",
                f"the metrics {', '.join(of.metrics)}",
            )
        self.observer = Observer(
            metrics,
            output=of.take.output,
            params=of.params,
            batch_size=of.take.batch_size,
            dtype=of.take.dtype,
            method=of.take.method,
            names=PREFIX,
        )
        self.begin()

    def begin(self) -> None:
        """Forget the anchor, and the samples that came from a batch."""
        self.observer.reset()
        self._probe = self._given if isinstance(self._given, Probe) else None

    @property
    def wants_batch(self) -> bool:
        """Whether samples are to be taken from a validation batch and have not been yet."""
        return self._probe is None

    def offer(self, batch: Any) -> None:
        """Take the samples from the first validation batch."""
        if not isinstance(self._given, Probe) and self._probe is None:
            with torch.inference_mode(False):  # a tensor of that mode could not be differentiated
                self._probe = probe_from_batch(batch, self._given, self._input_fn)

    def drop_anchor(self, network: nn.Module, step: int) -> bool:
        """Anchor where the training probe is; False if there are no samples yet."""
        if self._probe is None:
            return False
        self.observer.drop_anchor(network, self._probe, step)
        return True

    def measure(self, network: nn.Module, step: int) -> dict[str, float]:
        """The metrics by name, and the `"seconds"` that they took; nothing without an anchor."""
        if self.observer.anchor is None:
            return {}
        found = self.observer.measure(network, step).scalars
        named = {f"{PREFIX}{n}": found[n] for n in self.observer.metrics if n in found}
        return {**named, "seconds": found["seconds"]}

    def state_dict(self) -> dict[str, Any] | None:
        """Without θ_0, which the state of the training probe has; None without an anchor."""
        anchor = self.observer.anchor
        if anchor is None:
            return None
        return {**anchor.state_dict(), "params": {}, "buffers": {}}

    def load_state_dict(self, state: Mapping[str, Any] | None, training: Anchor | None) -> None:
        """Go on from a state, with θ_0 from the anchor of the training probe."""
        self.begin()
        if state is not None and training is not None:
            anchor = Anchor.from_state_dict(state)
            self.observer.anchor = replace(anchor, params=training.params, buffers=training.buffers)
            self._probe = anchor.probe
