"""`Monitor`: for training loops without Lightning."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer
from typing_extensions import Unpack

from ..._checks import check_positive_int, describe, type_error, value_error
from ..._functional import unwrap
from ..measure._observation import Observation
from ..measure._verdict import Verdict
from ..probe._probe import ProbeLike
from ..stability._stability import Training
from ._results import Results
from ._session import Session
from ._settings import SessionOptions
from ._sharing import Sharing

Log: TypeAlias = Callable[[dict[str, float], int], None]
"""Takes the metrics of a measurement by their logged names, and the step."""


class Monitor(Results):
    r"""Watches the Neural Tangent Kernel in a training loop of your own.

    What `torch_ntk.callbacks.NTKMonitor` is for a Lightning Trainer: the same metrics on a fixed
    probe, the same schedule, and training is bitwise what it is without it. Call `step` at the top
    of the loop, before the optimizer's step, and `finish` after it:

        monitor = Monitor((x, y), every_n_steps=100)
        for batch in loader:
            monitor.step(model, optimizer)
            ...  # forward, backward, optimizer.step()
        print(monitor.finish(model, optimizer))
        figure, axes = monitor.plot()

    The first call keeps θ_0, f_0 and Θ_0. Under `torch.distributed` the first process
    measures, and the others take a part of kernels that take long; call it in all of them.

    Args:
        probe: The samples, in one of the forms that `NTKMonitor` takes (a batch of the training),
            or their number, to be taken from the `batch` of the first call; None takes up to 64.
        folder: Where TensorBoard finds the page of this training, as its tab "NTK": `ntk.json` is
            written there at the 1st, 2nd, 4th, 8th, … measurement, as far as a fifth of
            `max_overhead` allows, and at the end. Pass the `log_dir` of a `SummaryWriter`.
        log: Called after each measurement as `log(scalars, step)`, for a logger of your own:
            `log=lambda scalars, step: wandb.log(scalars, step=step)`.
        total_steps: Optimizer steps of the whole training, if they are known. A probe that you do
            not choose is then made so short that the first and the last measurement fit in
            `max_overhead`; trainers tell it by themselves.
        **options: `validation_probe` (samples), `every_n_steps`, `at_steps`, `anchor_at`,
            `schedule`, `output`, `kernel`, `metrics`, `max_overhead`, `on_error`, `prefix`,
            `input_fn`, `forward_fn`, `params`, `batch_size`, `max_memory`, `dtype`, `method`,
            `loss`, `recalibrate` and `coupled`, as in `NTKMonitor`.

    Raises:
        TypeError, ValueError: An argument is wrong.

    Example:
        >>> import torch
        >>> from torch_ntk.monitor import Monitor
        >>> _ = torch.manual_seed(0)
        >>> x, y = torch.randn(8, 3), torch.arange(8) % 2
        >>> model = torch.nn.Linear(3, 2)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> monitor = Monitor((x, y), every_n_steps=1, metrics=("drift", "param_drift"))
        >>> for _ in range(2):
        ...     _ = monitor.step(model, optimizer)
        ...     optimizer.zero_grad()
        ...     torch.nn.functional.cross_entropy(model(x), y).backward()
        ...     optimizer.step()
        >>> _ = monitor.finish(model, optimizer)
        >>> monitor.history["step"], monitor.history["ntk/drift"]  # linear in its parameters
        ([0.0, 1.0, 2.0], [0.0, 0.0, 0.0])
    """

    def __init__(
        self,
        probe: ProbeLike | None = None,
        *,
        folder: str | os.PathLike[str] | None = None,
        log: Log | None = None,
        total_steps: int | None = None,
        **options: Unpack[SessionOptions],
    ) -> None:
        _check_log(log)
        if folder is not None and not isinstance(folder, (str, os.PathLike)):
            raise type_error("folder", "None or the path of a folder", describe(folder))
        self._session = Session(probe, owner=type(self).__name__, **options)
        if self._session.needs_validation_batch:
            raise value_error(
                "validation_probe",
                "samples where no Trainer brings validation batches",
                "a number of them",
                "Pass validation_probe=(x, y) or (dataset, indices).",
            )
        if total_steps is not None:
            check_positive_int("total_steps", total_steps, "None if it is not known.")
        self._log, self._total_steps = log, total_steps
        self._page_folder = None if folder is None else Path(folder)
        self._reset()

    def _reset(self) -> None:
        """Forget everything: the next call is the first one."""
        self._session.reset()
        self._session.length = self._total_steps
        self._calls = 0
        self._steps = 0
        self._is_passed = False  # whether the last call was told its step
        self._versions: tuple[int, ...] = ()  # of the parameters, at the last call
        self._show_steps = False  # whether they were seen to change from one step to the next

    # ------------------------------------------------------------------ measuring
    def step(
        self,
        model: nn.Module,
        optimizer: Optimizer | Iterable[Optimizer] | None = None,
        batch: Any = None,
        *,
        step: int | None = None,
    ) -> Observation | None:
        """Measure if it is due. Call it once for each optimizer step, before that step is taken.

        Args:
            model: The network, also compiled, or wrapped by DDP or Fabric.
            optimizer: Whose steps the network takes, for the metric `stability` and for
                `kernel="optimizer"`.
            batch: The training batch that comes next; needed where `probe` is a number.
            step: Optimizer steps taken so far; None counts the calls. Pass it where batches are
                accumulated: a step is measured once, however often it is passed. With it `step`
                may also be called after the optimizer's step.

        Returns:
            What was measured, or None.

        Raises:
            TypeError, ValueError: `probe` is a number and there is no batch; or the network cannot
                be measured and `on_error` is `"raise"`.
        """
        if step is not None and (isinstance(step, bool) or not isinstance(step, int) or step < 0):
            raise value_error("step", "an integer of at least 0", describe(step))
        now = self._calls if step is None else step
        batches = self._calls
        versions = _versions(model)
        if step is not None and self._is_passed and step > self._steps:
            self._show_steps = versions != self._versions
        self._calls += 1
        self._steps = now if step is not None else self._calls
        self._is_passed, self._versions = step is not None, versions
        if self._session.record.reference is None and batch is None and self._session.needs_batch:
            raise value_error(
                "batch",
                "given at the first step where `probe` is a number of samples",
                describe(None),
                "Pass monitor.step(model, optimizer, batch), or Monitor(probe=(x, y)).",
            )
        self._start()
        return self._measure(model, optimizer, batch, now, batches)

    def finish(
        self,
        model: nn.Module,
        optimizer: Optimizer | Iterable[Optimizer] | None = None,
        *,
        step: int | None = None,
    ) -> Verdict:
        """Measure the last step if that has not been done, and judge the training.

        Args:
            model: As in `step`.
            optimizer: As in `step`.
            step: Optimizer steps taken in all. None is the number of calls of `step`; where these
                were told their steps, it is one more than the last of them if the parameters have
                been written to since, and that one if not, as after batches that were accumulated
                for a step that never came.

        Raises:
            ValueError: `step` is no number of steps, or smaller than one that came before.
        """
        end = self._end(model) if step is None else step
        if isinstance(end, bool) or not isinstance(end, int) or end < self._least:
            raise value_error("step", f"an integer of at least {self._least}", describe(step))
        if self._session.record.reference is not None:
            self._measure(model, optimizer, None, end, self._calls, last=True)
        self._session.release()
        return self.verdict

    @property
    def _least(self) -> int:
        """Optimizer steps that have been taken for certain."""
        return self._steps if self._is_passed else self._session.last_step or 0

    def _end(self, model: nn.Module) -> int:
        """Optimizer steps that have been taken, also after the last call of `step`.

        PyTorch counts the writes to a tensor, which costs no comparison of values. Optimizers that
        write to `p.data` are not counted: where the counts did not change before, that they stand
        still says nothing.
        """
        if not self._is_passed:
            return self._steps
        stands_still = self._show_steps and _versions(model) == self._versions
        return self._steps if stands_still else self._steps + 1

    def _start(self) -> None:
        """Begin to count the time, and look for other processes; in each of them."""
        if not self._session.schedule.is_running:
            self._session.schedule.start()
            self._session.sharing = Sharing.of_this_process()

    def _measure(
        self,
        model: nn.Module,
        optimizer: Optimizer | Iterable[Optimizer] | None,
        batch: Any,
        step: int,
        batches: int,
        last: bool = False,
    ) -> Observation | None:
        session = self._session
        if _rank() != 0:
            session.assist(lambda: unwrap(model), step, batch)
            return None
        due = step != session.last_step if last else session.is_due(step)
        network = unwrap(model)
        seen = None
        training = Training(network, _optimizers(optimizer))
        if due:
            with session.attempt(step, network):
                if session.record.reference is None:
                    session.begin(network, batch, step, training)
                seen = session.measure(network, step, training, batches=batches, batch=batch)
                if not last and session.draws():
                    self._write_document()
        if last:
            self._write_document()
        session.remember(network, step, training.optimizers)
        if seen is not None and self._log is not None:
            self._log({session.tag(n): v for n, v in seen.scalars.items()}, step)
        return seen

    def _run_folder(self) -> Path | None:
        """The folder of TensorBoard's run, if there is one."""
        return self._page_folder

    def _write_document(self) -> None:
        """Write what the page shows; the time counts as that of figures."""
        folder = self._run_folder()
        if folder is None or not self._session.record.history:
            return
        from ...tensorboard_plugin import document_name, write_document  # which loads TensorBoard

        names = self._session.tag("verdict").removesuffix("verdict")
        with self._session.drawing(), self._session.attempt_to_write():
            write_document(folder / document_name(names), self.document(folder.name))

    # ------------------------------------------------------------------ state
    def state_dict(self) -> dict[str, Any]:
        """Reference (θ_0, probe, Θ_0, f_0), history and counts: tensors and plain values only.

        It is about the size of the model and loads with `torch.load(..., weights_only=True)`.
        """
        counts = {"calls": self._calls, "steps": self._steps, "is_passed": self._is_passed}
        return {**self._session.state_dict(), **counts}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state, with the reference of the first run.

        Raises:
            ValueError: It cannot be used; nothing changes then.
        """
        self._session.load_state_dict(state)
        self._calls, self._steps = int(state["calls"]), int(state["steps"])
        self._is_passed = bool(state.get("is_passed", False))  # earlier releases did not say
        self._versions, self._show_steps = (), False


def _check_log(log: object) -> None:
    if log is not None and not callable(log):
        expected = "a function of metrics and a step"
        remedy = "Pass log=lambda scalars, step: ..."
        raise type_error("log", expected, describe(log), remedy)


def _versions(model: nn.Module) -> tuple[int, ...]:
    """How often each parameter has been written to, where PyTorch counts it."""
    counted = (p for p in model.parameters() if not is_lazy(p) and not p.is_inference())
    return tuple(p._version for p in counted)


def _optimizers(optimizer: Optimizer | Iterable[Optimizer] | None) -> Sequence[Optimizer]:
    if optimizer is None:
        return ()
    return (optimizer,) if isinstance(optimizer, Optimizer) else tuple(optimizer)


def _rank() -> int:
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank()
    return 0
