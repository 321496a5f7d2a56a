"""Where θ_0 is kept: inside each checkpoint, or in one file beside them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer

from torch_ntk.monitor import SideFile, Watch, moved_in

from ._trainer import checkpoint_folder, resumed_folder


class Keeper:
    """Takes θ_0 out of the states of a callback where that is wanted, and puts it back in.

    Args:
        choice: `"inside"` or `"beside"`.
    """

    def __init__(self, choice: str) -> None:
        self._choice = choice
        self._file = SideFile()
        self._folder: Path | None = None  # where checkpoints of the run go
        self._resumed_from: Path | None = None
        self._needs_it = True

    def start(self, trainer: Trainer) -> None:
        """Note where checkpoints go; only the first process writes."""
        self._folder = checkpoint_folder(trainer) if trainer.is_global_zero else None

    def resume(self, trainer: Trainer) -> None:
        """Note where the checkpoint lies whose state comes next."""
        self._resumed_from = resumed_folder(trainer)
        self._needs_it = trainer.is_global_zero  # other machines may not see the file

    def saved(self, watch: Watch) -> dict[str, Any]:
        """The state of `watch`, without θ_0 if that is in its file.

        Raises:
            OSError: The file cannot be written, and errors are to be raised.
        """
        state = watch.state_dict()
        if self._choice == "inside" or self._folder is None:
            return state
        try:
            return self._file.moved_out(state, watch.observer.anchor, self._folder)
        except OSError as error:
            if watch.on_error == "raise":
                raise
            watch.warn_once("file", f"θ_0 stays inside the checkpoints: {error}")
            return state

    def found(self, state: Mapping[str, Any]) -> Mapping[str, Any]:
        """A saved state with θ_0, where it is needed.

        Raises:
            ValueError: Its file is missing, or has another content than it had.
        """
        folders = [] if self._resumed_from is None else [self._resumed_from]
        return moved_in(state, folders) if self._needs_it else state
