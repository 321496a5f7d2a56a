"""Forms of one batch, and the loops with which what is computed on them is compared."""

from __future__ import annotations

import collections
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

Parts = tuple[Tensor, Tensor, Tensor]
"""Features `[N, 4]`, scales `[N]` and a mask `[N, 4]` of the same samples."""


class Scaled(nn.Module):
    """A small network of features, of which a mask leaves some, times a scale for each sample."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 5)
        self.b = nn.Linear(5, 2)

    def outputs(self, features: Tensor, scale: Tensor, mask: Tensor, power: int = 1) -> Tensor:
        h = torch.tanh(self.a(torch.where(mask, features, 0.0)))
        return self.b(h) * scale[:, None] ** power


class OfParts(Scaled):
    def forward(self, features: Tensor, scale: Tensor, mask: Tensor) -> Tensor:
        return self.outputs(features, scale, mask)


class OfOptions(Scaled):
    def forward(self, options: Mapping[str, Any], *, mask: Tensor, name: str) -> Tensor:
        assert name == "constants pass through"
        features = torch.cat(options["halves"], dim=1)
        return self.outputs(features, options["scale"], mask, options["power"])


class OfObject(Scaled):
    def forward(self, batch: Any) -> Tensor:
        return self.outputs(batch.features, batch.scale, batch.mask)


@dataclass(frozen=True)
class Inner:
    scale: Tensor
    mask: Tensor


@dataclass
class Record:
    features: Tensor
    inner: Inner
    name: str = "a record"
    made: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self.made += 1

    @property
    def scale(self) -> Tensor:
        return self.inner.scale

    @property
    def mask(self) -> Tensor:
        return self.inner.mask


@dataclass(frozen=True, slots=True)
class Fixed:
    features: Tensor
    scale: Tensor
    mask: Tensor


class Named(NamedTuple):
    features: Tensor
    scale: Tensor
    mask: Tensor


class Encoding(collections.UserDict[str, Any]):
    """Like Hugging Face's `BatchEncoding`: entries are attributes too, and there are others."""

    def __init__(self, data: Mapping[str, Any], encodings: object = None) -> None:
        super().__init__(data)
        self.encodings = encodings

    def __getattr__(self, name: str) -> Any:
        try:
            return self.data[name]
        except KeyError:
            raise AttributeError(name) from None


NAMES = ("features", "scale", "mask")


def mapping(p: Parts) -> dict[str, Any]:
    return dict(zip(NAMES, p, strict=True))


def options(p: Parts) -> dict[str, Any]:
    halves = [p[0][:, :1], p[0][:, 1:]]
    inner = {"halves": halves, "power": 2, "scale": p[1], "nothing": None}
    return {"options": inner, "mask": p[2], "name": "constants pass through"}


Call = Callable[[nn.Module, Any], Any]


def by_name(net: nn.Module, batch: Any) -> Any:
    return net(**batch)


def in_order(net: nn.Module, batch: Any) -> Any:
    return net(*batch)


def whole(net: nn.Module, batch: Any) -> Any:
    return net(batch)


FORMS: dict[str, tuple[Callable[[], nn.Module], Callable[[Parts], Any], Call]] = {
    "dict": (OfParts, mapping, by_name),
    "dict in another order": (OfParts, lambda p: dict(reversed(mapping(p).items())), by_name),
    "OrderedDict": (OfParts, lambda p: collections.OrderedDict(mapping(p)), by_name),
    "UserDict": (OfParts, lambda p: collections.UserDict(mapping(p)), by_name),
    "BatchEncoding": (OfParts, lambda p: Encoding(mapping(p), object()), by_name),
    "read-only": (OfParts, lambda p: types.MappingProxyType(mapping(p)), by_name),
    "tuple": (OfParts, tuple, in_order),
    "list": (OfParts, list, in_order),
    "namedtuple": (OfParts, lambda p: Named(*p), in_order),
    "nested": (OfOptions, options, by_name),
    "tuple with a nested part": (
        lambda: _Pair(),
        lambda p: ((p[0], (p[1],)), {"mask": p[2]}),
        in_order,
    ),
    "dataclass": (OfObject, lambda p: Record(p[0], Inner(p[1], p[2])), whole),
    "dataclass with slots": (OfObject, lambda p: Fixed(*p), whole),
}
"""By name a network, how its batch is made, and how a person would call it."""


class _Pair(Scaled):
    def forward(self, first: Any, second: Mapping[str, Tensor]) -> Tensor:
        return self.outputs(first[0], first[1][0], second["mask"])


def parts(n: int, seed: int = 0) -> Parts:
    """N samples in float64, the same at every call."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(n, 4, generator=generator, dtype=torch.float64)
    scale = torch.rand(n, generator=generator, dtype=torch.float64) + 0.5
    mask = torch.rand(n, 4, generator=generator) < 0.7
    return features, scale, mask


def built(make: Callable[[], nn.Module]) -> nn.Module:
    """The module in float64, the same at every call, in train mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return make().double()


def loop(net: nn.Module, samples: list[Any], call: Call) -> tuple[Tensor, Tensor]:
    """Outputs `[N, O]` and Jacobian `[N, O, P]`, by one backward pass per sample and output.

    Args:
        net: The user's module, differentiated by its own parameters.
        samples: Batches of one sample each.
        call: How it is called.
    """
    was_training = net.training
    net.eval()
    params = [p for p in net.parameters() if p.requires_grad]
    values, rows = [], []
    with torch.enable_grad():
        for sample in samples:
            out = call(net, sample).reshape(-1)
            values.append(out.detach())
            for f in out:
                grads = torch.autograd.grad(f, params, retain_graph=True, allow_unused=True)
                pairs = zip(params, grads, strict=True)
                row = [(torch.zeros_like(p) if g is None else g).reshape(-1) for p, g in pairs]
                rows.append(torch.cat(row))
    net.train(was_training)
    outputs = torch.stack(values)
    return outputs, torch.stack(rows).reshape(*outputs.shape, -1)


def full(j1: Tensor, j2: Tensor) -> Tensor:
    """`Θ[n, m, i, j] = Σ_p J1[n, i, p] J2[m, j, p]`."""
    return torch.einsum("nip,mjp->nmij", j1, j2)


def off(value: Tensor, expected: Tensor) -> float:
    """The largest difference, divided by the largest entry that was expected."""
    assert value.shape == expected.shape, f"{tuple(value.shape)} is not {tuple(expected.shape)}"
    return float((value.double() - expected).abs().max() / expected.abs().max())
