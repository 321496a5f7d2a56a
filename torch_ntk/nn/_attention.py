"""Self-attention in NTK parameterization."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._checks import check_choice, value_error
from ._scaled_conv import Device
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

ATTENTIONS = ("softmax", "identity", "relu", "abs")
SCALINGS = ("linear", "sqrt")


class NTKSelfAttention(NormalParameters):
    r"""Self-attention in NTK parameterization, with an infinite-width limit.

    With `C = embed_dim`, H heads of size d, which is `C / H` by default, and `W ~ N(0, 1)`, the
    head h computes

        Q = sigma_query/√C · x W_Qᵀ,    K = sigma_key/√C · x W_Kᵀ,    V = sigma_value/√C · x W_Vᵀ
        A = ζ(Q Kᵀ / d)                 for scaling="linear", where W_Q = W_K
        A = ζ(Q Kᵀ / √d)                for scaling="sqrt"

    and the layer returns `sigma_out/√(H d) · [A_1 V_1, …, A_H V_H] W_Oᵀ + sigma_b · b`. The
    function ζ of the attention is the softmax over the attended positions, or the identity, ReLU or
    absolute value of each entry.

    - `scaling="linear"`: as the width grows, `Q Kᵀ / d` converges to the covariance of the sample's
      features, so that every ζ has a limit. Keys and queries must share their weights, because this
      covariance would be 0 otherwise.
    - `scaling="sqrt"`, the usual scaling: `Q Kᵀ / √d` stays random and Gaussian. With ζ = identity
      there is a limit of infinitely many heads; with the others `analytic_ntk` refuses the layer.

    Positional encodings are added to the input: `attention(x + encoding)`. Source: Hron, Bahri,
    Sohl-Dickstein and Novak 2020, "Infinite attention: NNGP and NTK for deep attention networks".

    Args:
        embed_dim: The number C of features of the input at each position.
        out_dim: The number of features of the output.
        num_heads: The number H of heads; a divisor of C if `head_dim` is not given.
        head_dim: The size d of a head. `analytic_ntk` needs it for attention on the network's own
            inputs: their number of features is fixed, so that d is the width that grows.
        attention: ζ: `"softmax"`, `"identity"`, `"relu"` or `"abs"`.
        scaling: `"linear"` or `"sqrt"`.
        sigma_query: The scale of the queries; above 0, like the next three.
        sigma_key: The scale of the keys.
        sigma_value: The scale of the values.
        sigma_out: The scale of the output weights.
        bias: Whether the layer adds `sigma_b · b` at the end.
        sigma_b: The standard deviation of the scaled bias; at least 0.
        device: The device of the parameters.
        dtype: The real floating-point dtype of the parameters.

    Attributes:
        query_weight: `[H d, C]`; None with linear scaling, where queries use `key_weight`.
        key_weight: `[H d, C]`; head h has the d rows from `h·d` on.
        value_weight: `[H d, C]`, with the same order of rows.
        out_weight: `[out_dim, H d]`.
        bias: `[out_dim]`, or None.

    Shape:
        `[N, T, C]` to `[N, T, out_dim]`. A `key_padding_mask` `[N, T]` is True at positions that
        are not attended to. There may be any number of axes in place of N.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument is out of its range or not among its choices, or `num_heads` does
            not divide `embed_dim` and `head_dim` is not given.

    Example:
        >>> layer = NTKSelfAttention(8, 5, num_heads=2, sigma_out=1.5)
        >>> layer(torch.ones(3, 7, 8)).shape
        torch.Size([3, 7, 5])
    """

    if TYPE_CHECKING:  # torch.jit.script fails on annotations that are strings
        query_weight: nn.Parameter | None
        bias: nn.Parameter | None

    def __init__(
        self,
        embed_dim: int,
        out_dim: int,
        *,
        num_heads: int = 1,
        head_dim: int | None = None,
        attention: Literal["softmax", "identity", "relu", "abs"] = "softmax",
        scaling: Literal["linear", "sqrt"] = "linear",
        sigma_query: float = 1.0,
        sigma_key: float = 1.0,
        sigma_value: float = 1.0,
        sigma_out: float = 1.0,
        bias: bool = False,
        sigma_b: float = 0.1,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_dtype(dtype)
        self.embed_dim = check_size("embed_dim", embed_dim, 1)
        self.out_dim = check_size("out_dim", out_dim)
        self.num_heads = check_size("num_heads", num_heads, 1)
        self.head_dim = None if head_dim is None else check_size("head_dim", head_dim, 1)
        if head_dim is None and embed_dim % num_heads:
            raise value_error(
                "num_heads",
                f"a divisor of embed_dim, {embed_dim}",
                num_heads,
                "Or give the size of a head, head_dim=.",
            )
        self.attention = check_choice("attention", attention, ATTENTIONS)
        self.scaling = check_choice("scaling", scaling, SCALINGS)
        self.sigma_query = check_sigma_w(sigma_query, "sigma_query")
        self.sigma_key = check_sigma_w(sigma_key, "sigma_key")
        self.sigma_value = check_sigma_w(sigma_value, "sigma_value")
        self.sigma_out = check_sigma_w(sigma_out, "sigma_out")
        self.sigma_b = check_sigma_b(sigma_b)
        check_bias(bias)

        def parameter(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(*shape, device=device, dtype=dtype))

        tied = scaling == "linear"
        inner = embed_dim if head_dim is None else num_heads * head_dim
        self.register_parameter("query_weight", None if tied else parameter(inner, embed_dim))
        self.key_weight = parameter(inner, embed_dim)
        self.value_weight = parameter(inner, embed_dim)
        self.out_weight = parameter(out_dim, inner)
        self.register_parameter("bias", parameter(out_dim) if bias else None)
        self.reset_parameters()

    def parameter_scales(self) -> dict[str, float]:
        """The factors by which the parameters are multiplied, by name.

        If keys and queries share their weights, only the product of both has a definite scale; the
        square root of that is given for the weights.
        """
        tied = math.sqrt(self.sigma_query * self.sigma_key)
        sigmas = {
            "query_weight": self.sigma_query,
            "key_weight": tied if self.query_weight is None else self.sigma_key,
            "value_weight": self.sigma_value,
        }
        scales = {name: weight_scale(sigma, self.embed_dim) for name, sigma in sigmas.items()}
        out = weight_scale(self.sigma_out, self.out_weight.shape[1])
        return {**scales, "out_weight": out, "bias": self.sigma_b}

    def forward(self, input: Tensor, key_padding_mask: Tensor | None = None) -> Tensor:
        """Map `[..., T, embed_dim]` to `[..., T, out_dim]`."""
        keys = self._heads(input, self.key_weight, self.sigma_key)
        query_weight = self.query_weight
        if query_weight is None:
            queries = keys * (self.sigma_query / self.sigma_key)
        else:
            queries = self._heads(input, query_weight, self.sigma_query)
        values = self._heads(input, self.value_weight, self.sigma_value)
        head_dim = self.head_dim
        size = self.embed_dim // self.num_heads if head_dim is None else head_dim
        norm = float(size) if self.scaling == "linear" else math.sqrt(size)
        attended = self._attention((queries / norm) @ keys.transpose(-2, -1), key_padding_mask)
        heads = (attended @ values).transpose(-3, -2).flatten(-2)
        scale, bias = weight_scale(self.sigma_out, self.num_heads * size), self.bias
        if sums_in_float16(self.out_weight):
            output = F.linear(heads, self.out_weight * scale)
            return scale_and_shift(output, 1.0, bias, self.sigma_b)
        return scale_and_shift(F.linear(heads, self.out_weight), scale, bias, self.sigma_b)

    def _heads(self, x: Tensor, weight: Tensor, sigma: float) -> Tensor:
        """Queries, keys or values of every head, `[..., H, T, d]`."""
        scale = weight_scale(sigma, self.embed_dim)
        if sums_in_float16(weight):
            mapped = F.linear(x, weight * scale)
        else:
            mapped = F.linear(x, weight) * scale
        heads: Tensor = mapped.unflatten(-1, [self.num_heads, -1])  # type: ignore[no-untyped-call]
        return heads.transpose(-3, -2)

    def _attention(self, products: Tensor, ignored: Tensor | None) -> Tensor:
        """ζ of the products `[..., H, T, T]`, 0 at keys where the mask `[..., T]` is True."""
        if ignored is not None:
            out = ignored.unsqueeze(-2).unsqueeze(-2)
            products = products.masked_fill(
                out, float("-inf") if self.attention == "softmax" else 0.0
            )
        if self.attention == "softmax":
            return products.softmax(-1)
        if self.attention == "relu":
            return products.relu()
        return products.abs() if self.attention == "abs" else products

    def extra_repr(self) -> str:
        """The arguments and the scales, for `repr`."""
        scales = ("query", "key", "value", "out")
        sigmas = ", ".join(f"sigma_{n}={getattr(self, f'sigma_{n}'):g}" for n in scales)
        size = "" if self.head_dim is None else f"head_dim={self.head_dim}, "
        bias = "" if self.bias is None else f", bias=True, sigma_b={self.sigma_b:g}"
        return (
            f"{self.embed_dim}, {self.out_dim}, num_heads={self.num_heads}, {size}"
            f"attention={self.attention!r}, scaling={self.scaling!r}, {sigmas}{bias}"
        )
