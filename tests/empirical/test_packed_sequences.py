"""Recurrent networks that pack sequences of different lengths."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from torch_ntk import empirical_ntk
from torch_ntk.empirical.methods import _auto

X = torch.randn(5, 7, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
LENGTHS = torch.tensor([3, 7, 1, 5, 7])


class Reader(nn.Module):
    """Two recurrent layers over packed words, and what is read of them."""

    def __init__(self, kind: str, bidirectional: bool, read: Callable[..., Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = getattr(nn, kind)(3, 4, 2, batch_first=True, bidirectional=bidirectional)
        self.head = nn.Linear(4 * (1 + bidirectional), 2)
        self.read = read

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
        return self.read(self, *self.layers(packed))


def last(net: Reader, out: PackedSequence, state: Tensor | tuple[Tensor, Tensor]) -> Tensor:
    h = state[0] if isinstance(state, tuple) else state
    return net.head(torch.cat(list(h[-net.head.in_features // 4 :]), dim=-1))


def mean(net: Reader, out: PackedSequence, state: object) -> Tensor:
    h, lengths = pad_packed_sequence(out, batch_first=True)
    return net.head(h.sum(1) / lengths.unsqueeze(1))


def longer(net: Reader, out: PackedSequence, state: object) -> Tensor:
    """With values of their own at the times after a length, up to more times than there are."""
    h, _ = pad_packed_sequence(out, batch_first=True, padding_value=0.5, total_length=9)
    return net.head(h).square().sum(1)


def altered(net: Reader, out: PackedSequence, state: object) -> Tensor:
    """Packed data that no call has packed."""
    h, _ = pad_packed_sequence(PackedSequence(net.head(out.data), *out[1:]), batch_first=True)
    return h.sum(1)


def by_rows(net: Reader, x: Tensor, lengths: Tensor) -> Tensor:
    """The full kernel from one backward pass for each output."""
    parameters = list(net.parameters())
    rows = [
        torch.cat([g.flatten() for g in torch.autograd.grad(f, parameters, retain_graph=True)])
        for f in net(x, lengths).flatten()
    ]
    j = torch.stack(rows)
    n = len(x)
    return (j @ j.T).reshape(n, 2, n, 2).permute(0, 2, 1, 3)


def no_loops(*_: object) -> None:
    raise AssertionError("taken sample by sample")


@pytest.mark.parametrize("read", [last, mean, longer])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_packed_sequences_are_taken_at_once(
    kind: str, bidirectional: bool, read: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_auto, "JacobianMethod", no_loops)
    net = Reader(kind, bidirectional, read).double()
    torch.testing.assert_close(
        empirical_ntk(net, (X, LENGTHS)), by_rows(net, X, LENGTHS), rtol=1e-12, atol=1e-14
    )


def test_packed_data_of_ones_own_is_taken_by_loops() -> None:
    net = Reader("LSTM", False, altered).double()
    torch.testing.assert_close(
        empirical_ntk(net, (X, LENGTHS)), by_rows(net, X, LENGTHS), rtol=1e-12, atol=1e-14
    )


def test_padding_that_depends_on_the_longest_sample_is_refused() -> None:
    """All samples are shorter than the tensor, and the padding goes into the outputs."""

    def padded(net: Reader, out: PackedSequence, state: object) -> Tensor:
        h, _ = pad_packed_sequence(out, batch_first=True, padding_value=0.5)
        return net.head(h).sum(1)

    net = Reader("LSTM", False, padded).double()
    with pytest.raises(ValueError, match="other samples"):
        empirical_ntk(net, (X, torch.tensor([3, 5, 1, 5, 2])))
