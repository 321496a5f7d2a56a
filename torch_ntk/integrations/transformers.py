"""The monitor for the `Trainer` of Hugging Face's transformers.

`NTKMonitorCallback` does for it what `torch_ntk.callbacks.NTKMonitor` does for Lightning's Trainer.
The library is an optional dependency, `pip install torch_ntk[transformers]`, and only this module
imports it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any
from urllib.parse import quote

import torch
from torch import nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle
from typing_extensions import Unpack

from .._checks import describe, type_error, value_error
from .._functional import unwrap
from ..monitor import Monitor, ProbeLike, load_state, save_state
from ..monitor.loop import SessionOptions

try:
    from transformers import (
        Trainer,
        TrainerCallback,
        TrainerControl,
        TrainerState,
        TrainingArguments,
    )
    from transformers.integrations.integration_utils import TensorBoardCallback
except ImportError as error:
    raise ImportError(
        "torch_ntk.integrations.transformers needs transformers and accelerate, which could not be "
        f"imported ({error}). Install them with `pip install torch_ntk[transformers]`."
    ) from error

__all__ = ["NTKMonitorCallback"]

_ITEMS = "num_items_in_batch"  # a keyword argument that the Trainer adds to each forward
_SUMMARY = "train_runtime"  # a key of the Trainer's log after its last step


class NTKMonitorCallback(Monitor, TrainerCallback):
    r"""Measures the Neural Tangent Kernel during the training of a `transformers.Trainer`.

        monitor = NTKMonitorCallback()
        trainer = Trainer(model, args, train_dataset=dataset, callbacks=[monitor])
        trainer.train()
        print(monitor.verdict)

    It measures the same as `torch_ntk.monitor.Monitor`, before the first batch of an optimizer
    step, and logs through `Trainer.log` at the step `state.global_step`. The values are in
    `trainer.state.log_history`, and every reporter of `report_to` shows them with the prefix that
    it gives to all values of a training: `train/` in TensorBoard and Weights & Biases. The verdict
    is logged as a text at the end. The training is bitwise the same as without the callback.

    By default the probe is taken from the first batch that is passed to the model. The last
    measurement follows the last step, before `load_best_model_at_end` replaces the weights.

    The state goes into each checkpoint as a safetensors file, about as large as the model because
    of θ_0; resumed from there, the monitor keeps its reference and its curves. Where that
    folder is not `output_dir/checkpoint-STEP`, pass `resume_from`. The first process measures and
    writes; the others take a part of kernels that take long, without a collective operation.

    Args:
        probe: As in `torch_ntk.callbacks.NTKMonitor`: the number of samples to take from the first
            batch, where None is up to 64; or the samples, such as a batch of the training.
        resume_from: The folder of the checkpoint, if it is elsewhere.
        folder: Where `ntk.json` is written for TensorBoard's tab "NTK"; None is the folder to which
            the Trainer writes with `report_to="tensorboard"`.
        **options: As in `torch_ntk.monitor.Monitor`.

    Raises:
        TypeError, ValueError: An argument is wrong.

    Example:
        >>> from transformers import Trainer
        >>> trainer = Trainer(model, callbacks=[NTKMonitorCallback()])  # doctest: +SKIP
    """

    def __init__(
        self,
        probe: ProbeLike | None = None,
        *,
        resume_from: str | Path | None = None,
        folder: str | Path | None = None,
        **options: Unpack[SessionOptions],
    ) -> None:
        super().__init__(probe, folder=folder, log=self._report, **options)
        if resume_from is not None and not isinstance(resume_from, (str, Path)):
            raise type_error("resume_from", "the folder of a checkpoint", describe(resume_from))
        self.resume_from = resume_from
        self._waiting: RemovableHandle | None = None  # the hook that waits for the next batch

    # ------------------------------------------------------------------ hooks
    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Begin a new record, or continue from the checkpoint that the Trainer has loaded."""
        if args.fsdp or args.deepspeed:
            raise value_error(
                "args",
                f"without fsdp and deepspeed while {type(self).__name__} is used",
                "with fsdp" if args.fsdp else "with deepspeed",
                "No process holds the whole network there. Train with DistributedDataParallel, or "
                "remove the callback from this run.",
            )
        self._stop_waiting()
        self._reset()
        if not state.is_world_process_zero:
            return
        length = state.max_steps if state.max_steps > 0 else None
        self._session.schedule.length = length
        if state.global_step == 0:
            return
        folders = [self.resume_from, args.resume_from_checkpoint, self._folder(args, state)]
        files = [Path(f) / self._file for f in folders if isinstance(f, (str, Path))]
        found = next((file for file in files if file.is_file()), None)
        if found is not None:
            self.load_state_dict(load_state(found))
            return
        self._session.warn_once(
            "resume",
            f"{type(self).__name__} begins a new record at step {state.global_step}: there is no "
            f"{self._file} in {files[-1].parent}. Pass resume_from='FOLDER', that of the "
            "checkpoint.",
        )

    def on_step_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        optimizer: Optimizer | None = None,
        **kwargs: Any,
    ) -> None:
        """Measure before the first batch of an optimizer step, and count its batches."""
        step, session = state.global_step, self._session
        if model is None:
            return
        if not state.is_world_process_zero:
            self._start()
            session.assist(lambda: unwrap(model), step, None)
            return
        if self._waiting is not None:
            self._stop_waiting()
            with session.attempt(step, model):
                raise value_error(
                    "probe",
                    "given as samples where the Trainer does not call the model itself",
                    "a number of them, and a step in which no batch was passed to model(...)",
                    f"Pass {type(self).__name__}(probe=batch), with a batch of the training.",
                )
        if session.record.reference is None and session.needs_batch:
            take = lambda batch: self.step(model, optimizer, batch, step=step)  # noqa: E731
            self._waiting = model.register_forward_pre_hook(
                self._hook(model, take), prepend=True, with_kwargs=True
            )
        else:
            self.step(model, optimizer, step=step)

    on_substep_end = on_step_begin  # every batch after the first of an optimizer step

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Any] | None = None,
        model: nn.Module | None = None,
        optimizer: Optimizer | None = None,
        **kwargs: Any,
    ) -> None:
        """Measure the last step when the Trainer logs its summary.

        This is the last event before it loads the best model and before reporters close.
        """
        if model is None or _SUMMARY not in (logs or {}):
            return
        if not state.is_world_process_zero:
            self._session.assist(lambda: unwrap(model), state.global_step, None)
            return
        self._stop_waiting()
        verdict = self.finish(model, optimizer, step=state.global_step)
        trainer = _calling_trainer()
        if trainer is not None:
            trainer.log({self._session.tag("verdict"): verdict.text})  # type: ignore[dict-item]

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Save the state in the folder of the checkpoint, if a training can be resumed from it.

        Raises:
            OSError: The file cannot be written, and `on_error` is "raise".
        """
        folder = self._folder(args, state)
        # The folders of a hyperparameter search are known to the Trainer only.
        is_resumed_from = not (args.save_only_model or state.is_hyper_param_search)
        if not state.is_world_process_zero or not is_resumed_from:
            return
        with self._session.forgiving(OSError, "The monitor's state is not saved: {}", "file"):
            if not folder.is_dir():
                raise FileNotFoundError(f"there is no folder {folder}")
            save_state(self.state_dict(), folder / self._file)

    # ------------------------------------------------------------------ measuring
    def _hook(self, model: nn.Module, take: Callable[[Any], object]) -> Callable[..., None]:
        """A hook that passes the next batch to `take`, once, before the model's forward."""

        def hook(module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
            if self._waiting is None or module is not model:  # in a replica of `DataParallel`
                return
            if args and named:
                return  # such a call cannot be repeated from a single batch
            self._stop_waiting()
            batch = {key: value for key, value in named.items() if key != _ITEMS}
            take(batch or (args[0] if len(args) == 1 else args))

        untraced: Callable[..., None] = torch.compiler.disable(hook)  # type: ignore[no-untyped-call]
        return untraced

    def _stop_waiting(self) -> None:
        if self._waiting is not None:
            self._waiting.remove()
        self._waiting = None

    def _run_folder(self) -> Path | None:
        """The `folder` of the caller, or the folder to which the Trainer writes for TensorBoard."""
        trainer = None if self._page_folder is not None else _calling_trainer()
        if trainer is None:
            return self._page_folder
        boards = [
            c for c in trainer.callback_handler.callbacks if isinstance(c, TensorBoardCallback)
        ]
        writer = next((c.tb_writer for c in boards if c.tb_writer is not None), None)
        return None if writer is None else Path(str(writer.log_dir))

    def _report(self, scalars: dict[str, float], step: int) -> None:
        trainer = _calling_trainer()
        if trainer is not None:
            trainer.log(dict(scalars))

    # ------------------------------------------------------------------ files
    @property
    def _file(self) -> str:
        """The name of the state's file; the prefix distinguishes several monitors."""
        return f"ntk_monitor-{quote(self._session.settings.prefix, safe='')}.safetensors"

    @staticmethod
    def _folder(args: TrainingArguments, state: TrainerState) -> Path:
        """The folder of the checkpoint at this step."""
        return Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"


def _calling_trainer() -> Trainer | None:
    """The Trainer from whose event this function is called; None in another loop.

    Callbacks get everything except for the Trainer itself, which alone can log to the reporters.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        caller = frame.f_locals.get("self")
        if isinstance(caller, Trainer):
            return caller
        frame = frame.f_back
    return None
