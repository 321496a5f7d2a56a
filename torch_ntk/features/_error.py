"""The standard error of inner products of features as estimates of the kernel."""

from __future__ import annotations

from math import sqrt

import torch
from torch import Tensor

from .._checks import check_choice, check_tensor, value_error
from ._projection import Kind

# The largest ratio of the variance to that of independent entries; see `_sjlt` and `_dense`.
_AT_MOST: dict[Kind, float] = {"sjlt": 3.0, "gaussian": 4.0, "rademacher": 4.0}


def features_error(
    features1: Tensor, features2: Tensor | None = None, kind: Kind = "sjlt"
) -> Tensor:
    r"""The standard error of `features1 @ features2.T` as an estimate of the kernel.

    For random projections of gradients to `dim` numbers

        Var⟨φ(x), φ(x')⟩ ≤ c (Θ(x, x) Θ(x', x') + Θ(x, x')²) / dim

    with c = 3 for `"sjlt"` and c = 4 for the dense kinds, up to terms of order 1/dim². The kernel's
    entries in it are estimated by the features themselves. This is a bound: the variance is up to c
    times smaller for networks whose gradients have high rank. Usually at least 95 % of the entries
    are within twice the error. The errors of all entries for one seed are correlated.

    Args:
        features1: Features `[N1, dim]`, or `[N1, O, dim]`.
        features2: Features `[N2, dim]`, or `[N2, O, dim]`; None means `features1`.
        kind: The kind of the projection.

    Returns:
        The standard error of each entry, `[N1, N2]` or `[N1, N2, O, O]`.

    Raises:
        TypeError, ValueError: The arguments are not features, or do not fit each other.

    Example:
        >>> import torch
        >>> features = torch.eye(2, 8)
        >>> features_error(features)  # sqrt(3 (1 + 1) / 8) and sqrt(3 (1 + 0) / 8)
        tensor([[0.8660, 0.6124],
                [0.6124, 0.8660]])
    """
    check_choice("kind", kind, tuple(_AT_MOST))
    one = check_tensor("features1", features1)
    two = one if features2 is None else check_tensor("features2", features2)
    if one.ndim not in (2, 3):
        raise value_error("features1", "features [N, dim] or [N, O, dim]", one)
    if two.ndim != one.ndim or two.shape[1:] != one.shape[1:]:
        raise value_error("features2", f"features [N2, {', '.join(map(str, one.shape[1:]))}]", two)
    dim = one.shape[-1]
    shape = (len(one), len(two), *([one.shape[1]] * 2 if one.ndim == 3 else []))
    rows, columns = one.reshape(-1, dim), two.reshape(-1, dim)
    norms = torch.outer(rows.square().sum(1), columns.square().sum(1))
    error = (norms + (rows @ columns.T).square()).sqrt() * sqrt(_AT_MOST[kind] / dim)
    if one.ndim == 2:
        return error
    o = one.shape[1]
    return error.view(len(one), o, len(two), o).transpose(1, 2).reshape(shape)
