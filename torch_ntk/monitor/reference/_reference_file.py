"""A file next to checkpoints with θ_0, which is identified by the hash of its content."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load, save

from ..._checks import value_error
from ._reference import Reference
from ._state_file import write_whole

_DIGITS = 16  # the number of digits of the hash in the name of the file


class ReferenceFile:
    """Moves θ_0 from the states of a monitor into a file.

    θ_0 is the same in every checkpoint of a run, and as large as the model. The file is written
    once, completely or not at all, and its name contains the SHA-256 hash of its content.
    """

    def __init__(self) -> None:
        self._written: tuple[Reference, dict[str, str]] | None = None

    def without_theta_0(
        self, state: Mapping[str, Any], reference: Reference | None, folder: Path
    ) -> dict[str, Any]:
        """The state of a `Session` without θ_0, which is written to a file in `folder`.

        Without a reference the state is not changed. An `OSError` means that the file was not
        written.
        """
        if reference is None:
            return dict(state)
        known = self._written
        if known is None or known[0] is not reference or not _path(known[1], folder).exists():
            self._written = known = (reference, _write(reference, folder))
        observer = {**state["observer"], "anchor": {**state["observer"]["anchor"], "params": {}}}
        return {**state, "observer": observer, "theta_0": {**known[1], "folder": str(folder)}}


def with_theta_0(state: Mapping[str, Any], folders: Iterable[Path]) -> dict[str, Any]:
    """The state with θ_0, which is read from its file if necessary.

    Args:
        state: A state that `ReferenceFile.without_theta_0` has returned, or any other state.
        folders: The folders that are searched before the one in which the file was written.

    Raises:
        ValueError: The file is missing, or its content has changed.
    """
    record = state.get("theta_0")
    if record is None:
        return dict(state)
    places = [*folders, Path(record["folder"])]
    found = next((p for f in places if (p := _path(record, f)).is_file()), None)
    if found is None:
        raise value_error(
            "theta_0",
            f"in {record['file']}, beside the checkpoint",
            f"no such file in {' or '.join(str(p) for p in dict.fromkeys(places))}",
            "Copy it there from where the checkpoint was written, or begin without the state.",
        )
    content = found.read_bytes()
    if hashlib.sha256(content).hexdigest() != record["sha256"]:
        raise value_error(
            "theta_0",
            f"the content that {found} had when it was written",
            "another one",
            "The file was changed or damaged; restore it, or begin without the state.",
        )
    anchor = {**state["observer"]["anchor"], "params": load(content)}
    return {**state, "observer": {**state["observer"], "anchor": anchor}}


def _write(reference: Reference, folder: Path) -> dict[str, str]:
    """Write θ_0 into a file unless it exists, and return the name and the hash of the file."""
    content = save({n: t.detach().cpu().contiguous() for n, t in reference.params.items()})
    digest = hashlib.sha256(content).hexdigest()
    record = {"file": f"theta_0-{digest[:_DIGITS]}.safetensors", "sha256": digest}
    target = _path(record, folder)
    if not target.exists():
        write_whole(content, target)
    return record


def _path(record: Mapping[str, str], folder: Path) -> Path:
    """The path of the file in a folder. Folders in its recorded name are ignored."""
    return folder / Path(record["file"]).name
