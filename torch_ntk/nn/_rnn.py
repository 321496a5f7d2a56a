"""The simple recurrent network in NTK parameterization."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from .._checks import check_choice, value_error
from ._scaled_conv import Device
from ._scaling import (
    NormalParameters,
    check_bias,
    check_dtype,
    check_sigma_b,
    check_sigma_w,
    check_size,
    sums_in_float16,
    weight_scale,
)

NONLINEARITIES = ("tanh", "relu", "erf")


class NTKRNN(NormalParameters, nn.RNN):
    r"""`nn.RNN` in NTK parameterization.

    With n = `hidden_size`, m inputs, the nonlinearity φ and `h_0 = 0`,

        z_t = sigma_w/√n · W_hh h_{t-1} + sigma_u/√m · W_ih x_t + sigma_b/√2 · (b_ih + b_hh)
        h_t = φ(z_t),                                       W, b ~ N(0, 1)

    with the same weights at every time. The two biases of `nn.RNN` act together as one of scale
    `sigma_b`. Source: Alemohammad, Wang, Balestriero and Baraniuk 2021, "The Recurrent Neural
    Tangent Kernel".

    `isinstance(layer, nn.RNN)` holds, and the attributes, state-dict keys and shapes are those of
    `nn.RNN`. The forward is a loop over the times in Python. Therefore it can be differentiated
    twice, in forward mode and under `vmap`, and structured kernels find every use of a weight.

    Args:
        input_size: The number m of features of the input at each time.
        hidden_size: The number n of hidden units.
        num_layers: The number of recurrent layers; each takes the outputs of the layer before.
        nonlinearity: φ: `"tanh"`, `"relu"` or `"erf"`, whose kernels are known in closed form.
        bias: Whether biases are added.
        batch_first: Whether the samples are on the first axis, `[N, T, …]`, instead of `[T, N, …]`.
        dropout: The probability of dropout between layers, in training mode.
        bidirectional: Whether each layer has a second network, with its own weights, that reads the
            times backwards; its outputs are concatenated to those of the first.
        device: The device of the parameters.
        dtype: The real floating-point dtype of the parameters.
        sigma_w: The scale of the recurrent weights; above 0.
        sigma_u: The scale of the input weights; above 0.
        sigma_b: The standard deviation of both scaled biases together; at least 0.

    Shape:
        The input is `[T, N, m]`, `[N, T, m]` with `batch_first`, or `[T, m]`. The initial hidden
        states are `[layers · directions, N, n]`, and 0 by default. The results are the outputs of
        the last layer at all times, `[T, N, directions · n]` or with the axes of the input, and the
        last hidden state of every layer and direction, `[layers · directions, N, n]`. For a
        `PackedSequence` the outputs are packed too, and each last hidden state is the one at the
        end of its own sequence.

    Raises:
        TypeError: An argument has the wrong type.
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
        check_choice("nonlinearity", nonlinearity, NONLINEARITIES)
        init: Any = super().__init__
        init(
            check_size("input_size", input_size, 1),
            check_size("hidden_size", hidden_size, 1),
            check_size("num_layers", num_layers, 1),
            "tanh" if nonlinearity == "erf" else nonlinearity,  # nn.RNN does not accept "erf"
            check_bias(bias),
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
        """The factors by which the parameters are multiplied, by name."""
        return rnn_scales(self, self.sigma_w, self.sigma_u, self.sigma_b)

    def forward(  # type: ignore[override]
        self, input: Tensor, hx: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the outputs at all times, and the last hidden states."""
        if not torch.jit.is_scripting():  # type: ignore[attr-defined]
            given: object = input
            if isinstance(given, PackedSequence):
                return self._packed(given, hx)  # type: ignore[no-any-return]
            self._check_input(input, hx)
        batched = input.dim() == 3
        x = input if batched else input.unsqueeze(1)
        x = x.transpose(0, 1) if batched and self.batch_first else x
        if hx is not None and not batched:
            hx = hx.unsqueeze(1)
        output, last = self._layers(x, hx, None)
        if not batched:
            return output.squeeze(1), last.squeeze(1)
        return (output.transpose(0, 1) if self.batch_first else output), last

    @torch.jit.unused
    def _packed(self, packed: PackedSequence, hx: Tensor | None) -> Any:
        """Return what `forward` returns for packed sequences, the longest first, as in `nn.RNN`."""
        data, sizes, order, back = packed
        self._check_states(hx, (int(sizes[0]),))
        if hx is not None and order is not None:
            hx = hx.index_select(1, order)
        if data.dim() != 2 or data.shape[1] != self.input_size:
            raise value_error("input", f"packed from features of {self.input_size}", data)
        outputs, last = self._layers(data, hx, sizes.tolist())
        if back is not None:
            last = last.index_select(1, back)
        return PackedSequence(outputs, sizes, order, back), last

    def _layers(
        self, x: Tensor, hx: Tensor | None, sizes: list[int] | None
    ) -> tuple[Tensor, Tensor]:
        """Run all layers; return outputs and last hidden states `[layers · directions, N, n]`.

        Args:
            x: The input `[T, N, m]`; with `sizes`, the samples of all times in one axis, `[…, m]`.
            hx: The initial hidden states.
            sizes: For a packed sequence, the number of samples at each time, in descending order.
        """
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            weights: list[Tensor] = self._flat_weights  # type: ignore[assignment]
        else:  # `_flat_weights` does not follow functional_call
            weights = [getattr(self, name) for name in self._flat_weights_names]
        directions = 2 if self.bidirectional else 1
        count = len(weights) // (directions * self.num_layers)
        ends: list[Tensor] = []
        for layer in range(self.num_layers):
            if layer > 0:
                x = F.dropout(x, self.dropout, self.training)
            outputs: list[Tensor] = []
            for backwards in range(directions):
                number = len(ends)
                found, end = self._through(
                    x,
                    None if hx is None else hx[number],
                    weights[number * count : (number + 1) * count],
                    backwards == 1,
                    sizes,
                )
                outputs.append(found)
                ends.append(end)
            x = torch.cat(outputs, -1)
        return x, torch.stack(ends)

    def _through(
        self,
        x: Tensor,
        start: Tensor | None,
        weights: list[Tensor],
        backwards: bool,
        sizes: list[int] | None,
    ) -> tuple[Tensor, Tensor]:
        """Run one direction of one layer.

        It returns all hidden states, with the axes of x, and the last ones.
        """
        driving, memory = weights[0], weights[1]
        driven = _scaled(x, driving, weight_scale(self.sigma_u, driving.shape[1]))
        for bias in weights[2:]:
            driven = driven + (bias * (self.sigma_b / math.sqrt(2.0))).to(driven.dtype)
        scale = weight_scale(self.sigma_w, memory.shape[1])
        times = list(driven.unbind()) if sizes is None else list(torch.split(driven, sizes))
        if backwards:
            times = times[::-1]
        h = start if start is None or sizes is None else start[: times[0].shape[0]]
        states: list[Tensor] = []
        ended: list[Tensor] = []
        for z in times:
            if h is not None:
                if sizes is not None:
                    before, now = h.shape[0], z.shape[0]
                    if now < before:  # some sequences end here
                        ended.append(h[now:])
                        h = h[:now]
                    elif start is None:  # backwards, some sequences begin here
                        h = F.pad(h, (0, 0, 0, now - before))
                    else:
                        h = torch.cat([h, start[before:now]])
                z = z + _scaled(h, memory, scale)
            h = nonlinear(self.nonlinearity, z)
            states.append(h)
        if backwards:
            states = states[::-1]
        ended.append(states[0] if backwards else states[-1])
        last = torch.cat(ended[::-1])
        return (torch.stack(states) if sizes is None else torch.cat(states)), last

    @torch.jit.unused
    def _check_input(self, input: Tensor, hx: Tensor | None) -> None:
        if input.dim() not in (2, 3) or input.shape[-1] != self.input_size or 0 in input.shape:
            raise value_error(
                "input", f"of shape [T, N, {self.input_size}] or [T, {self.input_size}]", input
            )
        samples = (input.shape[0 if self.batch_first else 1],) if input.dim() == 3 else ()
        self._check_states(hx, samples)

    @torch.jit.unused
    def _check_states(self, hx: Tensor | None, samples: tuple[int, ...]) -> None:
        if hx is None:
            return
        count = self.num_layers * (2 if self.bidirectional else 1)
        wanted = (count, *samples, self.hidden_size)
        if tuple(hx.shape) != wanted:
            raise value_error("hx", f"of shape {wanted}", hx, "One state for each layer.")

    def extra_repr(self) -> str:
        """The text of `nn.RNN`, the nonlinearity, and the scales."""
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


def nonlinear(name: str, z: Tensor) -> Tensor:
    """φ(z) for the nonlinearity of this name."""
    if name == "relu":
        return torch.relu(z)
    return torch.erf(z) if name == "erf" else torch.tanh(z)


def _scaled(x: Tensor, weight: Tensor, scale: float) -> Tensor:
    if sums_in_float16(weight):
        return F.linear(x, weight * scale)
    return F.linear(x, weight) * scale
