"""Check that the factors of a block of samples are those of the user's own module."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..._checks import ArgumentError, value_error
from ..._functional import (
    Batch,
    CannotTransformError,
    PlainModel,
    PlainPass,
    agree,
    first_line,
    plain_name,
)
from ..._types import Parameters
from ...memory import aim, budget, even, is_out_of_memory, ranges, within
from .._job import KernelJob
from .._stages import stage
from ..rules import Use
from ._dependent_samples import depends_on_batch
from ._signed_sums import SignedSum, SignedSums
from ._signs import signs

# Differences of at most so many rounding errors of the terms of a sum are accepted.
_ROUNDINGS = 100.0
# Relative differences that are accepted at once, in float64 and in float32. Between two evaluations
# in float32 the inputs of some ReLUs change sign, which makes a larger difference than rounding
# alone: 1e-4 in a ResNet.
CLOSE_IN_DOUBLE, CLOSE = 1e-8, 1e-3
# In large networks so many ReLUs change that the difference reaches several percent. Then further
# plain passes, with parameters moved by rounding errors, show how precisely the gradient is known.
# Differences of at most `_TIMES` this error are accepted, if they are at most the fraction `_SIDES`
# of the gradient.
_TIMES, _SIDES = 3.0, 0.05
# The multiples of a rounding error by which these passes move parameters. A movement by one
# rounding error changes only a few ReLUs, and another movement changes others or none. A movement
# by k rounding errors changes k times as many, which change the gradient by √k times as much, since
# they are independent; the size of this change varies little. The smallest movement is needed, too,
# since any movement changes ReLUs whose inputs are 0 up to rounding.
_ROUNDED_BY = (16, 1)
# The memory of a plain pass, relative to all results of a forward pass: those that it keeps, and
# the derivatives in the backward pass.
_PASS = 2
# The bytes of a plain pass on a CPU, since larger passes do not fit in the caches anyway; and its
# least memory relative to that of the parameters, whose gradients each comparison reads repeatedly.
_AT_ONCE, _OF_PARAMETERS = 2**28, 4


class MismatchError(Exception):
    """The factors of some parameters are wrong.

    Attributes:
        names: The names of these parameters.
    """

    def __init__(self, names: frozenset[str]) -> None:
        super().__init__(", ".join(sorted(names)))
        self.names = names


@dataclass(frozen=True)
class _Expected:
    """The results of plain passes over the block: outputs `[N, O]`, and the gradient of `Σ u·f`.

    Gradients are in the form in which they are compared (`SignedSum.of_gradient`), because the
    whole gradients of large weights would take as much memory as the network.
    """

    outputs: Tensor
    gradient: Parameters


@dataclass(frozen=True)
class _Compared:
    """The result of a comparison.

    Attributes:
        wrong: The names of the parameters whose gradients differ.
        errors: The relative differences of these parameters; see `_measured`.
        sizes: The norms of the gradients of all parameters.
        gradient: The gradients from plain passes, if the differences may be rounding errors.
    """

    wrong: set[str]
    errors: Mapping[str, float] = field(default_factory=dict)
    sizes: Mapping[str, float] = field(default_factory=dict)
    gradient: Parameters | None = None


class BlockCheck:
    """Collects a method's outputs and factors for a block of samples, and compares them.

    Args:
        job: The kernel.
        side: All samples of the kernel's rows, or of its columns.
        start, stop: The range of samples of the block.
        close: The relative difference in float32 up to which gradients are accepted.
        roundings: The relative error of each parameter's gradient by rounding, from earlier blocks
            of the same kernel; this block updates it.

    Attributes:
        sums: The sums to which factors are added.
        parts: The groups of outputs that were added one after the other; empty if all at once.
    """

    def __init__(
        self,
        job: KernelJob,
        side: Batch,
        start: int,
        stop: int,
        close: float = CLOSE,
        roundings: dict[str, float] | None = None,
    ) -> None:
        self.x, self._close = side[start:stop], close
        self._span, self._is_of_rows = (start, stop), side is job.x1
        self._fn, self._job = job.fn, job
        self._companion, self._is_made_up = companion_of(job, self.x)
        like = torch.zeros((), dtype=job.fn.dtype, device=job.fn.device)
        self._signs = signs(stop - start, job.outputs, like=like)
        self.sums = SignedSums(self._signs)
        self._outputs: list[list[Tensor]] = [[]]
        self.parts: list[slice] = []
        self._roundings: dict[str, float] = {} if roundings is None else roundings

    def begin(self, part: slice) -> None:
        """Begin with another group of outputs, at the first sample; by default all are added."""
        if self.parts:
            self._outputs.append([])
        self.parts.append(part)
        self.sums.u = self._signs[:, part]

    def add_outputs(self, outputs: Tensor) -> None:
        """Add the outputs `[n, O]` of the next samples, each of which was evaluated alone."""
        self._outputs[-1].append(outputs.detach())

    def again(self, job: KernelJob) -> BlockCheck:
        """Return an empty check of the same samples with the same signs, in the dtype of `job`."""
        found = BlockCheck(job, self.x.to(job.fn.dtype), 0, len(self.x))
        found._companion, found._is_made_up = self._companion, self._is_made_up
        found._signs = self._signs.to(job.fn.dtype)
        found.sums = SignedSums(found._signs)
        return found

    def tensors(self, of_sums: bool = True) -> list[Tensor]:
        """The numbers that were added: outputs, and, if wanted, sums."""
        sums = self.sums.sums.values() if of_sums else ()
        of_outputs = [rows for part in self._outputs for rows in part]
        return of_outputs + [t for found in sums for t in (found.total, found.noise)]

    def form(self, of_sums: bool = True) -> BlockForm:
        """The check without its samples and numbers; see `tensors`."""
        found = self.sums.sums.items() if of_sums else ()
        sums = {name: (known.use, known.vectors) for name, known in found}
        pieces = sum(len(part) for part in self._outputs)
        return BlockForm(self._span, self._is_of_rows, self._close, self._signs, pieces, sums)

    def has_equal_outputs(self) -> bool:
        """Whether the outputs are those of a plain forward pass of the user's own module."""
        outputs: list[Tensor] = []
        for a, b in self._chunks(len(self.x)):
            outputs.append(self._fn.plain.run(self.x[a:b], lambda found: found.outputs.detach()))
        expected, own = torch.cat(outputs), torch.cat(self._outputs[0])
        return agree([own.to(expected.dtype)], [expected], precision=self._precision)

    def verify(self, in_double: Callable[[], BlockCheck]) -> None:
        """Compare outputs and gradients with plain backward passes; raise `MismatchError`.

        Differences that may come from rounding are compared again in float64, with the check of the
        same block that `in_double` returns.
        """
        with stage("check"):
            compared = self._compared(self._fn.plain)
            wrong = compared.wrong
            if not wrong or self._is_rounding(compared):
                return
            wrong = self._wrong_in_double(in_double, wrong)
        if wrong:
            raise MismatchError(frozenset(wrong))

    @property
    def _precision(self) -> torch.dtype:
        """The coarser one of the precisions of the evaluation and of what the forward rounds to."""
        kinds = {self._fn.dtype, self._job.forward.precision}
        return torch.float64 if kinds == {torch.float64} else torch.float32

    def refuse(self, names: frozenset[str]) -> ArgumentError:
        """Return the error for samples whose gradients do not add up to that of the block."""
        listed = ", ".join(repr(plain_name(n)) for n in sorted(names)[:4])
        x = self.x if self._companion is None else self.x.join(self._companion)
        return depends_on_batch(self._fn.exact_plain, x, f"derivatives by {listed}")

    def _wrong_in_double(self, in_double: Callable[[], BlockCheck], wrong: set[str]) -> set[str]:
        """Return the parameters that are wrong in float64; `wrong` if it cannot be evaluated."""
        plain = self._fn.plain
        if self._fn.dtype == plain.dtype == torch.float64:
            return wrong
        try:
            if self._fn.dtype == torch.float64:
                return self._compared(self._fn.exact_plain).wrong
            exact = in_double()
            return exact._compared(exact._fn.plain).wrong
        except (ArgumentError, CannotTransformError, RuntimeError) as error:
            if is_out_of_memory(error):
                raise
            return wrong

    def _is_rounding(self, compared: _Compared) -> bool:
        """Whether moving parameters by rounding errors causes differences as large as these."""
        plain, known = self._fn.plain, self._roundings
        if compared.gradient is None or plain.dtype != torch.float32:
            return False

        def explained() -> bool:
            return all(error <= _TIMES * known.get(n, 0.0) for n, error in compared.errors.items())

        if explained():
            return True
        for times in _ROUNDED_BY:
            other = self._expected(plain.with_rounding(times)).gradient
            sizes = {n: size for n, size in compared.sizes.items() if size > 0.0}
            pairs = [(self.sums.sums[n], compared.gradient[n] - other[n]) for n in sizes]
            for (name, size), (_, moved, _) in zip(sizes.items(), _measured(pairs), strict=True):
                share = moved / math.sqrt(times) / size
                known[name] = max(known.get(name, 0.0), share)
            if explained():
                return True
        return False

    def _compared(self, plain: PlainModel) -> _Compared:
        """Compare with plain passes; if outputs differ, all parameters are wrong."""
        expected = self._expected(plain)
        every = set(self._fn.params)
        own = torch.cat([torch.cat(rows) for rows in self._outputs], dim=1)
        own = own.to(expected.outputs.dtype)
        if not bool(own.isfinite().all()) or not bool(expected.outputs.isfinite().all()):
            # The check of the kernel reports entries that are not finite, with their indices.
            same = torch.equal(own.isfinite(), expected.outputs.isfinite())
            return _Compared(set() if same else every)
        if not agree([own], [expected.outputs], precision=self._precision):
            return _Compared(every)
        # The tolerance is that of the lowest precision.
        coarse = torch.float64 if plain.dtype == self._precision == torch.float64 else torch.float32
        eps = torch.finfo(coarse).eps
        close = CLOSE_IN_DOUBLE if coarse == torch.float64 else self._close
        names = list(expected.gradient)
        measured = _measured([(self.sums.sums[n], expected.gradient[n]) for n in names])
        # A gradient that is 0, as that of a bias before a normalization, has the rounding errors
        # of other gradients.
        largest = max(scale for _, scale, _ in measured)
        wrong: dict[str, float] = {}
        sizes = {n: scale for n, (_, scale, _) in zip(names, measured, strict=True)}
        for name, (error, scale, noise) in zip(names, measured, strict=True):
            if not error <= max(close * scale, _ROUNDINGS * eps * max(noise, largest)):
                wrong[name] = error / scale if scale else math.inf
        may_be_rounding = all(error <= _SIDES for error in wrong.values())
        kept = expected.gradient if wrong and may_be_rounding else None
        return _Compared(set(wrong), wrong, sizes, kept)

    def _expected(self, plain: PlainModel) -> _Expected:
        n = len(self.x)
        total: Parameters = {}
        outputs = []
        u = self._signs
        if self.parts:  # other outputs do not enter the sum
            u = torch.zeros_like(u)
            for part in self.parts:
                u[:, part] = self._signs[:, part]
        for a, b in self._chunks(n):
            rows, gradient = self._passed(plain, self.x[a:b], u[a:b].to(plain.dtype))
            outputs.append(rows[: b - a])
            for name, g in gradient.items():
                total[name] = total[name] + g if name in total else g
        every = torch.cat(outputs)
        if self.parts:
            every = torch.cat([every[:, part] for part in self.parts], dim=1)
        return _Expected(every, total)

    def _passed(self, plain: PlainModel, x: Batch, u: Tensor) -> tuple[Tensor, Parameters]:
        """Return outputs, and the gradient of `Σ u·f`, of samples and their companion."""
        companion = self._companion
        if companion is not None:
            x, u = x.join(companion.to(self._fn.dtype)), torch.cat([u, torch.zeros_like(u[:1])])

        def of_pass(found: PlainPass) -> tuple[Tensor, Parameters]:
            gradient, sums = found.gradients(u), self.sums.sums
            compared: Parameters = {}
            for name in list(gradient):
                g = gradient.pop(name)
                compared[name] = sums[name].of_gradient(g) if name in sums else g
            return found.outputs.detach(), compared

        try:
            return plain.run(x, of_pass)
        except MemoryError:
            raise
        except (ArgumentError, RuntimeError) as error:
            if is_out_of_memory(error):
                raise
            if companion is not None and self._is_made_up:
                # The model may refuse a made-up sample, although it accepts the others.
                self._companion = None
                return self._passed(plain, x[:-1], u[:-1])
            if isinstance(error, ArgumentError):
                raise
            raise _no_batch(error, x) from error

    def _chunks(self, n: int) -> Iterator[tuple[int, int]]:
        """Return ranges of at least two samples, and of as many as the memory allows."""
        each = _PASS * self._job.forward.activation_bytes
        available, sparing = budget(self._fn.device) // 2, aim()
        available = available if sparing is None else min(available, sparing // 3)
        most = max(2, within(available, n, each))
        pieces = list(ranges(0, n, max(2, even(n, most))))
        if len(pieces) > 1 and pieces[-1][1] - pieces[-1][0] == 1:
            pieces[-2:] = [(pieces[-2][0], n)]
        return iter(pieces)


@dataclass(frozen=True)
class BlockForm:
    """What the checks of equal blocks of samples have in common, whatever the numbers.

    Attributes:
        span: The first sample of the block, and the one after the last.
        is_of_rows: Whether they are samples of x1.
        close: See `BlockCheck`.
        signs: The signs of the outputs.
        pieces: The number of tensors of outputs.
        sums: By the name of a parameter `use` and `vectors` of its `SignedSum`.
    """

    span: tuple[int, int]
    is_of_rows: bool
    close: float
    signs: Tensor
    pieces: int
    sums: Mapping[str, tuple[Use | None, Tensor | None]]

    @property
    def size(self) -> int:
        """The number of tensors in `BlockCheck.tensors`."""
        return self.pieces + 2 * len(self.sums)

    def filled(self, job: KernelJob, tensors: Sequence[Tensor]) -> BlockCheck:
        """The check of a block of this form, with the numbers `BlockCheck.tensors`."""
        side = job.x1 if self.is_of_rows else job.columns
        found = BlockCheck(job, side, *self.span, self.close)
        found._signs, found.sums = self.signs, SignedSums(self.signs)
        found._outputs = [list(tensors[: self.pieces])]
        numbers = iter(tensors[self.pieces :])
        for name, (use, vectors) in self.sums.items():
            found.sums.sums[name] = SignedSum(next(numbers), next(numbers), use, vectors)
        return found


def compared_together(
    job: KernelJob, pieces: Sequence[tuple[int, int]]
) -> list[list[tuple[int, int]]]:
    """Return consecutive pieces of samples in groups, one for each `BlockCheck`.

    A group has few samples if they are large, so that a comparison in float64 is small. Every group
    has at least two samples, so that the check detects whether they depend on each other.
    """
    most = None
    if job.check and job.fn.device.type == "cpu":
        size = max(_AT_ONCE, _OF_PARAMETERS * job.fn.parameter_bytes)
        most = max(2, size // max(1, _PASS * job.forward.activation_bytes))
    groups: list[list[tuple[int, int]]] = []
    for piece in pieces:
        start = groups[-1][0][0] if groups else piece[0]
        if groups and (most is None or piece[1] - start <= most):
            groups[-1].append(piece)
        else:
            groups.append([piece])
    for k in reversed(range(1, len(groups))):
        if groups[k][-1][1] - groups[k][0][0] < 2:
            groups[k - 1 : k + 1] = [groups[k - 1] + groups[k]]
    return groups


def companion_of(job: KernelJob, x: Batch) -> tuple[Batch | None, bool]:
    """Return another sample for a block of equal samples, and whether it is made up.

    Whether samples depend on each other can be detected only with different samples in a batch.
    """
    if job.fn.coupled:
        return None, False
    if bool(x[-1:].unlike(x).any()) or bool(x.unlike(x).any()):
        return None, False
    for side in (job.x1, job.columns):
        unlike = side.unlike(x)
        if bool(unlike.any()):
            k = int(unlike.nonzero()[0])
            return side[k : k + 1], False
    made = x[:1].map(_another)
    return (made if bool(made.unlike(x).any()) else None), True


def _another(t: Tensor) -> Tensor:
    """Return a sample `[1, ...]` that differs from `t`, if one is easily made."""
    if t.is_floating_point():
        return t / 2 if bool(t.any()) else torch.ones_like(t)
    return t.reshape(-1).flip(0).reshape(t.shape)  # indices remain valid in another order


def _measured(pairs: Sequence[tuple[SignedSum, Tensor]]) -> list[tuple[float, float, float]]:
    """Return for each pair the norms of the difference, of the gradient, and of the sum's terms.

    For a large weight these are norms of products with random vectors. All pairs are computed by
    one call, because in a small network a call takes longer than its arithmetic.
    """
    norms = torch._foreach_norm
    totals = [found.total for found, _ in pairs]
    projected = [g.reshape(found.total.shape).to(found.total.dtype) for found, g in pairs]
    sizes = torch.stack(
        [
            *norms(torch._foreach_sub(totals, projected)),
            *norms(projected),
            *(found.noise.to(totals[0].dtype) for found, _ in pairs),
        ]
    ).view(3, -1)
    errors, scales, noises = sizes.tolist()
    if not math.isfinite(sum(errors)):
        # Two results that are not finite agree; the check of the kernel reports such entries.
        for k, (total, of_gradient) in enumerate(zip(totals, projected, strict=True)):
            is_finite = bool(total.isfinite().all()), bool(of_gradient.isfinite().all())
            errors[k] = 0.0 if is_finite == (False, False) else errors[k]
    finite = [[x if math.isfinite(x) else 0.0 for x in row] for row in (scales, noises)]
    return list(zip(errors, *finite, strict=True))


def _no_batch(error: RuntimeError, x: Batch) -> ArgumentError:
    return value_error(
        "model",
        "a function of a batch of any number of samples, each evaluated independently",
        f"a forward that fails on {len(x)} samples with {first_line(error)}",
        "A model for a fixed number of samples, or for one at a time, can be wrapped in a module "
        "that loops over the rows of its input. If outputs depend on the whole batch, such as "
        "similarities between samples: coupled=True.",
    )
