"""The kernel of a session, if several processes compute it together."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from ..._functional import unwrap
from ..measure._evaluation import KernelOutput
from ..measure._moment import Total
from ..measure._record import Record
from ..measure._statistics import statistics_of
from ..probe._probe import Probe
from ..reference._reference import Reference
from ._schedule import Schedule
from ._settings import Settings
from ._sharing import Sharing, fingerprint, share_of

_WORTH_SHARING = 0.1
"""Seconds that a measurement takes, from which on several processes share it."""

Ready = Callable[[Reference], AbstractContextManager[tuple[nn.Module, Reference]]]
"""A context in which the network of this process can be measured on a reference's samples."""


class SharedKernel:
    """What a session does for a kernel of which other processes compute parts.

    The first process decides one step ahead whether it asks the others, and adds up their shares.
    The others compute a share if they are asked for it.
    """

    def __init__(self, record: Record, settings: Settings, sharing: Sharing) -> None:
        self.sharing = sharing
        self._record, self._settings = record, settings
        self._kept: tuple[int, Reference, KernelOutput] | None = None

    @staticmethod
    def of_this_process(record: Record, settings: Settings) -> SharedKernel | None:
        """The one for the default process group; None without a group of several processes."""
        measured = (settings.prefix, settings.output, settings.kernel, settings.method)
        name = "/".join(map(str, (*measured, settings.dtype, *record.metrics)))
        sharing = Sharing.of_this_process(name)
        return None if sharing is None else SharedKernel(record, settings, sharing)

    # ------------------------------------------------------------------ the first process
    def is_due(self, step: int, due: bool, last: int | None, schedule: Schedule) -> bool:
        """Whether to measure at `step`; asks for shares at the next step if it will be due.

        `due` is what the schedule says of this step, and `last` the step of the last attempt.
        """
        if not self._is_worth_it:
            return due
        # Others have to know one step ahead: where points follow from the time, at the next step.
        has_budget, is_asked = schedule.has_budget, self.sharing.has_asked(step)
        if not (has_budget and is_asked) and not self.sharing.has_asked(step + 1):
            last = last if has_budget or not (due or is_asked) else step
            if schedule.due(step + 1, last):
                count, reference = self._record.evaluation.shares, self._record.reference
                self.sharing.ask(step + 1, count, reference, self._question)
        is_expected = has_budget and self.sharing.has_asked(step + 1)
        return is_asked or (due and not is_expected)

    @property
    def _is_worth_it(self) -> bool:
        rows = self._record.history
        is_shareable = self._record.is_shareable and not self._settings.coupled
        return is_shareable and bool(rows) and rows[-1]["seconds"] >= _WORTH_SHARING

    def _question(self) -> dict[str, Any]:
        """What another process needs in order to compute its part of the kernel."""
        reference = self._record.reference
        assert reference is not None
        fewer = replace(
            reference, params={}, buffers={}, outputs=None, kernel=None, parts=None, infinite=None
        )
        return {**fewer.state_dict(), "output": self._record.evaluation.output}

    def total(self, module: nn.Module, probe: Probe, step: int) -> Total | None:
        """The function that adds up the shares of all processes; None if none were asked for."""
        if not self.sharing.has_asked(step):
            return None

        def total(count: int, take: Callable[[slice], Tensor]) -> Tensor:
            reference = self._record.reference
            assert reference is not None
            own = self._record.evaluation.sums_of_outputs(module, reference.trained, probe)
            found = self._fingerprint(module, probe)
            return self.sharing.total(step, count, take, found, own)

        return total

    # ------------------------------------------------------------------ the others
    def assist(self, step: int, ready: Ready) -> None:
        """Compute a share of the kernel for the first process, if it has asked for one.

        If anything goes wrong here, the first process does the work instead. It then raises the
        error itself, if the network is the cause.
        """
        sharing = self.sharing
        if sharing.rank == 0 or not sharing.is_asked(step):
            return
        try:
            version, place, places = sharing.question(step)
            if self._kept is None or self._kept[0] != version:
                state = sharing.reference(version)
                self._kept = version, Reference.from_state_dict(state), state["output"]
            _, reference, output = self._kept
            with ready(reference) as (module, reference):
                evaluation = self._record.evaluation_of(reference, output)
                part = share_of(evaluation.shares, place, places)
                names, probe = reference.trained, reference.probe
                share = evaluation.kernel_of_some(unwrap(module), names, probe, part)
                seen = evaluation.sums_of_outputs(module, names, probe)
            sharing.answer(step, share, self._fingerprint(module, probe), seen)
        except Exception as error:  # see above
            sharing.decline(step, error)

    def release(self) -> None:
        """Keep no samples alive."""
        self._kept = None

    def _fingerprint(self, module: nn.Module, probe: Probe) -> str:
        """The fingerprint of everything that determines a kernel, which processes compare.

        Running statistics are left out if they are those of the probe, which each process computes
        itself.
        """
        own = statistics_of(module) if self._settings.recalibrate else {}
        buffers = ((n, b) for n, b in module.named_buffers() if n not in own)
        samples = ((str(k), t) for k, t in enumerate(probe.batch.tensors))
        return fingerprint((*module.named_parameters(), *buffers, *samples))
