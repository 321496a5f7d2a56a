"""The state of a callback in checkpoints, with θ_0 in each of them or in one file beside them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer

from torch_ntk.monitor.loop import Session
from torch_ntk.monitor.reference import ReferenceFile, with_theta_0

from ._trainer import checkpoint_folder, resumed_folder


class CheckpointState:
    """Moves θ_0 from the states of a session into a file if requested, and reads it from there.

    Args:
        theta_0: `"inside"` to keep θ_0 in each checkpoint, `"beside"` to write it into a file.
    """

    def __init__(self, theta_0: str) -> None:
        self._theta_0 = theta_0
        self._file = ReferenceFile()
        self._folder: Path | None = None  # where checkpoints of the run go
        self._resumed_from: Path | None = None
        self._needs_theta_0 = True

    def start(self, trainer: Trainer) -> None:
        """Remember the folder of checkpoints on the first process, which alone writes."""
        self._folder = checkpoint_folder(trainer) if trainer.is_global_zero else None

    def resume(self, trainer: Trainer) -> None:
        """Remember the folder of the checkpoint whose state is loaded next."""
        self._resumed_from = resumed_folder(trainer)
        self._needs_theta_0 = trainer.is_global_zero  # other machines may not see the file

    def saved(self, session: Session) -> dict[str, Any]:
        """The state of `session` for a checkpoint, without θ_0 if that is in a file.

        Raises:
            OSError: The file cannot be written, and `on_error` is `"raise"`.
        """
        state = session.state_dict()
        if self._theta_0 == "beside" and self._folder is not None:
            with session.forgiving(OSError, "θ_0 stays inside the checkpoints: {}", "file"):
                state = self._file.without_theta_0(state, session.record.reference, self._folder)
        return state

    def found(self, state: Mapping[str, Any]) -> Mapping[str, Any]:
        """The state of a checkpoint, with θ_0 from its file if this process needs it.

        Raises:
            ValueError: The file is missing, or its content has changed.
        """
        folders = [] if self._resumed_from is None else [self._resumed_from]
        return with_theta_0(state, folders) if self._needs_theta_0 else state
