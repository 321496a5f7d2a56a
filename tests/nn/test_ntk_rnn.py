"""The recurrent network in NTK parameterization, against `nn.RNN` and a loop."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence, pad_packed_sequence

from torch_ntk import NTKRNN, empirical_ntk, ntk_param_groups, ntk_parameterize
from torch_ntk import standard_init_ as standard_init

SCALES: dict[str, Any] = {"sigma_w": 1.3, "sigma_u": 0.8, "sigma_b": 0.4, "dtype": torch.float64}
CASES: dict[str, dict[str, Any]] = {
    "tanh": {},
    "relu": {"nonlinearity": "relu", "batch_first": True},
    "no bias": {"bias": False, "num_layers": 2},
    "both ways": {"bidirectional": True, "num_layers": 2, "batch_first": True},
}


def scale(name: str, parameter: Tensor) -> float:
    if name.startswith("bias"):
        return 0.4 / math.sqrt(2)
    return (0.8 if "_ih_" in name else 1.3) / math.sqrt(parameter.shape[1])


@pytest.fixture(params=CASES)
def twins(request: pytest.FixtureRequest) -> tuple[NTKRNN, nn.RNN]:
    """The layer, and the `nn.RNN` with the scaled weights."""
    options = CASES[request.param]
    layer = NTKRNN(3, 5, **options, **SCALES)
    twin = nn.RNN(3, 5, **options, dtype=torch.float64)
    with torch.no_grad():
        for name, parameter in twin.named_parameters():
            mine = getattr(layer, name)
            parameter.copy_(mine * scale(name, mine))
    return layer, twin


def test_outputs_states_and_gradients(twins: tuple[NTKRNN, nn.RNN]) -> None:
    layer, twin = twins
    x = torch.randn(4, 4, 3, dtype=torch.float64)
    start = torch.randn(layer.num_layers * (1 + layer.bidirectional), 4, 5, dtype=torch.float64)
    for arguments in ((x,), (x, start), (x[:, 0], start[:, 0])):
        got, wanted = layer(*arguments), twin(*arguments)
        for a, b in zip(got, wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    layer(x)[0].square().sum().backward()
    twin(x)[0].square().sum().backward()
    for name, parameter in layer.named_parameters():
        wanted = getattr(twin, name).grad * scale(name, parameter)
        torch.testing.assert_close(parameter.grad, wanted, rtol=1e-11, atol=1e-11)
    assert isinstance(layer, nn.RNN)
    assert list(layer.state_dict()) == list(twin.state_dict())
    layer.load_state_dict(twin.state_dict())


def test_erf() -> None:
    layer = NTKRNN(3, 5, nonlinearity="erf", batch_first=True, **SCALES)
    x = torch.randn(2, 4, 3, dtype=torch.float64)
    h = torch.zeros(2, 5, dtype=torch.float64)
    for t in range(4):
        z = x[:, t] @ layer.weight_ih_l0.T * 0.8 / math.sqrt(3)
        z = z + h @ layer.weight_hh_l0.T * 1.3 / math.sqrt(5)
        h = torch.erf(z + 0.4 / math.sqrt(2) * (layer.bias_ih_l0 + layer.bias_hh_l0))
    torch.testing.assert_close(layer(x)[1][0], h, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("sorted_already", [True, False])
def test_packed_sequences(twins: tuple[NTKRNN, nn.RNN], sorted_already: bool) -> None:
    layer, twin = twins
    lengths = [4, 3, 3, 1] if sorted_already else [3, 1, 4, 3]
    sequences = [torch.randn(n, 3, dtype=torch.float64) for n in lengths]
    packed = pack_sequence(sequences, sorted_already)
    start = torch.randn(layer.num_layers * (1 + layer.bidirectional), 4, 5, dtype=torch.float64)
    for arguments in ((packed,), (packed, start)):
        (outputs, ends), (wanted, wanted_ends) = layer(*arguments), twin(*arguments)
        torch.testing.assert_close(outputs.data, wanted.data, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(ends, wanted_ends, rtol=1e-12, atol=1e-12)
        found, right = pad_packed_sequence(outputs), pad_packed_sequence(wanted)
        torch.testing.assert_close(found, right, rtol=1e-12, atol=1e-12)
    # And one by one, as no other library has it.
    alone = layer(sequences[0][None] if layer.batch_first else sequences[0][:, None])[1]
    torch.testing.assert_close(layer(packed)[1][:, :1], alone, rtol=1e-12, atol=1e-12)


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
def test_scripts(twins: tuple[NTKRNN, nn.RNN]) -> None:
    for layer in (twins[0], ntk_parameterize(twins[1], mode="preserve")):
        scripted = torch.jit.script(layer)
        x = torch.randn(4, 4, 3, dtype=torch.float64)
        start = torch.randn(layer.num_layers * (1 + layer.bidirectional), 4, 5, dtype=torch.float64)
        for arguments in ((x,), (x, start), (x[:, 0], start[:, 0])):
            for a, b in zip(scripted(*arguments), layer(*arguments), strict=True):
                torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
        slopes = [
            torch.autograd.grad(m(x)[0].square().sum(), list(m.parameters()))
            for m in (scripted, layer)
        ]
        torch.testing.assert_close(*slopes, rtol=1e-11, atol=1e-11)


class Lengths(nn.Module):
    """The last states of padded sequences, which it packs."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = NTKRNN(3, 5, bidirectional=True, batch_first=True, **SCALES)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        return torch.cat(list(self.rnn(packed)[1]), 1)


