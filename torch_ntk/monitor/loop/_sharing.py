"""The work of a kernel, divided among the processes of a data-parallel training.

After a step every process has the same parameters, so that each can take the kernel of some of the
outputs; the first process adds these up. They talk through the store by which `torch.distributed`
has connected them, and never wait for each other in a collective operation: a process that does
not answer in time, that fails, or whose network is not bit for bit that of the first process,
leaves its share to that one.

The first process asks one step ahead. What it writes before step s, every other process finds
before step s + 1, because the gradients of step s are averaged in between.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._C._distributed_c10d import PrefixStore

_generations: Counter[str] = Counter()  # by name, the same in processes that make them in turn

_PAUSE = 0.002  # seconds between two looks for an answer
_LEAST_PATIENCE = 2.0  # seconds that the first process waits for a share, beside those of its own
_GIVEN_UP = 2  # shares that have not come, after which no more are asked for
_FAILED = b"failed"
_ROUNDED = 1e-4  # of the largest output, by which those of two processes may differ
_PIECE = 2**20  # numbers whose bits are added up at once
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by their bytes


class Sharing:
    """What one process knows of the others, and sends to them.

    Args:
        store: Connects the processes.
        rank: Of this process; the first one has 0.
        size: How many processes there are.
        name: Tells the monitors of these processes apart.

    Attributes:
        why_alone: Why the last share that has not come has not; "" if all have.
    """

    def __init__(self, store: Any, rank: int, size: int, name: str) -> None:
        self.rank, self.size = rank, size
        self._store: Any = PrefixStore(f"torch_ntk/{name}", store)
        self._published: object = None
        self._version = 0
        self._missed = 0
        self.why_alone = ""
        self._asked: dict[int, list[int]] = {}  # of steps that were not measured yet, the ranks
        self._answered: int | None = None
        if rank:
            self._store.set(f"here/{rank}", "1")

    @staticmethod
    def of_this_process(name: str) -> Sharing | None:
        """The one for the default process group; None without a group of several processes.

        Processes recognize the same monitor by the name of it and of its settings.
        """
        distributed = torch.distributed
        count = _generations[name]
        _generations[name] += 1
        if not (distributed.is_available() and distributed.is_initialized()):
            return None
        rank, size = distributed.get_rank(), distributed.get_world_size()
        find = getattr(distributed.distributed_c10d, "_get_default_store", None)
        if size < 2 or find is None:
            return None
        return Sharing(find(), rank, size, f"{name}/{count}")

    # ------------------------------------------------------------------ the first process
    def has_asked(self, step: int) -> bool:
        """Whether shares were asked for at this step."""
        return step in self._asked

    def ask(
        self, step: int, count: int, reference: object, state: Callable[[], Mapping[str, Any]]
    ) -> None:
        """Ask the other processes for their shares of the kernel at a step to come.

        `count` is the number of outputs, or of directions of them. The state of the reference,
        tensors and plain values, is sent again if it is another one than before.
        """
        if self.has_given_up:
            return
        try:
            others = [r for r in range(1, self.size) if self._store.check([f"here/{r}"])]
            ranks = [0, *others[: count - 1]]
            if len(ranks) == 1:
                return
            if reference is not self._published:
                self._published, self._version = reference, self._version + 1
                kept = io.BytesIO()
                torch.save(state(), kept)
                self._store.set(f"reference/{self._version}", kept.getvalue())
            self._store.set(f"ask/{step}", ",".join(map(str, (self._version, *ranks))))
            self._asked[step] = ranks
        except RuntimeError:  # of a store that is gone, without which each measures alone
            self._missed = _GIVEN_UP

    def total(
        self,
        step: int,
        count: int,
        take: Callable[[slice], Tensor],
        fingerprint: str,
        seen: Tensor,
    ) -> Tensor:
        """The kernel of all outputs, or directions, at the step that was asked for.

        `take` computes the part of some of them. A share is not used if it is of a network or
        samples of another fingerprint, or of other outputs, of which `seen` has a number for each
        sample.
        """
        ranks = self._asked.pop(step)
        parts = _parts(count, len(ranks))
        started = time.perf_counter()
        kernel = take(parts[0])
        patience = _LEAST_PATIENCE + time.perf_counter() - started
        until = time.perf_counter() + patience
        for rank, part in zip(ranks[1:], parts[1:], strict=True):
            found = self._answer_of(rank, step, fingerprint, until - time.perf_counter())
            if not isinstance(found, str) and not _is_close(found[: len(seen)], seen):
                found = "has other outputs on the samples"
            if isinstance(found, str):
                self._missed += 1
                self.why_alone = f"process {rank} {found}"
                kernel = kernel + take(part)
            else:
                shares = torch.from_numpy(found[len(seen) :].copy()).view(kernel.shape)
                kernel = kernel + shares.to(kernel)
        with contextlib.suppress(RuntimeError):  # of a store that is gone
            self._store.delete_key(f"ask/{step}")
        return kernel

    def _answer_of(
        self, rank: int, step: int, fingerprint: str, seconds: float
    ) -> np.ndarray[Any, Any] | str:
        """The numbers that a process has sent, or what it did instead, in words."""
        key, until = f"answer/{step}/{rank}", time.perf_counter() + seconds
        try:
            # A store that waits itself prints when time is over.
            while not self._store.check([key]):
                if time.perf_counter() > until:
                    return "did not answer in time"
                time.sleep(_PAUSE)
            answer = self._store.get(key)
            self._store.delete_key(key)
        except RuntimeError as error:  # of a store that is gone
            return f"cannot be reached: {error}"
        own, _, content = answer.partition(b" ")
        if own == _FAILED:
            return f"failed: {content.decode()}"
        if own != fingerprint.encode():
            return "has other parameters, buffers or samples"
        return np.frombuffer(content, dtype=np.float64)

    @property
    def has_given_up(self) -> bool:
        """Whether no more shares are asked for, because others did not come; see `why_alone`."""
        return self._missed >= _GIVEN_UP

    # ------------------------------------------------------------------ the others
    def is_asked(self, step: int) -> bool:
        """Whether a share is wanted from this process, for the first time at this step."""
        if step == self._answered:
            return False
        try:
            found: bool = self._store.check([f"ask/{step}"])
        except RuntimeError:
            return False
        self._answered = step if found else self._answered
        return found

    def question(self, step: int) -> tuple[int, int, int]:
        """The version of the reference, and which share of how many is meant."""
        version, *ranks = map(int, self._store.get(f"ask/{step}").decode().split(","))
        return version, ranks.index(self.rank), len(ranks)

    def reference(self, version: int) -> Any:
        """The state that `ask` has sent: the samples and the names of the parameters."""
        return torch.load(io.BytesIO(self._store.get(f"reference/{version}")), weights_only=True)

    def answer(self, step: int, share: Tensor, fingerprint: str, seen: Tensor) -> None:
        """Send the share of this process, with what `total` compares."""
        numbers = torch.cat([_plain(seen), _plain(share)]).numpy().tobytes()
        self._store.set(f"answer/{step}/{self.rank}", fingerprint.encode() + b" " + numbers)

    def decline(self, step: int, error: Exception) -> None:
        """Leave the share of this process to the first one, because of an error."""
        told = f"{type(error).__name__}: {error}"
        with contextlib.suppress(RuntimeError):  # of a store that is gone
            self._store.set(f"answer/{step}/{self.rank}", _FAILED + b" " + told.encode())


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float64).reshape(-1)


def _is_close(found: np.ndarray[Any, Any], seen: Tensor) -> bool:
    """Whether two networks have the same outputs, but for roundings of other threads."""
    own = _plain(seen).numpy()
    return bool(np.allclose(found, own, rtol=0.0, atol=_ROUNDED * float(np.abs(own).max())))


def share_of(count: int, place: int, places: int) -> slice:
    """The outputs that one of several processes takes."""
    return _parts(count, places)[place]


def _parts(count: int, places: int) -> list[slice]:
    ends = [count * k // places for k in range(places + 1)]
    # The first process also has everything else to do: it takes what is not more than the others'.
    sizes = sorted(b - a for a, b in itertools.pairwise(ends))
    starts = list(itertools.accumulate(sizes, initial=0))
    return [slice(a, b) for a, b in itertools.pairwise(starts)]


def fingerprint(named: Iterable[tuple[str, Tensor]]) -> str:
    """A hash of the bits of all tensors, which differs if a number of one of them differs."""
    found = hashlib.sha256()
    for name, tensor in named:
        found.update(
            f"{name}:{tuple(tensor.shape)}:{tensor.dtype}:{_sum_of_bits(tensor)};".encode()
        )
    return found.hexdigest()


def _sum_of_bits(tensor: Tensor) -> int:
    """Σ_i (2i + 1) b_i modulo 2⁶⁴ of the bits b_i of each number, where the tensor is.

    An odd factor has an inverse, so that a change of one number always changes the sum.
    """
    plain = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    bits = plain.detach().contiguous().view(-1).view(_INTEGERS[plain.element_size()])
    odd = 2 * torch.arange(min(len(bits), _PIECE), device=bits.device) + 1
    sums = [(piece.long() * odd[: len(piece)]).sum() for piece in torch.split(bits, _PIECE)]
    return sum((2 * k + 1) * int(part) for k, part in enumerate(sums)) % 2**64
