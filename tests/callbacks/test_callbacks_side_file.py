"""θ_0 in a file of its own beside the checkpoints."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning_runs import QUIET, classifier, fit, loader, untimed, with_batch_norm
from safetensors.torch import load_file
from torch import Tensor

from torch_ntk.callbacks import LinearizationGap, NTKMonitor
from torch_ntk.monitor.reference import _reference_file

pytestmark = [
    *[pytest.mark.filterwarnings(text) for text in QUIET],
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
    pytest.mark.filterwarnings("ignore:NTKMonitor starts at step 5"),
]


def run(path: Path, monitor: Any, steps: int, ckpt_path: str | None = None) -> dict[str, Tensor]:
    """Train to a step, with a checkpoint after each, and return θ_0."""
    module = classifier(with_batch_norm)
    start = {n: p.detach().clone() for n, p in module.named_parameters()}
    saver = ModelCheckpoint(path, save_last=True, every_n_train_steps=1)
    options: dict[str, Any] = {"enable_checkpointing": True, "max_epochs": -1}
    batches = loader(shuffle=False)
    fit(path, module, [monitor, saver], batches, ckpt_path, max_steps=steps, **options)
    return start


def beside(kind: type = NTKMonitor, **options: Any) -> Any:
    return kind(6, every_n_steps=2, theta_0="beside", **options)


def state_of(path: Path) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(path, weights_only=True)["callbacks"]["NTKMonitor[ntk]"]
    return state


def test_one_file_for_all_checkpoints(tmp_path: Path) -> None:
    start = run(tmp_path, beside(), 5)
    (file,) = tmp_path.glob("*.safetensors")
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert file.name == f"theta_0-{digest[:16]}.safetensors"
    kept = load_file(file)
    assert kept.keys() == start.keys()
    assert all(torch.equal(kept[n], start[n]) for n in start)
    state = state_of(tmp_path / "last.ckpt")
    assert state["observer"]["anchor"]["params"] == {}
    assert state["theta_0"]["sha256"] == digest
    assert not list(tmp_path.glob("*.part"))


def test_it_goes_on_as_from_a_state_inside(tmp_path: Path) -> None:
    curves = []
    for name, options in (("in", {}), ("out", {"theta_0": "beside"})):
        folder = tmp_path / name
        run(folder, NTKMonitor(6, every_n_steps=2, **options), 5)
        rest = NTKMonitor(6, every_n_steps=2, **options)
        run(folder, rest, 10, str(folder / "last.ckpt"))
        curves.append(untimed(rest.history))
        assert rest.history["step"] == [0, 2, 4, 6, 8, 10]
    assert curves[0] == curves[1]
    assert curves[0]["ntk/drift"][-1] > 0
    sizes = [(tmp_path / name / "last.ckpt").stat().st_size for name in ("in", "out")]
    assert sizes[1] < sizes[0]


def test_resumed_with_the_other_choice(tmp_path: Path) -> None:
    run(tmp_path, beside(), 5)
    rest = NTKMonitor(6, every_n_steps=2)
    run(tmp_path, rest, 10, str(tmp_path / "last.ckpt"))
    assert rest.history["step"] == [0, 2, 4, 6, 8, 10]
    assert len(state_of(tmp_path / "last.ckpt")["observer"]["anchor"]["params"]) > 0


def test_moved_together_and_apart(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    run(old, beside(), 5)
    new.mkdir()
    shutil.copy(old / "last.ckpt", new)
    path = str(new / "last.ckpt")
    rest = beside()
    run(new, rest, 6, path)  # from where it was written
    assert rest.history["step"] == [0, 2, 4, 6]
    (file,) = old.glob("*.safetensors")
    assert (new / file.name).read_bytes() == file.read_bytes()
    shutil.move(old, tmp_path / "away")
    rest = beside()
    run(new, rest, 8, path)  # from beside the checkpoint
    assert rest.history["step"] == [0, 2, 4, 6, 8]


def test_a_missing_or_damaged_file(tmp_path: Path) -> None:
    run(tmp_path, beside(), 5)
    (file,) = tmp_path.glob("*.safetensors")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))
    path = str(tmp_path / "last.ckpt")
    kept = tmp_path / "kept.ckpt"
    shutil.copy(path, kept)
    with pytest.raises(ValueError, match=r"`theta_0` must be the content that .* had when"):
        run(tmp_path, beside(), 8, str(kept))
    file.unlink()
    with pytest.raises(ValueError, match=r"`theta_0` must be in theta_0-.*Copy it there"):
        run(tmp_path, beside(), 8, str(kept))
    anew = beside(on_error="warn")
    with pytest.warns(UserWarning, match="NTKMonitor begins anew: `theta_0` must be in"):
        run(tmp_path, anew, 8, str(kept))
    assert anew.history["step"] == [5, 6, 8]


def test_a_part_and_a_state_outside_of_a_run(tmp_path: Path) -> None:
    gap = beside(LinearizationGap)
    assert gap.state_dict()["observer"]["anchor"] is None
    run(tmp_path, gap, 3)
    assert len(list(tmp_path.glob("*.safetensors"))) == 1
    again = beside(LinearizationGap)
    again.load_state_dict(gap.state_dict())
    assert untimed(again.history) == untimed(gap.history)
    assert len(again.state_dict()["observer"]["anchor"]["params"]) > 0  # it knows no folder


def test_other_processes_need_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They measure nothing, and may run on a machine that does not see the folder."""
    run(tmp_path, beside(), 5)
    path = str(tmp_path / "last.ckpt")
    for file in tmp_path.glob("*.safetensors"):
        file.unlink()
    monkeypatch.setattr(Trainer, "is_global_zero", property(lambda self: False))
    other = beside()
    run(tmp_path / "other", other, 8, path)
    assert other.history["step"] == [0, 2, 4]  # what the checkpoint has
    assert not list((tmp_path / "other").glob("*.safetensors"))


def test_bad_argument() -> None:
    with pytest.raises(ValueError, match="`theta_0` must be one of 'inside', 'beside'"):
        NTKMonitor(theta_0="outside")


@pytest.mark.parametrize("on_error", ["raise", "warn"])
def test_a_folder_that_takes_no_file(
    on_error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """θ_0 then stays where it is safe, and the run goes on if that is what is wanted."""

    def full(*_: Any, **__: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(_reference_file, "save", full)
    monitor = beside(on_error=on_error)
    if on_error == "raise":
        with pytest.raises(OSError, match="no space left"):
            run(tmp_path, monitor, 5)
        return
    with pytest.warns(UserWarning, match="θ_0 stays inside the checkpoints: no space") as caught:
        start = run(tmp_path, monitor, 5)
    assert sum("stays inside" in str(w.message) for w in caught) == 1
    kept = state_of(tmp_path / "last.ckpt")["observer"]["anchor"]["params"]
    assert kept.keys() == start.keys()
    assert all(torch.equal(kept[n], start[n]) for n in start)
