"""What callbacks leave in the folder of a run for its page."""

from __future__ import annotations

from pathlib import Path

import pytest
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning_runs import LIGHTNING_SAYS, classifier, fit

from torch_ntk.callbacks import KernelDrift, KernelSpectrum, NTKMonitor
from torch_ntk.tensorboard_plugin import find_documents, read_document

pytestmark = [pytest.mark.filterwarnings(text) for text in LIGHTNING_SAYS]


def test_the_document_is_that_of_the_monitor(tmp_path: Path) -> None:
    monitor = NTKMonitor(6, every_n_steps=1)
    loggers = [TensorBoardLogger(tmp_path / "board"), CSVLogger(tmp_path / "csv")]
    fit(tmp_path, classifier(), [monitor], logger=loggers)
    found = find_documents(tmp_path)
    assert list(found) == ["board/lightning_logs/version_0"]
    (path,) = found.values()
    kept = read_document(path, "a")
    assert kept["steps"][-1] == 10
    assert kept == {**monitor.document("a"), "curves": kept["curves"]}
    # The document is a part of what its measurement has cost, which is not known before.
    for own, last in zip(kept["curves"], monitor.document()["curves"], strict=True):
        assert own["name"] in ("overhead", last["name"])
        assert own["values"] == last["values"]


def test_several_callbacks_have_documents_of_their_own(tmp_path: Path) -> None:
    callbacks = [KernelDrift(6, every_n_steps=5), KernelSpectrum(6, every_n_steps=5)]
    fit(tmp_path, classifier(), callbacks, logger=TensorBoardLogger(tmp_path))
    documents = [read_document(path, name) for name, path in find_documents(tmp_path).items()]
    assert len(documents) == 2
    assert sorted(document["maps"] is None for document in documents) == [False, False]
    assert sorted(document["spectra"] is None for document in documents) == [False, True]


def test_without_figures_nothing_is_written(tmp_path: Path) -> None:
    monitor = NTKMonitor(6, every_n_steps=5, log_figures=False)
    fit(tmp_path, classifier(), [monitor], logger=TensorBoardLogger(tmp_path))
    assert find_documents(tmp_path) == {}


def test_a_folder_that_cannot_be_written_ends_no_run(tmp_path: Path) -> None:
    (tmp_path / "lightning_logs" / "version_0" / "ntk.json" / "in the way").mkdir(parents=True)
    monitor = NTKMonitor(6, every_n_steps=5, on_error="warn")
    logger = TensorBoardLogger(tmp_path, version=0)
    with pytest.warns(UserWarning, match=r"ntk\.json"):
        fit(tmp_path, classifier(), [monitor], logger=logger)
    assert monitor.history["step"] == [0, 5, 10]
