"""The fully connected layer in NTK parameterization."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ._scaling import (
    NormalParameters,
    check_bias,
    check_dtype,
    check_sigma_b,
    check_sigma_w,
    check_size,
    scale_and_shift,
    sums_in_float16,
    weight_scale,
)


class NTKLinear(NormalParameters, nn.Linear):
    r"""`nn.Linear` in NTK parameterization.

    `y = sigma_w / sqrt(in_features) · x Wᵀ + sigma_b · b`, with every entry of `W` and `b` drawn
    from N(0, 1). The scale is part of the function instead of the random weights. Therefore
    gradient descent with one learning rate of order 1 has a limit as `in_features` grows, and the
    empirical tangent kernel converges to the infinite-width one.

    Source: Jacot, Gabriel and Hongler 2018, "Neural Tangent Kernel", section 4; Lee et al. 2019,
    "Wide Neural Networks of Any Depth Evolve as Linear Models", equation 1.

    `isinstance(layer, nn.Linear)` holds, and the attributes, state-dict keys and shapes are those
    of `nn.Linear`. Note that the state dict of a *trained* `nn.Linear` can be loaded but gives
    another function: convert it by `torch_ntk.ntk_parameterize(model, mode="preserve")`.

    Args:
        in_features: Size of each input sample, at least 1.
        out_features: Size of each output sample, at least 0.
        bias: Whether the layer adds `sigma_b · b`.
        sigma_w: Standard deviation of the scaled weights times `sqrt(in_features)`; above 0.
            √2 keeps the scale of activations through ReLU.
        sigma_b: Standard deviation of the scaled bias; at least 0.
        device: The device of the parameters.
        dtype: The real floating-point dtype of the parameters. In float16 the weight is scaled
            instead of the output, which neither overflows nor underflows; the function is the same.

    Shape:
        `[..., in_features]` to `[..., out_features]`.

    Raises:
        TypeError: An argument has the wrong type (for example, `sigma_w` by position), or `dtype`
            is complex or integer.
        ValueError: `sigma_w` is not a finite number above 0, `sigma_b` not one of at least 0, or
            a size is too small.

    Example:
        >>> import torch
        >>> layer = NTKLinear(4, 2, sigma_w=2**0.5, sigma_b=0.1)
        >>> x = torch.ones(3, 4)
        >>> expected = (2 / 4) ** 0.5 * x @ layer.weight.T + 0.1 * layer.bias
        >>> torch.allclose(layer(x), expected)
        True
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        sigma_w: float = 1.0,
        sigma_b: float = 0.1,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        sigma_w = check_sigma_w(sigma_w)
        sigma_b = check_sigma_b(sigma_b)
        check_dtype(dtype)
        super().__init__(
            check_size("in_features", in_features, 1),
            check_size("out_features", out_features),
            check_bias(bias),
            device=device,
            dtype=dtype,
        )
        self.sigma_w = sigma_w
        self.sigma_b = sigma_b

    @property
    def fan_in(self) -> int:
        """The number of inputs over which each output sums: `in_features`."""
        return self.in_features

    @property
    def weight_scale(self) -> float:
        """The factor `sigma_w / sqrt(fan_in)` before `x Wᵀ`."""
        return weight_scale(self.sigma_w, self.fan_in)

    def forward(self, input: Tensor) -> Tensor:
        """Map `[..., in_features]` to `[..., out_features]`."""
        if sums_in_float16(self.weight):
            bias = None if self.bias is None else self.bias * self.sigma_b
            return F.linear(input, self.weight * self.weight_scale, bias)
        output = F.linear(input, self.weight)
        return scale_and_shift(output, self.weight_scale, self.bias, self.sigma_b)

    def extra_repr(self) -> str:
        """The text of `nn.Linear`, and the two scales."""
        return f"{super().extra_repr()}, sigma_w={self.sigma_w:g}, sigma_b={self.sigma_b:g}"
