"""Networks whose linearization is easily wrong, each with batches of inputs, in float64."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

DOUBLE = torch.float64


@dataclass(frozen=True)
class Row:
    """A network and two batches, of which the first tells less about it than the second.

    Attributes:
        make: Builds the network; always another one, in float64.
        batches: The inputs.
        reference: Builds the same function in a form that the oracle can differentiate, with
            parameters that are drawn alike; the network itself if None.
    """

    make: Callable[[], nn.Module]
    batches: Callable[[], tuple[Tensor, Tensor]]
    reference: Callable[[], nn.Module] | None = None


def vectors(features: int = 5) -> tuple[Tensor, Tensor]:
    return torch.randn(3, features, dtype=DOUBLE), torch.randn(3, features, dtype=DOUBLE)


def _packable() -> tuple[Tensor, Tensor]:
    return torch.randn(3, 4, 3, dtype=DOUBLE), torch.randn(3, 4, 3, dtype=DOUBLE)


def _tokens() -> tuple[Tensor, Tensor]:
    """The first batch has no padding and no token twice; the second has both."""
    first = torch.tensor([[1, 2, 3], [4, 5, 6], [7, 8, 9]])
    return first, torch.tensor([[3, 0, 0], [5, 5, 5], [2, 3, 0]])


class Attribute(nn.Module):
    """Layers, and a forward that is a function of them."""

    def __init__(self, forward: Callable[..., Tensor], **parts: nn.Module | nn.Parameter) -> None:
        super().__init__()
        self.function = forward
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def layers(forward: Callable[..., Tensor], sizes: str = "a:5,4 b:4,2") -> nn.Module:
    parts = {}
    for part in sizes.split():
        name, size = part.split(":")
        parts[name] = nn.Linear(*(int(s) for s in size.split(",")))
    return Attribute(forward, **parts).double()


def _weight_norm(norm: Callable[[nn.Module], nn.Module]) -> nn.Module:
    return nn.Sequential(norm(nn.Linear(5, 6).double()), nn.Tanh(), nn.Linear(6, 2).double())


class PackedLSTM(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.LSTM(3, 4, batch_first=True, dtype=DOUBLE)
        self.head = nn.Linear(4, 2, dtype=DOUBLE)

    def forward(self, x: Tensor) -> Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(x, torch.tensor([4, 3, 1]), batch_first=True)
        return self.head(self.cells(packed)[1][0][0])


class Forces(nn.Module):
    """Minus the gradient of an energy by the positions."""

    def __init__(self, asks: bool) -> None:
        super().__init__()
        self.energy = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 1)).double()
        self.asks = asks

    def forward(self, x: Tensor) -> Tensor:
        if self.asks:
            x.requires_grad_()
        energy = self.energy(x).sum()
        (gradient,) = torch.autograd.grad(energy, x, create_graph=True)
        return -gradient


class Cube(torch.autograd.Function):
    """Of the kind before `setup_context`."""

    @staticmethod
    def forward(ctx, x):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, g):  # type: ignore[no-untyped-def]
        (x,) = ctx.saved_tensors
        return 3 * x**2 * g


class CubeOnce(torch.autograd.Function):
    """With a backward pass that cannot be differentiated."""

    @staticmethod
    def forward(ctx, x):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    @once_differentiable
    def backward(ctx, g):  # type: ignore[no-untyped-def]
        (x,) = ctx.saved_tensors
        return 3 * x**2 * g


class RunsAgain(torch.autograd.Function):
    """As in adjoint ODE solvers and reversible blocks: the backward pass runs the module."""

    @staticmethod
    def forward(ctx, block, x, *parameters):  # type: ignore[no-untyped-def]
        ctx.block = block
        ctx.save_for_backward(x, *parameters)
        with torch.no_grad():
            return block(x)

    @staticmethod
    def backward(ctx, g):  # type: ignore[no-untyped-def]
        x, *parameters = ctx.saved_tensors
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            y = ctx.block(x)
            return None, *torch.autograd.grad(y, (x, *parameters), g, allow_unused=True)


class WrongForwards(torch.autograd.Function):
    """`x²` with a `jvp` that does not belong to its `backward`, for negative entries."""

    @staticmethod
    def forward(x):  # type: ignore[no-untyped-def]
        return x**2

    @staticmethod
    def setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx, g):  # type: ignore[no-untyped-def]
        (x,) = ctx.saved_tensors
        return 2 * x * g

    @staticmethod
    def jvp(ctx, t):  # type: ignore[no-untyped-def]
        (x,) = ctx.saved_tensors
        return torch.where(x > 0, 2 * x, x) * t


def _stops_gradients(net: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        gate = torch.sigmoid(net.a(x))
    return net.b(gate * torch.tanh(net.a(x)))


def signed() -> tuple[Tensor, Tensor]:
    first, second = vectors()
    return first.abs(), -second.abs()


def _stops_gradients_of_negative_batches(net: nn.Module, x: Tensor) -> Tensor:
    return net.b(torch.tanh(net.a(x))) if x.sum() > 0 else _stops_gradients(net, x)


class CubeOfThePositive(torch.autograd.Function):
    """Of the old kind; its backward pass is differentiated wrongly for negative entries."""

    @staticmethod
    def forward(ctx, x):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, g):  # type: ignore[no-untyped-def]
        (x,) = ctx.saved_tensors
        return 3 * x**2 * torch.where(x > 0, g, g.detach())


def wrong_for_negative_batches(net: nn.Module, x: Tensor) -> Tensor:
    """Calls the same functions for every batch."""
    return net.b(CubeOfThePositive.apply(net.a(x).abs() * x.sum().sign()))


class TiedTokens(nn.Module):
    """A language model's head tied to its embedding."""

    def __init__(self, **options: object) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 4, dtype=DOUBLE, **options)  # type: ignore[arg-type]
        nn.init.normal_(self.embedding.weight)
        self.layer = nn.Linear(4, 4, dtype=DOUBLE)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = torch.tanh(self.layer(self.embedding(tokens))).mean(1)
        return F.linear(hidden, self.embedding.weight)


