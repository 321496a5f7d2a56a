"""Recurrent layers and cells, computed by plain operations.

On a GPU torch evaluates the gates of a cell in one kernel (`_thnn_fused_lstm_cell`), which has no
forward-mode derivative. On a CPU `torch.lstm` has no batching rule, and hides the linear operations
in which its weights are used.

A packed sequence has the times of all samples in one tensor, which vmap over samples cannot divide.
Here the packed sequence of a single sample is a tensor with all times, also those after its length,
and a mask of the times within its length. At the other times the state does not change.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

_FUSED_ON = ("cuda", "xpu")

State = tuple[Tensor, ...]
"""`(h, c)` of an LSTM, and `(h,)` of other layers, each of shape `[N, H]`."""

Weights = Sequence[Tensor | None]
"""The weights that multiply the state: a matrix, a bias or None, and perhaps a projection."""

Step = Callable[[Tensor, State, Weights], State]
"""A function of `W x + b` at one time, the state before and its weights, to the new state."""


@dataclass(frozen=True)
class _Stack:
    """The arrangement of the layers of a recurrent network."""

    has_biases: bool
    layers: int
    bidirectional: bool


class PlainRecurrent(TorchFunctionMode):
    """A context in which recurrent layers and cells on a GPU are computed by plain operations."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _PLAIN and args and args[0].device.type in _FUSED_ON:
            out = written_out(func, args, kwargs)
            if out is not None:
                return out
        return func(*args, **kwargs)


