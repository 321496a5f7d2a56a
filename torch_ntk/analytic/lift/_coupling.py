"""The check that what is computed from the inputs is computed for each sample by itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx

from ..._checks import value_error
from ...memory import is_out_of_memory
from ._values import RANDOM, Data, each_known, leaves, side

Values = Mapping[fx.Node, Any]
"""The values of nodes."""

Evaluate = Callable[[Any, int, Sequence[fx.Node]], Values]
"""Evaluates nodes that do not depend on random weights for a batch of a number of samples."""

# The numbers of samples may be sizes in these functions, which keep the samples on axis 0.
_TAKE_SIZES = {"view", "reshape", "expand", torch.reshape}

# Relative to the largest entry: more than rounding in float32, in which a forward may compute.
_TOLERANCE = 1e-5


def refuse_coupled(
    graph: fx.Graph, values: Values, x: Any, samples: tuple[int, int], evaluate: Evaluate
) -> None:
    """Raise an error if what a network computes from its inputs couples the samples of a batch.

    Three samples of the batch are evaluated by themselves, as batches of two copies of one sample
    (with a single copy, functions such as `squeeze` would do something else). What layers and other
    functions of random features take must be what the whole batch gave. If the batch has only one
    sample, the copy has the entries of the sample in reverse. Then the whole batch is evaluated
    with other entries in one sample, far outside of the range of all: `x / x.max()` is the same for
    copies of a sample with the largest entry. A network that computes nothing from its inputs
    before the first layer is not evaluated.

    Args:
        graph: The graph of the network.
        values: The values of its nodes for the whole batch.
        x: The batch, with a `Data` for each tensor.
        samples: The numbers of samples of x1 and x2.
        evaluate: A function that evaluates nodes.
    """
    nodes, taken = _known(graph, values)
    if not taken:
        return
    same = all(a.first is a.second for a in leaves(x) if isinstance(a, Data))
    for which in (0,) if same else (0, 1):
        n = samples[which]
        copies = 2 if n != 2 else 3  # another number than n, on which nothing may depend
        for i in sorted({0, n // 2, n - 1}):
            own = evaluate(_copies(x, which, i, copies), copies, nodes)
            for node in taken:
                whole, alone = side(values[node], which), side(own[node], 0)
                if not _agree(whole, alone, partial(_same_alone, sample=i, copies=copies, n=n)):
                    raise _coupled_at(node)
        if n == 1:
            continue
        try:
            changed = evaluate(_with_outlier(x, which, n // 2), n, nodes)
        except Exception as error:  # anything that a user's function may raise on such a sample
            if is_out_of_memory(error):
                raise
            continue
        for node in taken:
            whole, now = side(values[node], which), side(changed[node], 0)
            if not _agree(whole, now, partial(_same_elsewhere, sample=n // 2, n=n)):
                raise _coupled_at(node)


def _coupled_at(node: fx.Node) -> ValueError:
    return coupled(
        f"{node.name!r}, computed from the inputs, whose value for a sample depends on the rest of "
        "the batch or on its size"
    )


def coupled(what: str) -> ValueError:
    """Return the error that refuses a network which couples the samples of a batch."""
    return value_error(
        "model",
        "a function of one sample at a time",
        what,
        "A kernel of two samples must not depend on other samples, because it is computed in "
        "blocks. Compute statistics of the data once, before the call, and register them as "
        "buffers.",
    )


def _known(graph: fx.Graph, values: Values) -> tuple[list[fx.Node], list[fx.Node]]:
    """Return the nodes that are computed from the inputs, or from the number of samples.

    Returns:
        All these nodes, and those of which functions of random features take the values.
    """
    varying: set[fx.Node] = set()
    nodes: list[fx.Node] = []
    random: set[fx.Node] = set()
    for node in graph.nodes:
        if node not in values:
            continue
        if any(isinstance(a, RANDOM) for a in leaves(values[node])):
            random.add(node)
        elif any(i in varying or i in random for i in node.all_input_nodes):
            nodes.append(node)
            varying.add(node)
        elif node.op == "placeholder":
            varying.add(node)
    return nodes, [n for n in nodes if any(_takes(u, values[n]) for u in n.users if u in random)]


def _takes(user: fx.Node, value: Any) -> bool:
    """Whether a node takes a value by more than the number of samples that it may have."""
    parts = leaves(side(value, 0))
    if any(isinstance(a, Tensor) for a in parts):
        return True
    return user.target not in _TAKE_SIZES and any(isinstance(a, (int, float)) for a in parts)


def _copies(x: Any, which: int, sample: int, count: int) -> Any:
    """Return copies of one sample of x1 or of x2 as a batch, with a `Data` for each tensor."""

    def copied(known: Data) -> Data:
        whole = side(known, which).detach()
        copies = whole[[sample] * count]
        if len(whole) == 1 and whole.is_floating_point():
            copies[1:] = copies[1:].flip(tuple(range(1, copies.ndim)))
        return Data(copies, copies)

    return each_known(x, copied)


def _with_outlier(x: Any, which: int, sample: int) -> Any:
    """Return x1 or x2 with other entries in one sample, beyond the range of all entries."""

    def changed(known: Data) -> Data:
        whole = side(known, which).detach()
        if whole.is_floating_point():
            whole = whole.clone()
            size = 1 + 2 * float(whole.abs().nan_to_num(posinf=0.0).max())
            signs = torch.ones_like(whole[sample]).flatten()
            signs[1::2] = -1
            whole[sample] = size * signs.view_as(whole[sample])
        return Data(whole, whole)

    return each_known(x, changed)


def _agree(whole: Any, other: Any, same: Callable[[Tensor, Tensor], bool]) -> bool:
    """Whether two values are equal, where `same` compares the tensors in them."""
    pairs = list(zip(leaves(whole), leaves(other), strict=False))
    return len(leaves(other)) == len(pairs) and all(
        same(a, b) if isinstance(a, Tensor) and isinstance(b, Tensor) else bool(a == b)
        for a, b in pairs
    )


def _same_elsewhere(whole: Tensor, changed: Tensor, sample: int, n: int) -> bool:
    """Whether a value is as before at all of n samples but one, or whole if it has no such axis."""
    if whole.shape != changed.shape:
        return False
    whole = whole.detach()
    if whole.shape[:1] != (n,):
        return _close(changed, whole, whole)
    others = torch.arange(n, device=whole.device) != sample
    return _close(changed[others], whole[others], whole)


def _same_alone(whole: Tensor, alone: Tensor, sample: int, copies: int, n: int) -> bool:
    """Whether a value of copies of one sample is that of this sample among n."""
    whole = whole.detach()
    if alone.shape == whole.shape:  # without an axis of samples
        wanted = whole
    elif whole.shape[:1] == (n,) and alone.shape == (copies, *whole.shape[1:]):
        wanted, alone = whole[sample], alone[0]
    else:
        return False
    return _close(alone, wanted, whole)


def _close(a: Tensor, b: Tensor, whole: Tensor) -> bool:
    """Whether parts of two values are equal up to rounding, beside the whole of one."""
    if torch.equal(a, b):
        return True
    if not whole.is_floating_point():
        return False
    largest = float(whole.abs().nan_to_num(posinf=0.0).max())
    return torch.allclose(a, b, rtol=0, atol=_TOLERANCE * largest, equal_nan=True)
