"""Recurrent layers in plain operations.

On a GPU torch evaluates the gates of a cell in one kernel (`_thnn_fused_lstm_cell`), which can be
differentiated backwards only. On a CPU `torch.lstm` has no batching rule, and hides the linear
operations in which its weights are used.

A packed sequence has its samples one after the other in one tensor, which no transformation over
samples can divide. Of a single sample it is all of its times, those after its length included, and
which of them count: a state stays as it is where they do not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

_FUSED_ON = ("cuda", "xpu")

State = tuple[Tensor, ...]
Weights = Sequence[Tensor | None]
"""Of the state: a matrix, its bias, and that of a projection where there is one."""

Step = Callable[[Tensor, State, Weights], State]
"""From `W x + b`, the state and its weights to the next state."""


class PlainRecurrent(TorchFunctionMode):
    """Within it, LSTM and GRU layers and cells on such a device are made of plain operations."""

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
    """Packed sequences of one sample, with a length that may differ under `torch.func.vmap`.

    Its calls stand for those of torch within `pack_padded_sequence`, recurrent layers and
    `pad_packed_sequence`.
    """

    def __init__(self) -> None:
        # By the id of packed data the data itself, which keeps the id its own, and which times
        # count, `[T]`.
        self._counts: dict[int, tuple[Tensor, Tensor]] = {}

    def takes(self, func: Any, args: Sequence[Any]) -> bool:
        """Whether this call packs a sequence, or takes one that was packed here."""
        if func is torch._pack_padded_sequence:
            return True
        is_of_packed = func is torch._pad_packed_sequence or func in _PACKED
        return is_of_packed and bool(args) and id(args[0]) in self._counts

    def call(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """What such a call returns; None for more samples than one, and for dropout."""
        if func is torch._pack_padded_sequence:
            return self._pack(*args, **kwargs)
        if func is torch._pad_packed_sequence:
            return self._pad(*args, **kwargs)
        return self._recurrent(func, *args, **kwargs)

    def _keep(self, data: Tensor, counts: Tensor) -> Tensor:
        self._counts[id(data)] = data, counts
        return data

    def _pack(self, x: Tensor, lengths: Tensor, batch_first: bool) -> tuple[Tensor, Tensor] | None:
        """All times `[T, F]`, and that there is one sample at each of them."""
        x = x.transpose(0, 1) if batch_first else x
        if x.shape[1] != 1 or lengths.shape != (1,):
            return None
        counts = torch.arange(len(x), device=x.device) < lengths.to(x.device)
        return self._keep(x[:, 0], counts), torch.ones(len(x), dtype=torch.int64)

    def _pad(
        self, data: Tensor, sizes: Tensor, batch_first: bool, value: float, total: int
    ) -> tuple[Tensor, Tensor]:
        """The times that count, and `value` at the others; and the length."""
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
        """The layer on this sample."""
        _, counts = self._counts[id(data)]
        states = (states,) if isinstance(states, Tensor) else states
        if (train and dropout) or states[0].shape[1] != 1:
            return None
        x = data.unsqueeze(1)
        how = (has_biases, layers, bidirectional, False, counts)
        out, last = _layers(_PACKED[func], x, states, weights, *how)
        return self._keep(out[:, 0], counts), *last


def is_recurrent(func: Any) -> bool:
    """Whether this is the function of a recurrent layer or cell."""
    return func in _PLAIN


def written_out(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """What a recurrent layer or cell returns, by plain operations.

    None for any other function, for packed sequences, for states of another number of samples than
    the inputs, and for layers with dropout in training.
    """
    plain = _PLAIN.get(func)
    return None if plain is None or not _is_fitting(*args, **kwargs) else plain(*args, **kwargs)


def _is_fitting(x: Tensor, states: Any, *others: Any, **named: Any) -> bool:
    """Whether states are of as many samples as inputs, which plain operations would broadcast.

    Of a packed sequence there is no saying, nor is it written out.
    """
    first = states if isinstance(states, Tensor) else next(iter(states), None)
    if not isinstance(first, Tensor):
        return False
    if first.ndim == x.ndim == 3:
        is_batch_first = named.get("batch_first", others[-1] if others else False)
        return bool(first.shape[1] == x.shape[0 if is_batch_first is True else 1])
    return first.shape[:-1] == x.shape[:-1]


def _lstm(
    x: Tensor,
    states: Any,
    weights: Any,
    has_biases: Any,
    layers: int = 1,
    dropout: float = 0.0,
    train: bool = False,
    bidirectional: bool = False,
    batch_first: bool = False,
) -> tuple[Tensor, Tensor, Tensor] | None:
    """As `torch.lstm`; None for packed sequences and for dropout."""
    if not isinstance(has_biases, bool) or (train and dropout):
        return None
    out, (h, c) = _layers(
        _lstm_step, x, states, weights, has_biases, layers, bidirectional, batch_first
    )
    return out, h, c


def _of_one_state(
    step: Step,
    x: Tensor,
    state: Any,
    weights: Any,
    has_biases: Any,
    layers: int = 1,
    dropout: float = 0.0,
    train: bool = False,
    bidirectional: bool = False,
    batch_first: bool = False,
) -> tuple[Tensor, Tensor] | None:
    """As `torch.gru` and `torch.rnn_tanh`, likewise."""
    if not isinstance(has_biases, bool) or (train and dropout):
        return None
    out, (h,) = _layers(step, x, (state,), weights, has_biases, layers, bidirectional, batch_first)
    return out, h


def _lstm_cell(
    x: Tensor,
    states: Any,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
) -> State:
    """As `torch.lstm_cell`."""
    return _lstm_step(F.linear(x, w_ih, b_ih), tuple(states), (w_hh, b_hh))


def _gru_cell(
    x: Tensor,
    h: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
) -> Tensor:
    """As `torch.gru_cell`."""
    return _gru_step(F.linear(x, w_ih, b_ih), (h,), (w_hh, b_hh))[0]


def _lstm_step(from_x: Tensor, state: State, weights: Weights) -> State:
    """The gates i, f, g, o; a third weight projects h (Sak et al. 2014)."""
    h, c = state
    i, f, g, o = (from_x + _linear(h, weights)).chunk(4, dim=-1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    h = o.sigmoid() * c.tanh()
    return (h if len(weights) < 3 else _linear(h, weights[2:])), c


def _gru_step(from_x: Tensor, state: State, weights: Weights) -> State:
    """The gates r, z, n, of which r acts on what the state contributes to n."""
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
    matrix, bias = (*weights, None)[:2]
    assert matrix is not None
    return F.linear(h, matrix, bias)


def _layers(
    step: Step,
    x: Tensor,
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
    has_biases: bool,
    layers: int,
    bidirectional: bool,
    batch_first: bool,
    counts: Tensor | None = None,
) -> tuple[Tensor, list[Tensor]]:
    """The outputs of the last layer at all times, and the last states `[layers·directions, …]`.

    With `counts` `[T]` states change only at times that count.
    """
    if batch_first:
        x = x.transpose(0, 1)
    directions = 2 if bidirectional else 1
    each = len(weights) // (layers * directions)
    last: list[State] = []
    for layer in range(layers):
        found = []
        for direction in range(directions):
            k = layer * directions + direction
            w_ih, w_hh, *others = weights[k * each : (k + 1) * each]
            b_ih, b_hh, *projection = others if has_biases else [None, None, *others]
            of_state = [w_hh, b_hh, *projection]
            # Not one index for each time: its derivative is as large as all times together.
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
    finals = [torch.stack(parts) for parts in zip(*last, strict=True)]
    return (x.transpose(0, 1) if batch_first else x), finals


_PACKED: dict[Any, Step] = {
    torch.lstm: _lstm_step,
    torch.gru: _gru_step,
    torch.rnn_tanh: _tanh_step,
    torch.rnn_relu: _relu_step,
}
_PLAIN: dict[Any, Callable[..., Any]] = {
    torch.lstm: _lstm,
    torch.gru: partial(_of_one_state, _gru_step),
    torch.rnn_tanh: partial(_of_one_state, _tanh_step),
    torch.rnn_relu: partial(_of_one_state, _relu_step),
    torch.lstm_cell: _lstm_cell,
    torch.gru_cell: _gru_cell,
}
