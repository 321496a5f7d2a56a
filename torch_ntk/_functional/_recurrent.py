"""Recurrent layers in plain operations.

On a GPU torch evaluates the gates of a cell in one kernel (`_thnn_fused_lstm_cell`), which can be
differentiated backwards only. On a CPU `torch.lstm` has no batching rule, and hides the linear
operations in which its weights are used.
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
) -> tuple[Tensor, list[Tensor]]:
    """The outputs of the last layer at all times, and the last states `[layers·directions, …]`."""
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
                state = step(from_x[t], state, of_state)
                outputs[t] = state[0]
            found.append(torch.stack([outputs[t] for t in range(len(x))]))
            last.append(state)
        x = found[0] if directions == 1 else torch.cat(found, dim=-1)
    finals = [torch.stack(parts) for parts in zip(*last, strict=True)]
    return (x.transpose(0, 1) if batch_first else x), finals


_PLAIN: dict[Any, Callable[..., Any]] = {
    torch.lstm: _lstm,
    torch.gru: partial(_of_one_state, _gru_step),
    torch.rnn_tanh: partial(_of_one_state, _tanh_step),
    torch.rnn_relu: partial(_of_one_state, _relu_step),
    torch.lstm_cell: _lstm_cell,
    torch.gru_cell: _gru_cell,
}
