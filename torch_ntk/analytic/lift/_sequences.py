"""Layers on sequences `[N, T, C]`: self-attention, and recurrent layers."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor

from ...activations import dual_activation
from ...nn import NTKRNN, NTKSelfAttention
from ...nn._rnn import nonlinear
from ..operations import ONE, Affine, Attention, AttentionWeights, ManyHeads, Recurrence, taps
from ._arrange import rearranged
from ._builder import Builder
from ._elementwise import activation
from ._layers import check_channels
from ._values import Data, Features, Joined, Layout, Value, is_trained, sample_shape


def self_attention(
    b: Builder, module: NTKSelfAttention, x: Any, key_padding_mask: Any = None
) -> Value:
    """Read `NTKSelfAttention` with infinite widths and, for "sqrt", infinitely many heads."""
    what = f"NTKSelfAttention({module.embed_dim}, {module.out_dim}, …)"
    shape = _sequence(b, what, x, module.embed_dim)
    if isinstance(x, Data) and module.head_dim is None:
        raise b.refusal(
            f"{what} on the inputs themselves",
            "Its heads have as many features as the inputs, which do not grow with the width, so "
            "that its attention weights stay random and its outputs are not Gaussian.",
            "Pass the size of its heads, head_dim=, or put an NTKLinear before it.",
        )
    if module.scaling == "sqrt" and module.attention != "identity":
        raise b.refusal(
            f"{what} with scaling='sqrt' and attention={module.attention!r}",
            "Divided by the root of their dimension, the products of keys and queries stay random "
            f"however wide the network is, and the mean of their {module.attention} over "
            "infinitely many heads has no closed form.",
            "Use scaling='linear', which ties keys and queries, or attention='identity'.",
        )
    v = b.value(x, what, axis=1)
    mask = () if key_padding_mask is None else (_mask(b, what, key_padding_mask, shape[0]),)
    looking = module.sigma_query**2 * module.sigma_key**2
    values = module.sigma_value**2 * module.sigma_out**2
    trained = is_trained(module.value_weight) + is_trained(module.out_weight)
    shift = 0.0 if module.bias is None else module.sigma_b**2
    rest = shift, shift * is_trained(module.bias)
    layer = b.layer(module)
    operation: Attention | ManyHeads
    if module.scaling == "linear":
        scale = module.sigma_query * module.sigma_key
        zeta: Any = module.attention
        weigh = AttentionWeights(zeta, scale, shape[0])
        weights = b.step(weigh, (v, *mask), Layout(1))
        operation = Attention(values, rest[0], values * trained, rest[1])
        inputs: tuple[Value, ...] = (v, weights)
    else:
        trained += is_trained(module.query_weight) + is_trained(module.key_weight)
        a = values * looking
        operation = ManyHeads(a, rest[0], a * trained, rest[1])
        inputs = (v, *mask)
    return b.layer_step(operation, inputs, layer, Layout(module.out_dim, v.spatial, 1))


def recurrent(
    b: Builder, module: NTKRNN, x: Any, hx: Any = None
) -> tuple[Features, tuple[Features, ...]]:
    """Read `NTKRNN`: return all outputs, and the last state of each layer and direction."""
    what = f"NTKRNN({module.input_size}, {module.hidden_size}, …)"
    if not module.batch_first:
        raise b.refusal(
            what, "The samples must be on the first axis.", "Build it with batch_first=True."
        )
    if hx is not None:
        raise b.refusal(
            f"{what} with given hidden states",
            "Its kernel is known for initial states of 0.",
            "Omit them.",
        )
    length = _sequence(b, what, x, module.input_size)[0]
    ends: list[Features] = []
    for layer in range(module.num_layers):
        outputs = []
        for direction in ("", "_reverse") if module.bidirectional else ("",):
            states = _one_direction(b, module, x, length, f"l{layer}{direction}")
            outputs.append(states)
            last = 0 if direction else length - 1
            ends.append(rearranged(b, states, partial(_at, last), "a last hidden state"))
        x = outputs[0] if len(outputs) == 1 else Joined(tuple(outputs))  # type: ignore[arg-type]
    return x, tuple(ends)


def _at(time: int, states: Tensor) -> Tensor:
    return states[:, time]


def _one_direction(b: Builder, module: NTKRNN, x: Any, length: int, suffix: str) -> Features:
    """Return the hidden states of one layer and direction at all times."""
    names = ("weight_ih_", "weight_hh_", "bias_ih_", "bias_hh_")
    driving, memory, *biases = (getattr(module, f"{name}{suffix}", None) for name in names)
    shift = module.sigma_b**2 if module.bias else 0.0
    driven = Affine(
        taps(length, 1),
        ONE,
        module.sigma_u**2,
        shift,
        module.sigma_u**2 * is_trained(driving),
        shift * sum(map(is_trained, biases)) / 2,
    )
    parameters = [p for p in (driving, *biases) if p is not None]
    layout = Layout(module.hidden_size, (length,), 1)
    u = b.affine(x, driven, b.layer_of(parameters), layout, "NTKRNN")
    assert memory is not None
    name = module.nonlinearity
    a = module.sigma_w**2
    operation = Recurrence(dual_activation(name), a, a * is_trained(memory), "reverse" in suffix)
    z = b.layer_step(operation, (u,), b.layer_of([memory]))
    return activation(b, z, partial(nonlinear, name), name)


def _sequence(b: Builder, what: str, x: Any, features: int) -> tuple[int, ...]:
    """Return the shape of a sample, `(T, C)`, after checking it."""
    shape = sample_shape(x)
    if len(shape) != 2 or not (isinstance(x, Data) or x.axis == 1):
        raise b.refusal(
            f"{what} on samples of shape {shape}",
            "It needs [N, T, C]: one axis of positions, and the features on the last axis.",
            "Flatten the positions and permute the axes, x.flatten(2).transpose(1, 2).",
        )
    check_channels(b, what, features, shape[1])
    return shape


def _mask(b: Builder, what: str, mask: Any, length: int) -> Value:
    """Return a mask `[N, T]`, True at positions without attention, as numbers that are 0 there."""
    if not isinstance(mask, Data) or not mask.is_tensor or mask.first.ndim != 2:
        raise b.refusal(
            f"{what} with a mask that is not known",
            "It must be [N, T].",
            "Pass it with the batch, or keep it as a buffer.",
        )
    sides = []
    for n, side in enumerate((mask.first, mask.second)):
        if side.shape[1] != length or side.shape[0] not in (1, b.samples[n]):
            raise b.refusal(
                f"{what} with a mask of shape {tuple(side.shape)}",
                f"It must be [N, {length}], as the sequences.",
                "Pass one row for each sample, or one for all.",
            )
        if bool(side.bool().all(1).any()):
            raise b.refusal(
                f"{what} with a mask of all positions of a sample",
                "No position is left that could get attention.",
                "Leave at least one position False, or omit the sample.",
            )
        sides.append((~side.bool()).to(b.dtype).expand(b.samples[n], -1).unsqueeze(-1))
    return b.sample_data(sides[0], sides[1])
