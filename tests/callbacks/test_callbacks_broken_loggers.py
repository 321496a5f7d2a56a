"""A logger that fails outside of a measurement ends a run only if errors are to be raised."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.loggers import TensorBoardLogger
from lightning_runs import LIGHTNING_SAYS, classifier, fit

from torch_ntk.callbacks import NTKMonitor

pytestmark = [pytest.mark.filterwarnings(text) for text in LIGHTNING_SAYS]


class Broken(TensorBoardLogger):
    """Takes scalars and images, but not what `method` writes."""

    method = ""

    @property
    def experiment(self) -> Any:
        own = super().experiment

        def fail(*_: Any, **__: Any) -> None:
            raise OSError(f"{self.method} failed")

        setattr(own, self.method, fail)
        return own


@pytest.mark.parametrize("method", ["add_custom_scalars", "add_text"])
def test_layout_and_verdict(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Broken, "method", method)
    monitor = NTKMonitor(6, every_n_steps=5, on_error="warn")
    with pytest.warns(UserWarning, match=f"A logger of the monitor failed: {method} failed"):
        fit(tmp_path, classifier(), [monitor], logger=Broken(tmp_path, name="a"))
    assert monitor.history["step"] == [0, 5, 10]
    assert monitor.verdict.regime != "unknown"
    with pytest.raises(OSError, match=f"{method} failed"):
        fit(tmp_path, classifier(), [NTKMonitor(6)], logger=Broken(tmp_path, name="b"))
