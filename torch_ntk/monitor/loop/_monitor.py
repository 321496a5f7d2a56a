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

Log: TypeAlias = Callable[[dict[str, float], int], None]
"""A function of the metrics of a measurement by their logged names, and of the step."""


class Monitor(Results):
    r"""Watches the Neural Tangent Kernel in a training loop of your own.

    It corresponds to `torch_ntk.callbacks.NTKMonitor` for a Lightning Trainer: it has the same
    metrics on a fixed probe and the same schedule, and training is bitwise equal to training
    without it. Call `step` at the beginning of the body of the loop, before the optimizer's step,
    and `finish` after the loop:

        monitor = Monitor((x, y), every_n_steps=100)
        for batch in loader:
            monitor.step(model, optimizer)
            ...  # forward, backward, optimizer.step()
        print(monitor.finish(model, optimizer))
        figure, axes = monitor.plot()

    The first call stores θ_0, f_0 and Θ_0. Under `torch.distributed`, call the methods in all
    processes. The first process measures, and the others compute a part of kernels that take long.

    Args:
        probe: The samples in one of the forms that `NTKMonitor` accepts, such as a training batch;
            or their number, to be taken from the `batch` of the first call. None takes up to 64.
        folder: The folder of a TensorBoard run, such as the `log_dir` of a `SummaryWriter`. The
            file `ntk.json` is written there, with which TensorBoard shows the page of this training
            in its tab "NTK". It is written at the 1st, 2nd, 4th, 8th, … measurement, as far as a
            fifth of `max_overhead` allows, and at the end.
        log: A function that is called after each measurement as `log(scalars, step)`, for a logger
            of your own: `log=lambda scalars, step: wandb.log(scalars, step=step)`.
        total_steps: The number of optimizer steps of the whole training, if it is known. If you do
            not choose the probe, it is then made so small that the first and the last measurement
            fit in `max_overhead`. (A Lightning Trainer passes this number to its callbacks.)
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
        """Forget everything, so that the next call is the first one."""
        self._session.reset()
        self._session.schedule.length = self._total_steps
        self._calls = 0
        self._steps = 0
        self._is_passed = False  # whether the last call had the argument `step`
        self._versions: tuple[int, ...] = ()  # the versions of the parameters at the last call
        self._show_steps = False  # whether an optimizer step was seen to change the versions

    # ------------------------------------------------------------------ measuring
    def step(
        self,
        model: nn.Module,
        optimizer: Optimizer | Iterable[Optimizer] | None = None,
        batch: Any = None,
        *,
        step: int | None = None,
    ) -> Observation | None:
        """Measure if it is due. Call this once for each optimizer step, before that step.

        Args:
            model: The network, which may be compiled, or wrapped by DDP or Fabric.
            optimizer: The optimizer of the network, or several. It is needed for the metrics
                `stability` and `critical_sharpness` and for `kernel="optimizer"`.
            batch: The next training batch. It is needed if `probe` is a number.
            step: The number of optimizer steps so far; None counts the calls. Pass it if gradients
                are accumulated over batches. Each step is measured once, even if it is passed
                several times. If you pass it, you may also call `step` after the optimizer's step.

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
        lacks_batch = self._session.record.reference is None and batch is None and _rank() == 0
        if lacks_batch and self._session.needs_batch:
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
        """Measure the last step if that has not been done, and return the verdict.

        Args:
            model: The network, as in `step`.
            optimizer: The optimizer, as in `step`.
            step: The number of optimizer steps in all. None is the number of calls of `step`. If
                the argument `step` was passed in these calls, None is its last value, plus one if
                the parameters have been written to since then. They have not if the last batches
                were accumulated without another optimizer step.

        Raises:
            ValueError: `step` is not an integer, or is smaller than in an earlier call.
        """
        end = self._end(model) if step is None else step
        least = self._steps if self._is_passed else self._session.last_step or 0
        if isinstance(end, bool) or not isinstance(end, int) or end < least:
            raise value_error("step", f"an integer of at least {least}", describe(step))
        if self._session.record.reference is not None or _rank() != 0:
            self._measure(model, optimizer, None, end, self._calls, last=True)
        self._session.release()
        return self.verdict

    def _end(self, model: nn.Module) -> int:
        """The number of optimizer steps, including those after the last call of `step`.

        PyTorch counts the writes to a tensor as its version, so that values need not be compared.
        Writes to `p.data` are not counted. Therefore equal versions show that there was no step
        only if earlier steps have changed the versions.
        """
        if not self._is_passed:
            return self._steps
        stands_still = self._show_steps and _versions(model) == self._versions
        return self._steps if stands_still else self._steps + 1

    def _start(self) -> None:
        """Start counting the running time, and find the other processes."""
        if not self._session.schedule.is_running:
            self._session.schedule.start()
            self._session.look_for_others()

    def _measure(
        self,
        model: nn.Module,
        optimizer: Optimizer | Iterable[Optimizer] | None,
        batch: Any,
        step: int,
        batches: int,
        last: bool = False,
    ) -> Observation | None:
        """Measure and log, if it is due.

        After `batches` training batches, `batch` is the next one, if it is known. The last
        measurement is due unless its step was measured.
        """
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
        """The folder of the TensorBoard run, or None. Subclasses may override it."""
        return self._page_folder

    def _write_document(self) -> None:
        """Write the document of the page. Its time is counted as that of figures."""
        folder = self._run_folder()
        if folder is None or not self._session.record.history:
            return
        # Imported here, since it imports TensorBoard.
        from ...tensorboard_plugin import document_name, write_document

        names = self._session.tag("verdict").removesuffix("verdict")
        text = f"{type(self).__name__} cannot write its page: {{}}"
        with self._session.drawing(), self._session.forgiving(OSError, text, "file"):
            write_document(folder / document_name(names), self.document(folder.name))

    # ------------------------------------------------------------------ state
    def state_dict(self) -> dict[str, Any]:
        """The state: the reference (θ_0, probe, Θ_0, f_0), the history, and the numbers of calls.

        It consists of tensors and plain values, has about the size of the model, and can be loaded
        with `torch.load(..., weights_only=True)`.
        """
        counts = {"calls": self._calls, "steps": self._steps, "is_passed": self._is_passed}
        return {**self._session.state_dict(), **counts}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state, with the reference of the first run.

        Raises:
            ValueError: The state cannot be used. Nothing changes then.
        """
        for part in ("observer", "last_step", "calls", "steps"):
            if not isinstance(state, Mapping) or part not in state:
                raise value_error(
                    "state",
                    "what state_dict() of a Monitor has returned",
                    f"{describe(state)} without {part!r}",
                    "Load such a state, or begin with a new Monitor.",
                )
        self._session.load_state_dict(state)
        self._calls, self._steps = int(state["calls"]), int(state["steps"])
        self._is_passed = bool(state.get("is_passed", False))  # earlier releases did not save it
        self._versions, self._show_steps = (), False


def _check_log(log: object) -> None:
    if log is not None and not callable(log):
        expected = "a function of metrics and a step"
        remedy = "Pass log=lambda scalars, step: ..."
        raise type_error("log", expected, describe(log), remedy)


def _versions(model: nn.Module) -> tuple[int, ...]:
    """The number of writes to each parameter for which PyTorch counts them."""
    counted = (p for p in model.parameters() if not is_lazy(p) and not p.is_inference())
    return tuple(p._version for p in counted)


def _optimizers(optimizer: Optimizer | Iterable[Optimizer] | None) -> Sequence[Optimizer]:
    """The user's argument as a sequence."""
    if optimizer is None:
        return ()
    return (optimizer,) if isinstance(optimizer, Optimizer) else tuple(optimizer)


def _rank() -> int:
    """The rank of this process in `torch.distributed`, or 0 without it."""
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank()
    return 0
