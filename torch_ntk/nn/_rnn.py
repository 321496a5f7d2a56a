"""The recurrent network in NTK parameterization."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from .._checks import check_choice, type_error, value_error
from ._scaled_conv import Device
from ._scaling import (
    check_dtype,
    check_flag,
    check_sigma_b,
    check_sigma_w,
    check_size,
    draw_normal_,
    sums_in_float16,
    weight_scale,
)

NONLINEARITIES: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "relu": torch.relu,
    "erf": torch.erf,
}


class NTKRNN(nn.RNN):
    r"""`nn.RNN` in NTK parameterization.

    With n = `hidden_size`, m inputs, the nonlinearity φ and `h_0 = 0`,

        z_t = sigma_w/√n · W_hh h_{t-1} + sigma_u/√m · W_ih x_t + sigma_b/√2 · (b_ih + b_hh)
        h_t = φ(z_t),                                       W, b ~ N(0, 1)

    with the same weights at every time. The two biases of `nn.RNN` act together as one of scale
    `sigma_b`. Source: Alemohammad, Wang, Balestriero and Baraniuk 2021, "The Recurrent Neural
    Tangent Kernel".

    `isinstance(layer, nn.RNN)` holds, and the attributes, state-dict keys and shapes are those of
    `nn.RNN`. A call goes through the times one by one in Python: it can be differentiated twice, in
    forward mode and under `vmap`, and every use of a weight is seen by the structured kernels.

    Args:
        input_size: Features of the input at each time.
        hidden_size: n.
        num_layers: Recurrent layers, each on the outputs of the one before.
        nonlinearity: φ: `"tanh"`, `"relu"` or `"erf"`, whose kernels are known in closed form.
        bias: Whether biases are added.
        batch_first: Whether the samples are on the first axis, `[N, T, …]`, instead of `[T, N, …]`.
        dropout: Probability of dropout between layers, in training mode.
        bidirectional: Whether there is a second network, with weights of its own, that goes
            through the times backwards; its outputs stand beside those of the first.
        device: Where the parameters are made.
        dtype: Type of the parameters, real floating-point.
        sigma_w: Scale of the recurrent weights; above 0.
        sigma_u: Scale of the input's weights; above 0.
        sigma_b: Standard deviation of both biases together; at least 0.

    Shape:
        `[T, N, m]`, or `[N, T, m]` with `batch_first`, or `[T, m]`; and the hidden states at the
        start `[layers · directions, N, n]`, 0 without. Returns the outputs of the last layer at all
        times, `[T, N, directions · n]` or as the input, and the last hidden state of every layer
        and direction, `[layers · directions, N, n]`.

    Raises:
        TypeError: An argument is of the wrong kind, or the input is a `PackedSequence`.
        ValueError: An argument is out of its range, or an input has the wrong shape.

    Example:
        >>> rnn = NTKRNN(3, 16, nonlinearity="erf", batch_first=True, sigma_w=1.2)
        >>> outputs, last = rnn(torch.ones(2, 5, 3))
        >>> outputs.shape, last.shape
        (torch.Size([2, 5, 16]), torch.Size([1, 2, 16]))
        >>> torch.equal(outputs[:, -1], last[0])
        True
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: Literal["tanh", "relu", "erf"] = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: Device = None,
        dtype: torch.dtype | None = None,
        *,
        sigma_w: float = 1.0,
        sigma_u: float = 1.0,
        sigma_b: float = 0.1,
    ) -> None:
        sigma_w, sigma_b = check_sigma_w(sigma_w), check_sigma_b(sigma_b)
        sigma_u = check_sigma_w(sigma_u, "sigma_u")
        check_dtype(dtype)
        check_choice("nonlinearity", nonlinearity, tuple(NONLINEARITIES))
        init: Any = super().__init__
        init(
            check_size("input_size", input_size, 1),
            check_size("hidden_size", hidden_size, 1),
            check_size("num_layers", num_layers, 1),
            "tanh" if nonlinearity == "erf" else nonlinearity,  # nn.RNN knows no other
            check_flag("bias", bias),
            batch_first,
            dropout,
            bidirectional,
            device=device,
            dtype=dtype,
        )
        if nonlinearity == "erf":
            self.nonlinearity, self.mode = nonlinearity, "RNN_ERF"
        self.sigma_w, self.sigma_u, self.sigma_b = sigma_w, sigma_u, sigma_b

    def parameter_scales(self) -> dict[str, float]:
        """What each parameter is multiplied by, under its name."""
        return rnn_scales(self, self.sigma_w, self.sigma_u, self.sigma_b)

    def reset_parameters(self) -> None:
        """Draw every weight and bias anew from N(0, 1)."""
        for parameter in self.parameters(recurse=False):
            draw_normal_(parameter)

    def forward(  # type: ignore[override]  # of no PackedSequence
        self, input: Tensor, hx: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The outputs at all times, and the last hidden states."""
        self._check_input(input, hx)
        batched = input.dim() == 3
        x = input if batched else input.unsqueeze(1)
        x = x.transpose(0, 1) if batched and self.batch_first else x
        starts: list[Tensor | None] = [None for _ in range(2 * self.num_layers)]
        if hx is not None:
            starts = list((hx if batched else hx.unsqueeze(1)).unbind())
        directions = ("", "_reverse") if self.bidirectional else ("",)
        ends: list[Tensor] = []
        for layer in range(self.num_layers):
            if layer > 0:
                x = F.dropout(x, self.dropout, self.training)
            outputs = []
            for direction in directions:
                states = self._through(x, starts[len(ends)], f"l{layer}{direction}")
                ends.append(states[-1])
                outputs.append(torch.stack(states[::-1] if direction else states))
            x = torch.cat(outputs, -1)
        output, last = x, torch.stack(ends)
        if not batched:
            return output.squeeze(1), last.squeeze(1)
        return (output.transpose(0, 1) if self.batch_first else output), last

    def _through(self, x: Tensor, start: Tensor | None, suffix: str) -> list[Tensor]:
        """The hidden states `[N, n]` in the order in which they are reached."""
        scales = self.parameter_scales()
        weight, name = getattr(self, f"weight_hh_{suffix}"), f"weight_hh_{suffix}"
        driven = _scaled(x, getattr(self, f"weight_ih_{suffix}"), scales[f"weight_ih_{suffix}"])
        if self.bias:
            for bias in (f"bias_ih_{suffix}", f"bias_hh_{suffix}"):
                driven = driven + (getattr(self, bias) * scales[bias]).to(driven.dtype)
        times = driven.unbind()
        phi = NONLINEARITIES[self.nonlinearity]
        h, states = start, []
        for z in reversed(times) if suffix.endswith("_reverse") else times:
            h = phi(z if h is None else z + _scaled(h, weight, scales[name]))
            states.append(h)
        return states

    def _check_input(self, input: Tensor, hx: Tensor | None) -> None:
        if isinstance(input, PackedSequence):
            raise type_error(
                "input",
                "a tensor",
                input,
                "Pad the sequences, torch.nn.utils.rnn.pad_packed_sequence(input), and take the "
                "outputs at the end of each.",
            )
        if input.dim() not in (2, 3) or input.shape[-1] != self.input_size or 0 in input.shape:
            raise value_error(
                "input", f"of shape [T, N, {self.input_size}] or [T, {self.input_size}]", input
            )
        if hx is None:
            return
        samples = (input.shape[0 if self.batch_first else 1],) if input.dim() == 3 else ()
        count = self.num_layers * (2 if self.bidirectional else 1)
        wanted = (count, *samples, self.hidden_size)
        if tuple(hx.shape) != wanted:
            raise value_error("hx", f"of shape {wanted}", hx, "One state for each layer.")

    def extra_repr(self) -> str:
        """The line of `nn.RNN`, the nonlinearity, and the scales."""
        line: str = super().extra_repr()
        return (
            f"{line}, nonlinearity={self.nonlinearity!r}, sigma_w={self.sigma_w:g}, "
            f"sigma_u={self.sigma_u:g}, sigma_b={self.sigma_b:g}"
        )


def rnn_scales(rnn: nn.RNN, sigma_w: float, sigma_u: float, sigma_b: float) -> dict[str, float]:
    """The scale of each parameter of an `nn.RNN`, under its name."""
    scales = {}
    for name, parameter in rnn.named_parameters(recurse=False):
        if name.startswith("bias"):
            scales[name] = sigma_b / math.sqrt(2)
        else:
            sigma = sigma_u if name.startswith("weight_ih") else sigma_w
            scales[name] = weight_scale(sigma, parameter.shape[1])
    return scales


def _scaled(x: Tensor, weight: Tensor, scale: float) -> Tensor:
    if sums_in_float16(weight):
        return F.linear(x, weight * scale)
    return F.linear(x, weight) * scale
