"""The results that users read from a monitor."""

from __future__ import annotations

import os
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ..figures._history import history_plot
from ..measure._observation import columns
from ..measure._verdict import Verdict, verdict
from ..page._document import document
from ..page._report import write_report
from ._session import Session


class Results:
    """Base class of monitors, with the history, verdict, figure and page of their session."""

    _session: Session

    @property
    def history(self) -> dict[str, list[float]]:
        """Everything that was measured: `"step"`, and each metric by its logged name.

        Values that were not measured at a step are NaN.
        `pandas.DataFrame(monitor.history).set_index("step")` makes a table.
        """
        found, tag = columns(self._session.record.history), self._session.tag
        return {n if n == "step" else tag(n): column for n, column in found.items()}

    @property
    def verdict(self) -> Verdict:
        """The regime of the training, with the reason, from the last measurement."""
        record = self._session.record
        rows, reference = record.history, record.reference
        # The measurement at the reference itself has no changes to judge.
        has_moved = bool(rows) and reference is not None and rows[-1]["step"] > reference.step
        evaluation = record.evaluation
        if reference is None and self._session.settings.anchor_at is not None:
            anchor = self._session.settings.anchor_at
            return Verdict("unknown", f"the run has not come to step {anchor}, anchor_at")
        last = dict(rows[-1]) if has_moved else {}
        # With a single kernel, as at the reference, the drift is 0 and says nothing.
        if sum("drift" in row for row in rows) < 2:
            for name in ("drift", "kernel_distance"):
                last.pop(name, None)
        return verdict(
            last,
            self._session.diverged_at,
            samples=None if reference is None else len(reference.probe),
            outputs=evaluation.size if evaluation.is_probed else None,
        )

    def plot(self) -> tuple[Figure, np.ndarray[Any, Any]]:
        """Draw all curves, with the verdict as title.

        Returns:
            The figure, and the array of its axes, one for each panel.

        Raises:
            ValueError: Nothing was measured.
        """
        title = "\n".join(textwrap.wrap(str(self.verdict), 110))
        return history_plot(self._session.record.history, title=title)

    def document(self, name: str | None = None) -> dict[str, Any]:
        """Everything that the page shows, as plain values for JSON.

        It contains the verdict, the curves with their thresholds, kernels of at most 64 samples,
        the spectra and the last linearization, all rounded. The docstring of
        `torch_ntk.monitor.page._document.document` lists the keys. TensorBoard's tab shows the file
        `ntk.json` in the folder of a run, which contains this document. Callbacks and
        `Monitor(folder=...)` write this file.

        Args:
            name: The name of the run on the page; None takes `prefix`.
        """
        prefix = self._session.settings.prefix
        record, pictures = self._session.record, self._session.pictures
        return document(
            record, pictures, self.verdict, prefix=prefix, name=prefix if name is None else name
        )

    def report(self, path: str | os.PathLike[str], name: str | None = None) -> Path:
        """Write the page of this training as one HTML file, which needs no network and no server.

        It shows the verdict, drift, distance and gap with their thresholds, the kernel at a step
        that the reader selects, the spectrum, the linearization and all other metrics.
        `torch-ntk report RUN RUN` makes a page with two runs that TensorBoard's logger has written.

        Args:
            path: The path of the file, such as `"report.html"`.
            name: The name of the run on the page; None takes `prefix`.

        Returns:
            The path of the file.

        Raises:
            OSError: The file cannot be written.
        """
        return write_report(path, [self.document(name)])
