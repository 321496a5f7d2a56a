"""A program on one block of pairs of images, step by step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .._ops import Activation, Input, Program
from .._plan import Plan
from ._inputs import input_state
from ._state import State, at_equal_positions, spread
from ._step import apply
from ._variances import Variances


@dataclass(frozen=True)
class Images:
    """Some images of one side, with the variances of every value in them.

    Attributes:
        start: The number of the first.
        stop: One past the number of the last.
        variances: Per step, `[stop - start, P, Q]`, or None where nobody asks.
    """

    start: int
    stop: int
    variances: Variances

    def part(self, start: int, stop: int) -> Images:
        """The images from number `start` to `stop` of all."""
        a, b = start - self.start, stop - self.start
        return Images(start, stop, tuple(None if v is None else v[a:b] for v in self.variances))


@dataclass(frozen=True)
class Task:
    """What is evaluated, for whatever block.

    Attributes:
        program: The network.
        plan: How its values are held.
        ntk: Whether Θ is wanted.
        symmetric: Whether the second images are the first.
    """

    program: Program
    plan: Plan
    ntk: bool
    symmetric: bool

    def inputs(self, step: int, one: Images, two: Images) -> tuple[Tensor, Tensor]:
        """The known features of an `Input` for a block."""
        operation = self.program.steps[step].operation
        assert isinstance(operation, Input)
        second = operation.x1 if operation.x2 is None else operation.x2
        return operation.x1[one.start : one.stop], second[two.start : two.stop]

    def equal(self, first: Tensor, second: Tensor) -> Tensor:
        """Which of some pairs are an image with itself, or with an exact copy of it.

        Their correlation at equal positions is exactly 1, of which a computed covariance knows
        nothing: it fixes the angle to 1e-8 only.

        Args:
            first: Numbers of images of the first side.
            second: Of the second side, with as many axes; they are broadcast.
        """
        same = first == second
        if torch.is_grad_enabled():
            # An image's exact value knows one image: the derivative by its copy would be lost.
            return same if self.symmetric else torch.zeros_like(same)
        same = torch.ones_like(same)
        for step in self.program.steps:
            if isinstance(step.operation, Input):
                x1 = step.operation.x1
                x2 = x1 if step.operation.x2 is None else step.operation.x2
                same = same & (x1[first] == x2[second]).flatten(same.ndim).all(-1).to(same.device)
        return same


def evaluate(
    task: Task, one: Images, two: Images, known: dict[int, State] | None = None
) -> tuple[Tensor, Tensor | None]:
    """K and Θ of the network's outputs, `[n1, n2]`.

    Args:
        task: What to evaluate.
        one: The images of the rows.
        two: The images of the columns.
        known: Values computed elsewhere; the steps before them are not done if nothing else
            takes them.
    """
    states: dict[int, State] = dict(known or {})
    steps, plan = task.program.steps, task.plan
    wanted = _wanted(task.program, states)
    twins = _twins(task, one, two)
    for i, step in enumerate(steps):
        if i in states or i not in wanted:
            continue
        if isinstance(step.operation, Input):
            x1, x2 = task.inputs(i, one, two)
            s = input_state(
                x1,
                x2,
                distance=plan.distance,
                full=plan.full[i],
                ntk=task.ntk,
                same=False,
                norms=_variances(one, two, i, False) if plan.distance else None,
            )
        else:
            taken = [states[j] for j in step.inputs]
            q = [_variances(one, two, j, states[j].full) for j in step.inputs]
            s = apply(step.operation, taken, q)
            if twins and isinstance(step.operation, Activation):
                s = _exact(s, taken[0], step.operation, one.variances[step.inputs[0]], twins)
        states[i] = s if plan.full[i] else s.equal_positions()
        for j in step.inputs:
            if plan.last_use[j] == i:
                del states[j]
    last = states[len(steps) - 1]
    k = last.covariance(*(_variances(one, two, len(steps) - 1, False) or (None, None)))[..., 0, 0]
    if last.ntk is None:
        return k, None
    theta = last.ntk[..., 0, 0] if last.ntk.ndim else last.ntk.expand(k.shape)
    return k, theta


def _wanted(program: Program, known: dict[int, State]) -> set[int]:
    """Steps whose value is taken by the last one, not counting what is known."""
    wanted = {len(program.steps) - 1}
    for i in reversed(range(len(program.steps))):
        if i in wanted and i not in known:
            wanted.update(program.steps[i].inputs)
    return wanted


def _variances(one: Images, two: Images, step: int, full: bool) -> tuple[Tensor, Tensor] | None:
    q1, q2 = one.variances[step], two.variances[step]
    if q1 is None or q2 is None:
        return None
    return spread(q1, 0, full), spread(q2, 1, full)


@dataclass(frozen=True)
class _Twins:
    """Pairs of equal images: their places in a block."""

    rows: Tensor
    columns: Tensor


def _twins(task: Task, one: Images, two: Images) -> _Twins | None:
    """The pairs of equal images in a block, if they need any care; held as distances, none do."""
    if task.plan.distance:
        return None
    numbers = torch.arange(one.start, one.stop)[:, None], torch.arange(two.start, two.stop)[None]
    rows, columns = task.equal(*numbers).nonzero(as_tuple=True)
    return _Twins(rows, columns) if len(rows) else None


def _exact(
    s: State, before: State, operation: Activation, variances: Tensor | None, twins: _Twins
) -> State:
    """The value of an activation with its exact entries for an image with itself."""
    assert variances is not None
    rows, columns = twins.rows.to(s.first.device), twins.columns.to(s.first.device)
    kappa, slope = operation.dual.diagonal(variances[rows])
    first = s.first.clone()
    _equal(first, s.full)[rows, columns] = kappa
    ntk = s.ntk
    if ntk is not None and ntk.ndim:
        assert before.ntk is not None
        ntk = ntk.clone()
        _equal(ntk, s.full)[rows, columns] = _equal(before.ntk, s.full)[rows, columns] * slope
    return State(first, ntk, s.distance, s.full)


def _equal(a: Tensor, full: bool) -> Tensor:
    return at_equal_positions(a) if full else a
