"""Stiff initial value problems with an exact Jacobian, at given times or until they rest."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from .._checks import value_error

Method: TypeAlias = Literal["BDF", "Radau", "LSODA"]
"""Implicit solvers of `scipy.integrate`."""

METHODS: tuple[Method, ...] = get_args(Method)

Array: TypeAlias = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Tolerances:
    """What stops the solver from being wrong, and from never ending.

    Attributes:
        method: The solver.
        rtol: Relative local error per step.
        atol: Absolute local error per step, in the units of the state.
        max_evaluations: Of the right-hand side, after which the solver gives up.
    """

    method: Method
    rtol: float
    atol: float
    max_evaluations: int


def solve(
    velocity: Callable[[float, Array], Array],
    jacobian: Callable[[float, Array], Array],
    size: int,
    times: Array,
    options: Tolerances,
    *,
    horizon: float | None = None,
    at_rest: Callable[[float, Array], float] | None = None,
    progress: bool = False,
) -> Array:
    """States `[T, size]` at sorted times ≥ 0, from the state 0 at time 0.

    Args:
        velocity: ẋ(t, x).
        jacobian: ∂ẋ/∂x (t, x).
        size: Length of x.
        times: Ascending; infinite ones ask for the state of rest.
        options: Solver and tolerances.
        horizon: The time by which the state must have come to rest, for infinite times.
        at_rest: How far from rest a state is, in units of what may remain: at most 1 is rest.
            Asked whenever time has doubled.
        progress: Whether to show a bar.

    Raises:
        RuntimeError: The solver fails, or needs more evaluations than allowed.
        ValueError: There is no state of rest before the horizon.
    """
    from scipy import integrate  # type: ignore[import-untyped]  # slow to import
    from tqdm.auto import tqdm

    states = np.zeros((len(times), size))
    finite = int(np.isfinite(times).sum())
    done = int((times == 0.0).sum())
    if done == len(times):
        return states
    endless = finite < len(times)
    if endless and (horizon is None or at_rest is None):
        raise ValueError("a state of rest needs a horizon and a criterion")
    last = float(times[finite - 1]) if finite else 0.0
    bound = max(last, horizon or 0.0) if endless else last
    solver = getattr(integrate, options.method)(
        velocity, 0.0, np.zeros(size), bound, rtol=options.rtol, atol=options.atol, jac=jacobian
    )
    total = None if endless else bound
    next_look, remaining = 0.0, math.inf
    shown = "{l_bar}{bar}| t = {n:.4g} of {total:.4g} [{elapsed}<{remaining}]"
    with tqdm(
        total=total,
        desc="gradient flow",
        unit="step",
        bar_format=None if endless else shown,
        disable=not progress,
    ) as bar:
        while True:
            _step(solver, options)
            bar.update(1 if endless else solver.t - solver.t_old)
            if done < finite and solver.t >= times[done]:
                reached = int(np.searchsorted(times[:finite], solver.t, side="right"))
                states[done:reached] = solver.dense_output()(times[done:reached]).T
                done = reached
            if not endless and done == finite:
                return states
            finished = solver.status == "finished"
            if endless and at_rest is not None and (finished or solver.t >= next_look):
                remaining = at_rest(solver.t, solver.y)
                next_look = 2.0 * solver.t
                if remaining <= 1.0 and done == finite:
                    states[finite:] = solver.y
                    return states
            if finished:
                raise _no_rest(solver.t, remaining)


def _step(solver: Any, options: Tolerances) -> None:
    with np.errstate(all="ignore"):  # a step that overflows is rejected and tried smaller
        reason = solver.step()
    if solver.status == "failed":
        raise RuntimeError(
            f"The {options.method} solver stopped at t = {solver.t:.6g}: {reason} A loss must be "
            "twice differentiable where training goes (an absolute value is not at 0; use a "
            "smooth one); otherwise try another `method` or larger `rtol` and `atol`."
        )
    if solver.nfev > options.max_evaluations:
        raise RuntimeError(
            f"The {options.method} solver has only reached t = {solver.t:.6g} after {solver.nfev} "
            f"evaluations, more than `max_evaluations`={options.max_evaluations}. A loss that is "
            "not twice differentiable (an absolute value) makes steps tiny: use a smooth one; "
            "otherwise allow more evaluations, or larger `rtol` and `atol`."
        )


def _no_rest(t: float, remaining: float) -> ValueError:
    if math.isinf(remaining):
        still = "the loss still slopes without curvature"
    else:
        still = f"the outputs still have {remaining:.3g} times their tolerance to go"
    return value_error(
        "t",
        "finite for a loss without a finite minimum",
        f"a limit that is not reached at t = {t:.3g}, where {still}",
        "Cross-entropy on labels has no limit, as the outputs grow for ever: ask for a finite "
        "time.",
    )
