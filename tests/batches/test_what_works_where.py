"""The table of `docs/empirical.md`: what every function that takes a model does with each argument.

A cell is tried on a small network and compared with its Jacobian by a loop; where the table says
no, the call says so too.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torch_ntk
from torch_ntk import callbacks, empirical_ntk, linearize, ntk_features, taylor_expand
from torch_ntk.coordinates import coordinate_check
from torch_ntk.estimators import NTKClassifier, NTKRegressor
from torch_ntk.monitor import Monitor
from torch_ntk.sampling import monte_carlo_kernel

PAGE = Path(__file__).resolve().parents[2] / "docs" / "empirical.md"
N, OUTPUTS = 4, 2


class Net(nn.Module):
    """Its flags count, and with `mixed` its rows look at each other."""

    def __init__(self, width: int = 4, mixed: bool = False) -> None:
        super().__init__()
        self.first, self.last, self.mixed = nn.Linear(3, width), nn.Linear(width, OUTPUTS), mixed
        self.double()

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        x = x - x.mean(0) if self.mixed else x
        h = torch.tanh(self.first(x)) ** (3 if self.training else 1)
        return self.last(h if scale is None else h * scale[:, None])


def made(mixed: bool = False) -> Net:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return Net(mixed=mixed)


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def cubed(net: Any, batch: Any) -> Tensor:
    out: Tensor = net(**batch) if isinstance(batch, Mapping) else net(batch)
    return out**3


X, Y, LABELS = normal(N, 3), normal(N, OUTPUTS), torch.arange(N) % OUTPUTS
P = {n: 0.5 + torch.rand_like(p) for n, p in made().named_parameters()}
PAIR = {"x": X, "scale": normal(N, 2).square().sum(1)}
# By column of the table: the arguments, and how the network and its batch are.
COLUMNS: dict[str, dict[str, Any]] = {
    "dict": {},
    "forward_fn": {"forward_fn": cubed},
    "probed": {"output": "probed", "probes": OUTPUTS},  # of as many directions as outputs: exact
    "coupled": {"coupled": True},
    "training": {"training": True},
    "params": {"params": ["last.*"]},
    "precondition": {"precondition": P},
    "differentiable": {"differentiable": True},
}


def loop(column: str) -> tuple[Tensor, Tensor]:
    """Outputs `[N, O]` and the Jacobian `[N, O, P]`, times √P with a precondition."""
    net, batch = made(column == "coupled").train(column == "training"), batch_of(column)
    out = cubed(net, batch) if column == "forward_fn" else called(net, batch)
    named = {n: p for n, p in net.named_parameters() if column != "params" or "last" in n}
    rows = []
    for f in out.flatten():
        grads = torch.autograd.grad(f, list(named.values()), retain_graph=True)
        roots = [P[n].sqrt() if column == "precondition" else torch.ones_like(P[n]) for n in named]
        rows.append(torch.cat([(g * r).flatten() for g, r in zip(grads, roots, strict=True)]))
    return out.detach(), torch.stack(rows).view(N, OUTPUTS, -1)


def batch_of(column: str) -> Any:
    return PAIR if column == "dict" else X


def called(net: nn.Module, batch: Any) -> Tensor:
    found: Tensor = net(**batch) if isinstance(batch, Mapping) else net(batch)
    return found


def mean(column: str) -> Tensor:
    _, j = loop(column)
    return torch.einsum("nop,mop->nm", j, j) / OUTPUTS


def same(found: Tensor, expected: Tensor, tolerance: float = 1e-10) -> None:
    assert found.shape == expected.shape
    assert float((found - expected).abs().max() / expected.abs().max()) < tolerance


Try = Callable[[str, nn.Module, Any, dict[str, Any]], None]


def _kernel(column: str, net: nn.Module, batch: Any, given: dict[str, Any]) -> None:
    found = empirical_ntk(net, batch, **{"output": "mean", **given})
    found = found.kernel if column == "probed" else found
    if column == "differentiable":
        assert torch.autograd.grad(found.sum(), net.first.weight)[0].norm() > 0
    same(found.detach(), mean(column))


def _nngp(column: str, net: nn.Module, batch: Any, given: dict[str, Any]) -> None:
    f, _ = loop(column)
    same(torch_ntk.empirical_nngp(net, batch, **given), f @ f.T / OUTPUTS)


def _operator(column: str, net: nn.Module, batch: Any, given: dict[str, Any]) -> None:
    theta = torch_ntk.NTKOperator(net, batch, **{"output": "mean", **given})
    same(theta @ Y, mean(column) @ Y)


def _features(column: str, net: nn.Module, batch: Any, given: dict[str, Any]) -> None:
    """They are J S, with S from a function whose Jacobian is the identity."""
    _, j = loop(column)
    params = {n: p for n, p in P.items() if column != "params" or "last" in n}
    flat = lambda p, x: x @ torch.cat([t.flatten() for t in p.values()])[:, None]  # noqa: E731
    eye = torch.eye(j.shape[2], dtype=torch.float64)
    s = ntk_features(flat, eye, 8, output="full", params=params, seed=5)[:, 0]
    same(ntk_features(net, batch, 8, **{"output": "full", "seed": 5, **given}), j @ s)


def _verify(column: str, net: nn.Module, batch: Any, given: dict[str, Any]) -> None:
    found = torch_ntk.verify(net, batch, **given)
    assert found.is_right, str(found)
    assert not [c for c in found.checks if c.refusal], str(found)


def _explain(column: str, net: nn.Module, batch: Any, given: dict[str, Any]) -> None:
    found = torch_ntk.explain(net, batch, **given)
    assert (found.samples, found.outputs) == (N, OUTPUTS)
    assert len(found.lines) == (2 if column == "params" else 4)


def _expanded(order: int) -> Try:
    def attempt(column: str, net: nn.Module, batch: Any, given: dict[str, Any]) -> None:
        expand = linearize if order == 1 else taylor_expand
        kept = {k: v for k, v in given.items() if k != "coupled"}  # a batch may always be one input
        lin = expand(net, **kept) if order == 1 else taylor_expand(net, order, **kept)
        f, j = loop(column)
        delta = 1e-5 * normal(j.shape[2])
        start = 0
        with torch.no_grad():
            for p in lin.network.parameters():
                p += delta[start : start + p.numel()].view_as(p)
                start += p.numel()
        out = lin(batch) if "forward_fn" in given else called(lin, batch)
        same((out.detach() - f).flatten(), (j @ delta).flatten(), 1e-9 if order == 1 else 1e-3)

    return attempt


def _forecast(column: str, net: nn.Module, batch: Any, given: dict[str, Any]) -> None:
    given = {"output": "mean", **given}
    found = torch_ntk.forecast(net, batch, Y, lr=0.1, steps=2, **given)
    same(found.kernel, mean(column))
    same(found.train_outputs[0], loop(column)[0])


def _estimator(column: str, net: nn.Module, batch: Any, given: dict[str, Any]) -> None:
    found = NTKRegressor(net, diag_reg=0.1, **given).fit(batch, Y.numpy()).predict(batch)
    kernel = mean(column)
    regular = kernel + 0.1 * kernel.diagonal().mean() * torch.eye(N).double()
    same(torch.tensor(found), kernel @ torch.linalg.solve(regular, Y))


def _monitor(column: str, net: nn.Module, batch: Any, given: dict[str, Any]) -> None:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    if column == "precondition":  # that of the optimizer in use
        given = {"kernel": "optimizer"}
        optimizer = torch.optim.SGD(
            [{"params": [p], "lr": 0.1 * (k + 1)} for k, p in enumerate(net.parameters())]
        )
    if column == "probed":
        given = {"output": "probed"}
    monitor = Monitor((batch, LABELS), every_n_steps=1, metrics=("lambda_max",), **given)
    found = monitor.step(net, optimizer).scalars["lambda_max"]
    if column == "probed":
        assert found > 0  # an estimate
        return
    expected = mean(column)
    if column == "precondition":
        expected = empirical_ntk(made(), X, output="mean", precondition=optimizer_like(optimizer))
    assert found == pytest.approx(float(torch.linalg.eigvalsh(expected)[-1]), rel=1e-9)


def optimizer_like(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """P of its learning rates, relative to the first group's."""
    names = [n for n, _ in made().named_parameters()]
    rates = [group["lr"] / 0.1 for group in optimizer.param_groups]
    return {n: torch.full_like(P[n], r) for n, r in zip(names, rates, strict=True)}