class PackedSample:
    """Packed sequences of one sample, whose length may differ between samples under vmap.

    `call` replaces the functions that torch calls in `pack_padded_sequence`, in recurrent layers
    and in `pad_packed_sequence`.
    """

    def __init__(self) -> None:
        # The mask `[T]` of the times within the length of packed data, by the `id` of the data. The
        # data is stored, too, so that no other tensor gets its `id` in the meantime.
        self._counts: dict[int, tuple[Tensor, Tensor]] = {}

    def takes(self, func: Any, args: Sequence[Any]) -> bool:
        """Whether this call packs a sequence, or has as argument one that was packed here."""
        if func is torch._pack_padded_sequence:
            return True
        is_of_packed = func is torch._pad_packed_sequence or func in _STEPS
        return is_of_packed and bool(args) and id(args[0]) in self._counts

    def call(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Evaluate a call for which `takes` is true, and return what torch would return.

        The result is None, and torch must evaluate the call, if there are several samples, or
        dropout in train mode.
        """
        if func is torch._pack_padded_sequence:
            return self._pack(*args, **kwargs)
        if func is torch._pad_packed_sequence:
            return self._pad(*args, **kwargs)
        return self._recurrent(func, *args, **kwargs)

    def _keep(self, data: Tensor, counts: Tensor) -> Tensor:
        """Remember which times of packed data `[T, F]` count, and return the data."""
        self._counts[id(data)] = data, counts
        return data

    def _pack(self, x: Tensor, lengths: Tensor, batch_first: bool) -> tuple[Tensor, Tensor] | None:
        """Replace `torch._pack_padded_sequence`.

        Returns:
            The data of all times `[T, F]`, and the number of samples at each time, ones `[T]`.
            None for several samples.
        """
        x = x.transpose(0, 1) if batch_first else x
        if x.shape[1] != 1 or lengths.shape != (1,):
            return None
        counts = torch.arange(len(x), device=x.device) < lengths.to(x.device)
        return self._keep(x[:, 0], counts), torch.ones(len(x), dtype=torch.int64, device="cpu")

    def _pad(
        self, data: Tensor, sizes: Tensor, batch_first: bool, value: float, total: int
    ) -> tuple[Tensor, Tensor]:
        """Replace `torch._pad_packed_sequence`.

        Returns:
            The data with `value` at times after the length, `[T, 1, F]` or `[1, T, F]`, and the
            length `[1]`.
        """
        _, counts = self._counts[id(data)]
        out = torch.where(counts.reshape(-1, *[1] * (data.ndim - 1)), data, value)
        if total > len(data):
            out = torch.cat([out, out.new_full((total - len(data), *data.shape[1:]), value)])
        return out.unsqueeze(0 if batch_first else 1), counts.sum().reshape(1)

    def _recurrent(
        self,
        func: Any,
        data: Tensor,
        sizes: Tensor,
        states: Any,
        weights: Any,
        has_biases: bool,
        layers: int,
        dropout: float,
        train: bool,
        bidirectional: bool,
    ) -> tuple[Tensor, ...] | None:
        """Replace the function of a recurrent layer, called with a packed sequence.

        The arguments are those of torch, in its order; `data` is `[T, F]`.
        """
        _, counts = self._counts[id(data)]
        states = (states,) if isinstance(states, Tensor) else states
        if (train and dropout) or states[0].shape[1] != 1:
            return None
        stack = _Stack(has_biases, layers, bidirectional)
        out, last = _layers(_STEPS[func], data.unsqueeze(1), states, weights, stack, counts)
        return self._keep(out[:, 0], counts), *last


def is_recurrent(func: Any) -> bool:
    """Whether `func` is torch's function of a recurrent layer or cell that is supported here."""
    return func in _PLAIN


def written_out(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """The result of a recurrent layer or cell, computed by plain operations.

    It is None for any other function, for packed sequences, for states with another number of
    samples than the inputs, and for layers with dropout in train mode.
    """
    plain = _PLAIN.get(func)
    return None if plain is None or not _is_fitting(*args, **kwargs) else plain(*args, **kwargs)


def _is_fitting(x: Tensor, states: Any, *others: Any, **named: Any) -> bool:
    """Whether states and inputs have the same number of samples.

    Otherwise torch raises, while plain operations would broadcast. For packed sequences the answer
    has no meaning, but they are not computed by plain operations.
    """
    first = states if isinstance(states, Tensor) else next(iter(states), None)
    if not isinstance(first, Tensor):
        return False
    if first.ndim == x.ndim == 3:
        is_batch_first = named.get("batch_first", others[-1] if others else False)
        return bool(first.shape[1] == x.shape[0 if is_batch_first is True else 1])
    return first.shape[:-1] == x.shape[:-1]


def _layer_function(
    step: Step,
    x: Tensor,
    states: Any,
    weights: Any,
    has_biases: Any,
    layers: int = 1,
    dropout: float = 0.0,
    train: bool = False,
    bidirectional: bool = False,
    batch_first: bool = False,
) -> tuple[Tensor, ...] | None:
    """Compute `torch.lstm`, `torch.gru`, `torch.rnn_tanh` or `torch.rnn_relu`, as `step` says.

    The other arguments are those of these functions. For a packed sequence, which has the list of
    weights in the place of `has_biases`, and for dropout in train mode the result is None.
    """
    if not isinstance(has_biases, bool) or (train and dropout):
        return None
    states = (states,) if isinstance(states, Tensor) else states
    x = x.transpose(0, 1) if batch_first else x
    out, last = _layers(step, x, states, weights, _Stack(has_biases, layers, bidirectional))
    return (out.transpose(0, 1) if batch_first else out), *last


def _lstm_cell(
    x: Tensor,
    states: Any,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
) -> State:
    """Compute `torch.lstm_cell`."""
    return _lstm_step(F.linear(x, w_ih, b_ih), tuple(states), (w_hh, b_hh))


def _gru_cell(
    x: Tensor,
    h: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
) -> Tensor:
    """Compute `torch.gru_cell`."""
    return _gru_step(F.linear(x, w_ih, b_ih), (h,), (w_hh, b_hh))[0]


def _lstm_step(from_x: Tensor, state: State, weights: Weights) -> State:
    """The step of an LSTM with gates i, f, g, o. A third weight projects h (Sak et al. 2014)."""
    h, c = state
    i, f, g, o = (from_x + _linear(h, weights)).chunk(4, dim=-1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    h = o.sigmoid() * c.tanh()
    return (h if len(weights) < 3 else _linear(h, weights[2:])), c


def _gru_step(from_x: Tensor, state: State, weights: Weights) -> State:
    """The step of a GRU with the gates r, z, n, where r multiplies the state's part of n."""
    (h,) = state
    r, z, n = from_x.chunk(3, dim=-1)
    r_h, z_h, n_h = _linear(h, weights).chunk(3, dim=-1)
    n = (n + (r + r_h).sigmoid() * n_h).tanh()
    return (n + (z + z_h).sigmoid() * (h - n),)


def _tanh_step(from_x: Tensor, state: State, weights: Weights) -> State:
    return ((from_x + _linear(state[0], weights)).tanh(),)


def _relu_step(from_x: Tensor, state: State, weights: Weights) -> State:
    return ((from_x + _linear(state[0], weights)).relu(),)


def _linear(h: Tensor, weights: Weights) -> Tensor:
    """`W h + b` with the first two of the weights, or without b if there is only one."""
    matrix, bias = (*weights, None)[:2]
    assert matrix is not None
    return F.linear(h, matrix, bias)


def _layers(
    step: Step,
    x: Tensor,
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
    stack: _Stack,
    counts: Tensor | None = None,
) -> tuple[Tensor, list[Tensor]]:
    """Evaluate all layers on inputs `[T, N, F]`, whose states change at the times where `counts`.

    The first states are `[layers · directions, N, H]` each, and the weights in torch's order. The
    results are the outputs `[T, N, directions · H]` of the last layer, and the last states in the
    shapes of the first ones.
    """
    directions = 2 if stack.bidirectional else 1
    each = len(weights) // (stack.layers * directions)
    last: list[State] = []
    for layer in range(stack.layers):
        found = []
        for direction in range(directions):
            k = layer * directions + direction
            w_ih, w_hh, *others = weights[k * each : (k + 1) * each]
            b_ih, b_hh, *projection = others if stack.has_biases else [None, None, *others]
            of_state = [w_hh, b_hh, *projection]
            # The derivative of x[t] is as large as x; that of unbind is so for all t together.
            from_x = F.linear(x, w_ih, b_ih).unbind(0)
            state: State = tuple(s[k] for s in states)
            times = range(len(x)) if direction == 0 else range(len(x) - 1, -1, -1)
            outputs: dict[int, Tensor] = {}
            for t in times:
                new = step(from_x[t], state, of_state)
                if counts is not None:
                    pairs = zip(new, state, strict=True)
                    new = tuple(torch.where(counts[t], a, b) for a, b in pairs)
                state = new
                outputs[t] = state[0]
            found.append(torch.stack([outputs[t] for t in range(len(x))]))
            last.append(state)
        x = found[0] if directions == 1 else torch.cat(found, dim=-1)
    return x, [torch.stack(parts) for parts in zip(*last, strict=True)]


_STEPS: dict[Any, Step] = {
    torch.lstm: _lstm_step,
    torch.gru: _gru_step,
    torch.rnn_tanh: _tanh_step,
    torch.rnn_relu: _relu_step,
}
_PLAIN: dict[Any, Callable[..., Any]] = {
    **{func: partial(_layer_function, step) for func, step in _STEPS.items()},
    torch.lstm_cell: _lstm_cell,
    torch.gru_cell: _gru_cell,
}