def _tokens_net(**options: object) -> nn.Module:
    embedding = nn.Embedding(10, 4, dtype=DOUBLE, **options)  # type: ignore[arg-type]
    return nn.Sequential(embedding, nn.Tanh(), nn.Flatten(), nn.Linear(12, 2, dtype=DOUBLE))


def _bag(mode: str, **options: object) -> nn.Module:
    bag = nn.EmbeddingBag(10, 4, mode=mode, dtype=DOUBLE, **options)  # type: ignore[arg-type]
    return nn.Sequential(bag, nn.Tanh(), nn.Linear(4, 2, dtype=DOUBLE))


def _bags_by_offsets(net: nn.Module, tokens: Tensor) -> Tensor:
    weights = torch.linspace(0.5, 2.0, tokens.numel(), dtype=DOUBLE)
    offsets = torch.tensor([0, 4, 4])  # the second bag is empty
    return torch.tanh(net.bag(tokens.flatten(), offsets, weights))


class CachesInEval(nn.Module):
    """A bias made of a parameter, kept for the next call in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 3, dtype=DOUBLE)
        self.raw = nn.Parameter(torch.randn(3, dtype=DOUBLE))
        self.cache: dict[str, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return torch.tanh(self.layer(x) + self.raw.exp())
        if "bias" not in self.cache:
            self.cache["bias"] = self.raw.exp()
        return torch.tanh(self.layer(x) + self.cache["bias"])


class Fourier(nn.Module):
    """Real outputs of complex weights and of a complex buffer."""

    def __init__(self, trained: bool) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 4, dtype=DOUBLE), nn.Linear(4, 2, dtype=DOUBLE)
        weight = torch.randn(3, 3, dtype=torch.complex128)
        self.weight = nn.Parameter(weight, requires_grad=trained)
        self.register_buffer("phases", torch.polar(torch.ones(4), torch.randn(4)).to(weight))

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.fft.irfft(torch.fft.rfft(torch.tanh(self.a(x))) @ self.weight, n=4)
        return self.b(hidden + (torch.complex(hidden, x[:, :4]) * self.phases).real)


def _checkpointed(net: nn.Module, x: Tensor, use_reentrant: bool) -> Tensor:
    return net.b(checkpoint(lambda v: torch.tanh(net.a(v)), x, use_reentrant=use_reentrant))


ROWS: Mapping[str, Row] = {
    "plain": Row(lambda: layers(lambda net, x: net.b(torch.tanh(net.a(x)))), vectors),
    "weight_norm_hook": Row(partial(_weight_norm, nn.utils.weight_norm), vectors),
    "weight_norm_parametrized": Row(
        partial(_weight_norm, nn.utils.parametrizations.weight_norm), vectors
    ),
    "packed_lstm": Row(PackedLSTM, _packable),
    "gradient_inside": Row(partial(Forces, asks=True), vectors),
    "gradient_by_inputs_that_require_it": Row(
        partial(Forces, asks=False),
        lambda: tuple(x.requires_grad_() for x in vectors()),  # type: ignore[return-value]
    ),
    "function_of_the_old_kind": Row(
        lambda: layers(lambda net, x: net.b(Cube.apply(net.a(x)))), vectors
    ),
    "function_without_second_derivative": Row(
        lambda: layers(lambda net, x: net.b(CubeOnce.apply(net.a(x)))), vectors
    ),
    "function_with_a_wrong_jvp": Row(
        lambda: layers(lambda net, x: net.b(WrongForwards.apply(net.a(x)))), vectors
    ),
    "backward_runs_the_module_again": Row(
        lambda: layers(lambda net, x: net.b(RunsAgain.apply(net.a, x, *net.a.parameters()))),
        vectors,
    ),
    "gradient_stopped_by_no_grad": Row(lambda: layers(_stops_gradients), vectors),
    "gradient_stopped_in_some_batches": Row(
        lambda: layers(_stops_gradients_of_negative_batches), signed
    ),
    "hardsigmoid": Row(lambda: layers(lambda net, x: net.b(F.hardsigmoid(net.a(x)))), vectors),
    "padding_tied": Row(partial(TiedTokens, padding_idx=0), _tokens),
    "padding_from_the_end": Row(partial(_tokens_net, padding_idx=-10), _tokens),
    "scaled_by_frequency": Row(
        partial(_tokens_net, scale_grad_by_freq=True, padding_idx=0), _tokens
    ),
    "sparse_embedding": Row(partial(_tokens_net, sparse=True), _tokens),
    "sparse_padding_tied": Row(partial(TiedTokens, padding_idx=0, sparse=True), _tokens),
    "embedding_of_bounded_norm": Row(partial(_tokens_net, max_norm=1.0), _tokens),
    "bag_mean": Row(partial(_bag, "mean", padding_idx=0), _tokens),
    "bag_sum": Row(partial(_bag, "sum", sparse=True), _tokens),
    "bag_max": Row(partial(_bag, "max"), _tokens),
    "bags_by_offsets": Row(
        lambda: Attribute(
            _bags_by_offsets, bag=nn.EmbeddingBag(10, 4, mode="sum", padding_idx=0, dtype=DOUBLE)
        ),
        _tokens,
    ),
    # Reentrant checkpointing takes no gradients by given tensors, which the oracle asks for.
    "checkpoint_reentrant": Row(
        lambda: layers(partial(_checkpointed, use_reentrant=True)),
        vectors,
        lambda: layers(lambda net, x: net.b(torch.tanh(net.a(x)))),
    ),
    "checkpoint": Row(lambda: layers(partial(_checkpointed, use_reentrant=False)), vectors),
    "complex_trained": Row(partial(Fourier, trained=True), vectors),
    "complex_frozen": Row(partial(Fourier, trained=False), vectors),
    "cache_in_eval_mode": Row(CachesInEval, vectors),
}
