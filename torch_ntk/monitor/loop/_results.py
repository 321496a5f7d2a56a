"""What users read from a monitor."""

from __future__ import annotations

import textwrap
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ..figures._history import history_plot
from ..measure._observation import columns
from ..measure._verdict import Verdict, verdict
from ._session import Session


class Results:
    """History, verdict and plot of the session of a monitor."""

    _session: Session

    @property
    def history(self) -> dict[str, list[float]]:
        """Everything measured: `"step"` and each metric by its logged name; NaN where missing.

        `pandas.DataFrame(monitor.history).set_index("step")` is a table of it.
        """
        found, tag = columns(self._session.record.history), self._session.tag
        return {n if n == "step" else tag(n): column for n, column in found.items()}

    @property
    def verdict(self) -> Verdict:
        """The regime of the training, with the reason; from the last measurement."""
        record = self._session.record
        rows, reference = record.history, record.reference
        # At the reference itself nothing is known yet.
        has_moved = bool(rows) and reference is not None and rows[-1]["step"] > reference.step
        evaluation = record.evaluation
        return verdict(
            rows[-1] if has_moved else {},
            self._session.diverged_at,
            samples=None if reference is None else len(reference.probe),
            outputs=evaluation.size if evaluation.is_probed else None,
        )

    def plot(self) -> tuple[Figure, np.ndarray[Any, Any]]:
        """The curves, with the verdict above them: the figure and its axes `[panels]`.

        Raises:
            ValueError: Nothing was measured.
        """
        title = "\n".join(textwrap.wrap(str(self.verdict), 110))
        return history_plot(self._session.record.history, title=title)