def _monte_carlo(column: str, net: nn.Module, batch: Any, given: dict[str, Any]) -> None:
    drawn: list[nn.Module] = []
    make = lambda: drawn.append(Net()) or drawn[-1]  # type: ignore[func-returns-value]  # noqa: E731
    found = monte_carlo_kernel(make, batch, n_samples=2, **given)
    kernels = [empirical_ntk(net, batch, output="mean", **given) for net in drawn[-2:]]
    same(found.mean, (kernels[0] + kernels[1]) / 2)


def _coordinates(column: str, net: nn.Module, batch: Any, given: dict[str, Any]) -> None:
    found = coordinate_check(Net, [4, 8], batch, LABELS, lr=0.1, steps=1, seeds=1, **given)
    plain = coordinate_check(Net, [4, 8], X, LABELS, lr=0.1, steps=1, seeds=1)
    assert found.widths == (4, 8)
    other = (found["change", "output"].values, plain["change", "output"].values)
    assert bool((other[0] > 0).all() and (other[0] != other[1]).any())


ROWS: dict[str, Try] = {
    "empirical_ntk": _kernel,
    "empirical_nngp": _nngp,
    "NTKOperator": _operator,
    "ntk_features": _features,
    "verify": _verify,
    "explain": _explain,
    "linearize": _expanded(1),
    "taylor_expand": _expanded(2),
    "forecast": _forecast,
    "NTKRegressor": _estimator,
    "Monitor": _monitor,
    "monte_carlo_kernel": _monte_carlo,
    "coordinate_check": _coordinates,
}