def test_empirical_kernels_of_packed_sequences() -> None:
    net, lengths = Lengths(), torch.tensor([2, 4, 1])
    x = torch.randn(3, 4, 3, dtype=torch.float64)
    rows = []
    for sample, length in zip(x, lengths, strict=True):  # each sequence alone, not packed
        outputs = net.rnn(sample[None, :length])[1].flatten()
        slopes = (
            torch.autograd.grad(
                y, list(net.parameters()), retain_graph=True, materialize_grads=True
            )
            for y in outputs
        )
        rows.append(torch.stack([torch.cat([s.flatten() for s in slope]) for slope in slopes]))
    j = torch.stack(rows)
    wanted = torch.einsum("nip,mjp->nmij", j, j)
    for method in ("structured", "vector_product", "jacobian"):
        got = empirical_ntk(net, (x, lengths), method=method)
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-10)


class Last(nn.Module):
    """The outputs of the last time."""

    def __init__(self, rnn: nn.Module) -> None:
        super().__init__()
        self.rnn = rnn

    def forward(self, x: Tensor) -> Tensor:
        return self.rnn(x)[0][:, -1]


@pytest.mark.parametrize("options", [CASES["relu"], CASES["both ways"]])
def test_empirical_kernels_are_those_of_jacobians(options: dict[str, Any]) -> None:
    net = Last(NTKRNN(3, 5, **options, **SCALES))
    x = torch.randn(3, 4, 3, dtype=torch.float64)
    weights = {name: p.detach() for name, p in net.named_parameters()}

    def one(weights: dict[str, Tensor], sample: Tensor) -> Tensor:
        return functional_call(net, weights, (sample[None],))[0]

    jacobians = [j.flatten(2) for j in vmap(jacrev(one), (None, 0))(weights, x).values()]
    j = torch.cat(jacobians, 2)
    wanted = torch.einsum("nip,mjp->nmij", j, j)
    for method in ("structured", "vector_product", "jacobian"):
        got = empirical_ntk(net, x, method=method)
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-10)


def test_copies_exports_and_draws() -> None:
    torch.manual_seed(0)
    net = Last(NTKRNN(3, 200, batch_first=True, **SCALES))
    x = torch.randn(2, 4, 3, dtype=torch.float64)
    for other in (
        copy.deepcopy(net),
        pickle.loads(pickle.dumps(net)),
        torch.export.export(net, (x,)).module(),
    ):
        torch.testing.assert_close(other(x), net(x), rtol=1e-12, atol=1e-12)
    assert net.rnn.weight_hh_l0.std().item() == pytest.approx(1.0, abs=0.02)
    assert "nonlinearity='tanh', sigma_w=1.3, sigma_u=0.8, sigma_b=0.4" in repr(net.rnn)


def test_conversions() -> None:
    net = Last(nn.RNN(3, 5, nonlinearity="relu", batch_first=True, dtype=torch.float64))
    x = torch.randn(2, 4, 3, dtype=torch.float64)
    kept = ntk_parameterize(net, mode="preserve")
    torch.testing.assert_close(kept(x), net(x), rtol=1e-12, atol=1e-12)
    assert type(kept.rnn) is NTKRNN
    assert kept.rnn.sigma_w == kept.rnn.sigma_u == 2**0.5
    drawn = ntk_parameterize(net, sigma_w=0.9)
    assert (drawn.rnn.sigma_w, drawn.rnn.sigma_u) == (0.9, 0.9)
    rates = {p: g["lr"] for g in ntk_param_groups(kept, 0.1) for p in g["params"]}
    assert rates[kept.rnn.weight_ih_l0] == pytest.approx(0.1 * 3 / 2)
    assert rates[kept.rnn.bias_hh_l0] == pytest.approx(0.1 * 2 / 0.1**2)
    wide = standard_init(nn.RNN(50, 200), 1.5, 0.2)
    assert wide.weight_ih_l0.std().item() == pytest.approx(1.5 / 50**0.5, rel=0.03)
    assert wide.bias_hh_l0.std().item() == pytest.approx(0.2 / 2**0.5, rel=0.2)
    with pytest.raises(ValueError, match=r"'rnn' \(NTKRNN\)"):
        standard_init(kept)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"nonlinearity": "gelu"}, ValueError, "`nonlinearity` must be one of 'tanh', 'relu'"),
        ({"sigma_u": 0.0}, ValueError, "`sigma_u` must be a finite number greater than 0"),
        ({"sigma_w": "gain"}, TypeError, "`sigma_w`"),
        ({"sigma_b": -1.0}, ValueError, "`sigma_b`"),
        ({"num_layers": 0}, ValueError, "`num_layers`"),
        ({"bias": 1.2}, TypeError, "`bias`"),
        ({"dtype": torch.int32}, TypeError, "`dtype`"),
    ],
)
def test_refused_arguments(options: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        NTKRNN(3, 4, **options)


def test_refused_inputs() -> None:
    layer = NTKRNN(3, 4)
    with pytest.raises(ValueError, match="`input` must be packed from features of 3"):
        layer(pack_sequence([torch.zeros(2, 4)]))
    with pytest.raises(ValueError, match=r"`hx` must be of shape \(1, 1, 4\)"):
        layer(pack_sequence([torch.zeros(2, 3)]), torch.zeros(1, 2, 4))
    with pytest.raises(ValueError, match=r"`input` must be of shape \[T, N, 3\]"):
        layer(torch.zeros(2, 5, 4))
    with pytest.raises(ValueError, match=r"`hx` must be of shape \(1, 5, 4\)"):
        layer(torch.zeros(2, 5, 3), torch.zeros(5, 4))
