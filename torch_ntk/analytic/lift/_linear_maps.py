"""Fixed linear maps of positions: resizing, products with a matrix, graphs, masks.

One rule reads all of them. It applies the function to a basis of the positions, which gives its
matrix. The matrix determines the operation: positions that are moved (`Gather`), a map along each
axis (`Pool`), or any other map (`Mixing`). A further function is a line in the table of
`_position_functions.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..operations import Gather, Mixing, Pool, Weighting
from ._builder import Builder
from ._values import Data, Matrices, Value, two_axes

Linear = Callable[[Tensor], Tensor]
"""A function of a batch `[S, ...]` with one channel to `[S, ...]`, linear in each sample."""

# The largest error of a matrix as a product over the axes, relative to its largest entry.
_ROUNDING = 1e-12


def mapped(b: Builder, x: Any, function: Linear, what: str, axis: int | None = None) -> Value:
    """Return features after a linear map of positions that is the same for all samples.

    Args:
        b: The builder that collects steps.
        x: The features.
        function: The map, which is called with samples of one channel.
        what: The name of the map, for messages.
        axis: The index of the channels among the axes of the map's result; None if it is that of
            the features.
    """
    v = b.value(x, what)
    axis = v.axis if axis is None else axis
    matrix, spatial = _matrix(b, v, function, axis, what)
    return apply_matrix(b, v, matrix, spatial, axis)


def mapped_by_sample(
    b: Builder, x: Any, functions: tuple[Sequence[Linear], Sequence[Linear]], what: str, axis: int
) -> Value:
    """Return features after a linear map of positions for each sample of x1 and of x2."""
    v = b.value(x, what)
    sides = [[_matrix(b, v, f, axis, what) for f in side] for side in functions]
    spatial = sides[0][0][1]
    first, second = (torch.stack([m for m, _ in side]) for side in sides)
    return apply_matrices(b, v, first, second, spatial, axis)


def weighted(b: Builder, x: Any, weights: Data, what: str) -> Value:
    """Return features times known numbers of each sample, the same for every channel: a mask."""
    v = b.value(x, what)
    sides = [_weights(b, v, t, n, what) for n, t in enumerate((weights.first, weights.second))]
    made = b.linear_step(Weighting(), v, data=b.sample_data(*sides))
    first, second = sides
    return replace(made, image=(v, lambda: (_diagonal(first), _diagonal(second))))


def _diagonal(weights: Tensor) -> Tensor:
    return torch.diag_embed(weights.flatten(1))


def matrix_product(b: Builder, x: Any, y: Any) -> Value:
    """Return `x @ y` of features and a known matrix, one for all samples or one for each."""
    if not isinstance(x, Data) and not isinstance(y, Data):
        raise b.refusal(
            "a matrix product of two features",
            "Only attention with tied keys and queries has a limit of such products.",
            "Use NTKSelfAttention, or multiply by a known matrix.",
        )
    left = isinstance(x, Data)
    matrix, v = (x, b.value(y)) if left else (y, b.value(x))
    matrix = _in_type(b, matrix)
    axes = 1 + len(v.shape)
    contracted = axes - 2 if left else axes - 1
    _check_contracted(b, v, contracted, "a matrix product")
    size, positions = matrix.first.shape[-1 if left else -2 :][0], v.shape[contracted - 1]
    if size != positions:
        raise b.refusal(
            f"a product with a matrix of shape {tuple(matrix.first.shape)} on samples of shape "
            f"{v.shape}",
            f"It multiplies {size} positions, and there are {positions}.",
            f"Pass a matrix [{positions}, {positions}] or, one for each sample, "
            f"[N, {positions}, {positions}].",
        )
    functions = _by_sample(matrix, axes, lambda m: (lambda t: m @ t) if left else (lambda t: t @ m))
    lost = matrix.first.ndim == 1 and contracted - 1 < v.axis  # the axis of a vector's positions
    return _product(b, v, functions, matrix, v.axis - lost)


def summed_product(b: Builder, equation: Any, operands: Sequence[Any]) -> Value:
    """Return `torch.einsum` of features and a known tensor that has no axis of channels."""
    what = f"einsum({equation!r})"
    random = [i for i, o in enumerate(operands) if not isinstance(o, Data)]
    if len(operands) != 2 or len(random) != 1 or "..." in equation or "->" not in equation:
        raise b.refusal(
            what,
            "Only a product of features and one known tensor, with '->', is supported.",
            "Write it with '->' and two operands, or as a matmul.",
        )
    inputs, result = equation.replace(" ", "").split("->")
    letters = inputs.split(",")
    i = random[0]
    v, matrix = b.value(operands[i], what), _in_type(b, operands[1 - i])
    mine, theirs = letters[i], letters[1 - i]
    channel = mine[1 + v.axis] if len(mine) == 1 + len(v.shape) else ""
    if not channel or not result.startswith(mine[0]) or channel in theirs or channel not in result:
        raise b.refusal(
            what,
            "It mixes samples or channels, or has another number of axes than the features.",
            "Sum over positions only.",
        )

    def of(m: Tensor) -> Linear:
        return lambda t: torch.einsum(equation, *((t, m) if i == 0 else (m, t)))

    if mine[0] in theirs:
        place = theirs.index(mine[0])
        sides = [
            [of(m.narrow(place, n, 1)) for n in range(m.shape[place])]
            for m in (matrix.first, matrix.second)
        ]
        functions: Any = (sides[0], sides[1])
    else:
        functions = of(matrix.first)
    return _product(b, v, functions, matrix, result.index(channel) - 1)


def _in_type(b: Builder, matrix: Data) -> Data:
    """Return known matrices in the dtype of the computation."""
    return matrix.map(lambda t: t.to(b.dtype))


def _check_contracted(b: Builder, v: Value, axis: int, what: str) -> None:
    if axis == 0 or axis == v.axis + 1:
        which = "samples" if axis == 0 else "channels"
        raise b.refusal(
            f"{what} over the axis of the {which}, {axis}",
            "Only positions may be mixed by a known matrix; channels are mixed by random weights.",
            "Permute the axes, or use NTKLinear.",
        )


def _by_sample(matrix: Data, axes: int, of: Callable[[Tensor], Linear]) -> Any:
    """Return the map `of` a known matrix, or one for each sample of x1 and of x2."""
    is_one = matrix.first is matrix.second and matrix.first.shape[0] == 1
    if matrix.first.ndim < axes or is_one:
        return of(matrix.first)
    return tuple([of(m) for m in t.split(1)] for t in (matrix.first, matrix.second))


def _product(b: Builder, v: Value, functions: Any, matrix: Data, axis: int) -> Value:
    what = f"a product with a known tensor of shape {tuple(matrix.first.shape)}"
    if callable(functions):
        if matrix.first is not matrix.second:
            raise b.refusal(
                what,
                "It depends on the inputs, but is not a matrix for each sample.",
                "Add an axis of samples, [N, …].",
            )
        return mapped(b, v, functions, what, axis)
    for side, found in enumerate(functions):
        if len(found) != b.samples[side]:
            raise b.refusal(
                what,
                f"There are {b.samples[side]} samples in x{side + 1}.",
                "Pass one matrix for all samples, or one for each.",
            )
    return mapped_by_sample(b, v, functions, what, axis)


def folded_back(b: Builder, x: Any, fold: Linear) -> Value:
    """Return `F.fold` of the result of `F.unfold`: a sum over positions."""
    v = b.value(x, "F.fold")
    if v.taps is None:
        raise b.refusal(
            "F.fold of features that are not a result of F.unfold",
            "Channels that become positions are not independent of each other.",
            "Use NTKConvTranspose2d, or F.interpolate.",
        )
    return mapped(b, v.taps, lambda t: fold(t.flatten(1, 2)), "F.fold")


def _weights(b: Builder, v: Value, t: Tensor, side: int, what: str) -> Tensor:
    """Return known numbers as `[N, P, Q]`."""
    samples, shape = b.samples[side], v.shape
    full = t.view(*[1] * (1 + len(shape) - t.ndim), *t.shape) if t.ndim <= 1 + len(shape) else t
    channels_alike = full.ndim == 1 + len(shape) and full.shape[1 + v.axis] == 1
    wanted = (samples, *(1 if i == v.axis else n for i, n in enumerate(shape)))
    try:
        if not channels_alike:
            raise RuntimeError(f"a tensor of shape {tuple(t.shape)} for samples {shape}")
        spread = full.expand(wanted)
    except RuntimeError as error:
        raise b.refusal(
            f"{what} with a known tensor of shape {tuple(t.shape)} on samples of shape {shape}",
            "Known factors may differ between samples and positions, but not between channels, "
            "whose number tends to infinity.",
            "Use a tensor with one entry on the axis of channels, such as a mask [N, 1, T].",
        ) from error
    return spread.to(b.dtype).reshape(samples, *v.positions)


def _matrix(
    b: Builder, v: Value, function: Linear, axis: int, what: str
) -> tuple[Tensor, tuple[int, ...]]:
    """Return the matrix `[S_out, S_in]` of a map, and the axes of positions of its results."""
    count = math.prod(v.spatial)
    shape = [1 if i == v.axis else n for i, n in enumerate(v.shape)]
    basis = torch.eye(count, dtype=b.dtype, device=b.device).view(count, *shape)
    try:
        out = function(basis)
        nothing = function(torch.zeros_like(basis[:1]))
    except (RuntimeError, ValueError, IndexError, NotImplementedError) as error:
        why = f"{error}".rstrip(".") + "."
        raise b.refusal(
            f"{what} on samples of shape {v.shape}",
            why,
            "Flatten or permute first, so that it acts on positions only.",
        ) from error
    if out.ndim < 2 + axis or len(out) != count or out.shape[1 + axis] != 1:
        raise b.refusal(
            f"{what} on samples of shape {v.shape}",
            "It mixes the channels with the positions.",
            "Permute first, so that it acts on positions only.",
        )
    if bool(nothing.any()):
        raise b.refusal(
            what,
            "It adds a constant, so that features do not have zero mean.",
            "Write the constant as a separate term after a layer, layer(x) + c.",
        )
    spatial = tuple(n for i, n in enumerate(out.shape[1:]) if i != axis)
    return out.reshape(count, -1).T, spatial


def apply_matrix(
    b: Builder, v: Value, matrix: Tensor, spatial: tuple[int, ...], axis: int
) -> Value:
    """Apply a matrix `[S_out, S_in]` to the positions of a value, by the simplest operation."""
    made = _simplest_step(b, v, matrix, spatial, axis)
    return replace(made, image=(v, lambda: (matrix[None], matrix[None])))


def _simplest_step(
    b: Builder, v: Value, matrix: Tensor, spatial: tuple[int, ...], axis: int
) -> Value:
    positions = two_axes(spatial)
    moved = _sources(matrix)
    if moved is not None:
        return replace(b.linear_step(Gather(positions, (moved,)), v, spatial), axis=axis)
    if positions == v.positions == (1, 1) and not matrix.requires_grad:
        scaled = b.value(b.scale(v, float(matrix)))
        return replace(scaled, spatial=spatial, axis=axis, multiple=None, terms=None)
    factors = _factors(matrix.detach(), positions, v.positions)
    if factors is not None and not matrix.requires_grad:
        return replace(b.linear_step(Pool(*factors), v, spatial), axis=axis)
    given = b.sample_data(*(matrix.expand(n, *matrix.shape) for n in b.samples))
    return _mixed(b, v, given, spatial, axis)


def apply_matrices(
    b: Builder, v: Value, first: Tensor, second: Tensor, spatial: tuple[int, ...], axis: int
) -> Value:
    """Apply a matrix for each sample, `[N, S_out, S_in]`, to the positions of a value."""
    made = _mixed(b, v, b.sample_data(first, second), spatial, axis)
    return replace(made, image=(v, lambda: (first, second)))


def sum_of_maps(b: Builder, x: Value, y: Value) -> Value | None:
    """Return the sum of two linear maps of the positions of the same value, as one map of it.

    Examples are a graph's `h + A @ h`, features minus their mean over positions, and a
    concatenation of positions.

    Returns:
        The sum; None if x and y are not linear maps of the same value.
    """
    if x.shape != y.shape or x.axis != y.axis:
        return None
    (base, of_x), (other, of_y) = _origin(b, x), _origin(b, y)
    if not base.same(other):
        return None
    first, second = (one + two for one, two in zip(of_x(), of_y(), strict=True))
    if not bool(first.any()):
        raise b.refusal(
            "a sum that is 0",
            "The network's output would not depend on its terms.",
            "Remove both terms.",
        )
    if len(first) == len(second) == 1:
        return apply_matrix(b, base, first[0], x.spatial, x.axis)
    first, second = (m.expand(n, -1, -1) for m, n in zip((first, second), b.samples, strict=True))
    return apply_matrices(b, base, first, second, x.spatial, x.axis)


def _origin(b: Builder, v: Value) -> tuple[Value, Matrices]:
    """Return the value at the beginning of the linear maps that lead to v, and their product."""
    maps: list[Matrices] = []
    factor = 1.0
    while True:
        v, one = v.root
        factor *= one
        if v.image is None:
            break
        v, matrices = v.image
        maps.append(matrices)

    def product() -> tuple[Tensor, Tensor]:
        first, second = _identity(b, v)
        for of in reversed(maps):
            first, second = (m @ n for m, n in zip(of(), (first, second), strict=True))
        return factor * first, factor * second

    return v, product


def _identity(b: Builder, v: Value) -> tuple[Tensor, Tensor]:
    matrix = torch.eye(math.prod(v.spatial), dtype=b.dtype, device=b.device)[None]
    return matrix, matrix


def _mixed(b: Builder, v: Value, matrices: Value, spatial: tuple[int, ...], axis: int) -> Value:
    return replace(b.linear_step(Mixing(two_axes(spatial)), v, spatial, matrices), axis=axis)


def _sources(matrix: Tensor) -> tuple[int, ...] | None:
    """Return the position of x that each position of y is, or -1 for 0; None for other matrices."""
    if matrix.requires_grad:
        return None
    if not bool(((matrix == 0) | (matrix == 1)).all()) or bool((matrix.sum(1) > 1).any()):
        return None
    found = matrix.argmax(1).masked_fill(matrix.sum(1) == 0, -1)
    return tuple(found.tolist())


def _factors(
    matrix: Tensor, out: tuple[int, int], taken: tuple[int, int]
) -> tuple[Tensor, Tensor] | None:
    """Return R and C with `matrix = R ⊗ C`, a map along each axis; None if there are none."""
    (p, q), (r, s) = out, taken
    # As a matrix of pairs of rows by pairs of columns, R ⊗ C has rank one.
    pairs = matrix.view(p, q, r, s).permute(0, 2, 1, 3).reshape(p * r, q * s)
    largest = int(pairs.abs().argmax())
    i, j = divmod(largest, q * s)
    rows, columns = pairs[:, j], pairs[i] / pairs[i, j]
    size = float(pairs[i, j].abs())
    if not torch.allclose(rows[:, None] * columns, pairs, rtol=0, atol=_ROUNDING * size):
        return None
    return rows.view(p, r).double().contiguous(), columns.view(q, s).double().contiguous()