def table() -> dict[str, dict[str, str]]:
    """By function and column what the page says."""
    text = PAGE.read_text(encoding="utf-8").split("## What works where")[1].split("\n## ")[0]
    lines = [line for line in text.splitlines() if line.startswith("|")]
    cells = [[c.strip() for c in line.strip("|").split("|")] for line in lines]
    columns = [name.strip("`= ") for name in cells[0][1:]]
    said = {}
    for row in cells[2:]:
        for name in row[0].replace("`", "").split(", "):
            said[name] = dict(zip(columns, row[1:], strict=True))
    return said


TABLE = table()


def test_the_table_is_of_these_functions_and_arguments() -> None:
    assert {"NTKClassifier", "callbacks", *ROWS} == set(TABLE)
    assert all(list(columns) == list(COLUMNS) for columns in TABLE.values())


@pytest.mark.parametrize("column", COLUMNS)
@pytest.mark.parametrize("row", ROWS)
def test_cell(row: str, column: str) -> None:
    given = COLUMNS[column]
    net = made(column == "coupled").train(column == "training")
    if TABLE[row][column] == "yes":
        ROWS[row](column, net, batch_of(column), given)
        return
    words = column if column in given else {"probed": "(output|probes)", "dict": "X"}[column]
    with pytest.raises((TypeError, ValueError), match=rf"['`]{words}['`]"):
        ROWS[row](column, net, batch_of(column), given)


def test_classifiers_and_callbacks_take_what_their_likes_do() -> None:
    for one, other in ((NTKClassifier, NTKRegressor), (callbacks.NTKMonitor, Monitor)):
        name = {"NTKMonitor": "callbacks"}.get(one.__name__, one.__name__)
        assert TABLE[name] == TABLE[other.__name__]
    assert list(inspect.signature(NTKClassifier).parameters) == list(
        inspect.signature(NTKRegressor).parameters
    )
    options = inspect.signature(callbacks.NTKMonitor).parameters
    assert {"forward_fn", "coupled", "params", "kernel", "output"} <= set(options)
    assert not {"training", "precondition", "differentiable"} & set(options)
