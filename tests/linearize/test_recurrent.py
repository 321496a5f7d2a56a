"""LSTM and GRU in plain operations are those of torch."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from torch_ntk._functional import _recurrent
from torch_ntk._functional._recurrent import PlainRecurrent


@pytest.fixture(autouse=True)
def _fused_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_recurrent, "_FUSED_ON", ("cpu",))


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "lstm": lambda: nn.LSTM(4, 5),
    "lstm_batch_first": lambda: nn.LSTM(4, 5, batch_first=True),
    "lstm_two_layers_both_ways": lambda: nn.LSTM(4, 5, num_layers=2, bidirectional=True),
    "lstm_without_bias": lambda: nn.LSTM(4, 5, bias=False),
    "lstm_projected": lambda: nn.LSTM(4, 5, proj_size=3, bidirectional=True),
    "lstm_projected_without_bias": lambda: nn.LSTM(4, 5, proj_size=3, bias=False),
    "gru": lambda: nn.GRU(4, 5),
    "gru_two_layers_both_ways": lambda: nn.GRU(
        4, 5, num_layers=2, bidirectional=True, batch_first=True
    ),
    "gru_without_bias": lambda: nn.GRU(4, 5, bias=False),
}
CELLS: dict[str, Callable[[], nn.Module]] = {
    "lstm_cell": lambda: nn.LSTMCell(4, 5),
    "lstm_cell_without_bias": lambda: nn.LSTMCell(4, 5, bias=False),
    "gru_cell": lambda: nn.GRUCell(4, 5),
    "gru_cell_without_bias": lambda: nn.GRUCell(4, 5, bias=False),
}


def flat(found: object) -> list[Tensor]:
    if isinstance(found, Tensor):
        return [found]
    assert isinstance(found, (tuple, list))
    return [t for part in found for t in flat(part)]


@pytest.mark.parametrize("name", [*LAYERS, *CELLS])
@pytest.mark.parametrize("with_state", [False, True])
def test_is_what_torch_computes(name: str, with_state: bool) -> None:
    layer = (LAYERS | CELLS)[name]().double().eval()
    x = torch.randn(*((3, 6, 4) if name in LAYERS else (6, 4)), dtype=torch.float64)
    arguments: list[object] = [x]
    if with_state:
        state = layer(x)[1] if name in LAYERS else layer(x)
        arguments.append(tuple(torch.rand_like(s) for s in flat(state)))
        if len(flat(state)) == 1:
            arguments[1] = arguments[1][0]  # type: ignore[index]
    expected = flat(layer(*arguments))
    gradients = torch.autograd.grad(sum(t.square().sum() for t in expected), layer.parameters())
    with PlainRecurrent():
        found = flat(layer(*arguments))
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-14)
    others = torch.autograd.grad(sum(t.square().sum() for t in found), layer.parameters())
    for a, b in zip(others, gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-13)


def test_torch_is_not_asked() -> None:
    """The comparison above is between two computations."""
    for name, layer in {n: m() for n, m in (LAYERS | CELLS).items()}.items():
        x = torch.randn(3, 6, 4) if name in LAYERS else torch.randn(6, 4)
        with (
            torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen,
            PlainRecurrent(),
        ):
            layer.eval()(x)
        kernels = [e.key for e in seen.key_averages()]
        assert not {"aten::lstm", "aten::gru", "aten::lstm_cell", "aten::gru_cell"} & set(kernels)


def test_others_are_left_to_torch() -> None:
    """Dropout between layers in train mode, packed sequences, and other devices."""
    x = torch.randn(3, 6, 4)
    packed = nn.utils.rnn.pack_padded_sequence(x, torch.tensor([3, 3, 2, 2, 1, 1]))
    for layer in (nn.LSTM(4, 5), nn.GRU(4, 5)):
        expected = layer(packed)[0].data
        with PlainRecurrent():
            torch.testing.assert_close(layer(packed)[0].data, expected, rtol=0, atol=0)
    dropout = nn.LSTM(4, 5, num_layers=2, dropout=0.5)
    torch.manual_seed(0)
    expected = dropout(x)[0]
    torch.manual_seed(0)
    with PlainRecurrent():
        torch.testing.assert_close(dropout(x)[0], expected, rtol=0, atol=0)
