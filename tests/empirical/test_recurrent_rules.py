"""Recurrent layers: their weights are covered by the rules of linear layers, at every time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from oracles import jacobian_loop
from torch import Tensor, nn

from torch_ntk import empirical_ntk, explain

LAYERS: dict[str, tuple[type[nn.RNNBase], dict[str, Any]]] = {
    "lstm": (nn.LSTM, {}),
    "deep and both ways": (nn.LSTM, {"num_layers": 2, "bidirectional": True}),
    "projected": (nn.LSTM, {"proj_size": 2}),
    "no bias": (nn.GRU, {"bias": False}),
    "gru": (nn.GRU, {"num_layers": 2}),
    "tanh": (nn.RNN, {}),
    "relu, time first": (nn.RNN, {"nonlinearity": "relu", "batch_first": False}),
}


class Net(nn.Module):
    def __init__(self, kind: type[nn.RNNBase], options: dict[str, Any]) -> None:
        super().__init__()
        self.layer = kind(3, 4, **{"batch_first": True, **options})
        self.head = nn.LazyLinear(2)

    def forward(self, x: Tensor) -> Tensor:
        if not self.layer.batch_first:
            x = x.transpose(0, 1)
        out, _ = self.layer(x)
        return self.head(out.mean(1 if self.layer.batch_first else 0))


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize("name", LAYERS)
def test_weights_of_all_times_are_covered_by_rules(name: str) -> None:
    kind, options = LAYERS[name]
    net, x = Net(kind, options), torch.randn(4, 5, 3, dtype=torch.float64)
    net(x.float())
    net.double()
    jacobian = jacobian_loop(net, x)
    wanted = torch.einsum("nip,mjp->nmij", jacobian, jacobian)
    found = empirical_ntk(net, x, method="structured")
    assert float((found - wanted).abs().max()) < 1e-12 * float(wanted.abs().max())
    rows = [line.split() for line in str(explain(net, x)).splitlines()]
    uses = {row[0]: row[1:3] for row in rows if row and row[0].startswith("layer.weight")}
    assert uses["layer.weight_hh_l0"] == ["LinearUse", "5"]
    assert uses["layer.weight_ih_l0"] == ["LinearUse", "1"]
