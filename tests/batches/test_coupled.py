"""`coupled=True`: kernels between the rows of a batch that is one input."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from coupled_cases import CASES, error, jacobian, made, normal, normalized
from torch import Tensor, nn
from traces import snapshot

from torch_ntk import empirical_ntk


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("method", ["auto", "jacobian", "vector_product"])
def test_full(name: str, method: Any) -> None:
    _, x, _, training = CASES[name]
    j, net = jacobian(name, x), made(name)
    before = snapshot(net)
    found = empirical_ntk(net, x, coupled=True, training=training, method=method)
    assert error(found, torch.einsum("nip,mjp->nmij", j, j)) < 1e-10
    assert torch.equal(found, found.permute(1, 0, 3, 2))
    assert snapshot(net) == before


@pytest.mark.parametrize("name", ["graph", "set", "batch norm"])
def test_between_two_batches(name: str) -> None:
    _, x1, x2, training = CASES[name]
    j1, j2 = jacobian(name, x1), jacobian(name, x2)
    found = empirical_ntk(made(name), x1, x2, coupled=True, training=training)
    assert error(found, torch.einsum("nip,mjp->nmij", j1, j2)) < 1e-10


@pytest.mark.parametrize("output", ["trace", "mean", "diagonal", "pseudo"])
def test_outputs(output: Any) -> None:
    _, x1, x2, _ = CASES["graph"]
    j1, j2 = jacobian("graph", x1), jacobian("graph", x2)
    full = torch.einsum("nip,mjp->nmij", j1, j2)
    diagonal = full.diagonal(dim1=2, dim2=3)
    expected = {
        "trace": diagonal.sum(-1),
        "mean": diagonal.mean(-1),
        "diagonal": diagonal,
        "pseudo": full.sum((2, 3)) / 2,
    }
    found = empirical_ntk(made("graph"), x1, x2, coupled=True, output=output)
    assert error(found, expected[output]) < 1e-10


def test_parts_and_a_function_of_parameters() -> None:
    _, x, _, _ = CASES["graph"]
    net = made("graph")
    whole = empirical_ntk(net, x, coupled=True)
    parts = empirical_ntk(net, x, coupled=True, by="module")
    assert set(parts) == {"first", "second"}
    assert error(sum(parts.values()), whole) < 1e-12  # type: ignore[arg-type]

    def f(params: dict[str, Tensor], batch: Any) -> Tensor:
        return torch.func.functional_call(net, params, kwargs=batch)

    found = empirical_ntk(f, x, coupled=True, params=dict(net.named_parameters()))
    assert error(found, whole) < 1e-12


def test_a_score_of_architecture_search() -> None:
    """The condition number of the kernel in train mode, as that field computes it (float32)."""
    torch.manual_seed(0)
    net = normalized().train()
    x = normal(8, 2, 5, 5).float()
    found = empirical_ntk(net, x, coupled=True, training=True, output="mean")
    logits = net(x)
    rows = []
    for n in range(8):
        net.zero_grad()
        logits[n : n + 1].backward(torch.ones(1, 2), retain_graph=True)
        rows.append(torch.cat([p.grad.flatten() for p in net.parameters()]))  # type: ignore[union-attr]
    score = torch.stack(rows) @ torch.stack(rows).T
    summed = empirical_ntk(net, x, coupled=True, training=True, output="pseudo") * 2
    assert error(summed, score) < 1e-4
    assert found.shape == score.shape


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"batch_size": 2}, "`batch_size` must be None with coupled=True"),
        ({"coupled": 1}, "`coupled` must be"),
        ({"training": "yes"}, "`training` must be"),
        ({"forward_fn": lambda net, b: net(**b).sum()}, "`forward_fn` must be.*row for every"),
        ({"x1": {"x": [1.0]}}, "`x1` must be.*without a tensor"),
    ],
)
def test_bad_arguments(changed: dict[str, Any], says: str) -> None:
    _, x, _, _ = CASES["graph"]
    arguments = {"x1": x, "coupled": True, **changed}
    with pytest.raises((ValueError, TypeError), match=rf"(?s){says}"):
        empirical_ntk(made("graph"), **arguments)


def test_another_number_of_outputs() -> None:
    net = nn.Linear(3, 2).double()
    forward_fn = lambda net, x: net(x) if len(x) == 4 else net(x)[:, :1]  # noqa: E731
    with pytest.raises(ValueError, match=r"`x2` must be.*2 outputs a row"):
        empirical_ntk(net, normal(4, 3), normal(2, 3), coupled=True, forward_fn=forward_fn)


def test_forward_that_fails() -> None:
    """The batch is named, and not a `forward_fn` that nobody has passed."""
    with pytest.raises(ValueError, match=r"`x1` must be.*as one input.*IndexError: index out"):
        empirical_ntk(nn.Embedding(3, 2), torch.tensor([0, 3]), coupled=True)


def test_batch_normalization_in_train_mode() -> None:
    """The cause is the statistics over the batch, and not that they are written to buffers."""
    net = nn.Sequential(nn.Conv1d(2, 3, 2), nn.BatchNorm1d(3), nn.Flatten(), nn.Linear(9, 2))
    x = normal(3, 2, 4)
    with pytest.raises(ValueError, match=r"(?s)other samples.*in train mode.*coupled=True"):
        empirical_ntk(net.double(), x, training=True)


def test_coupled_samples_without_it_are_refused_with_the_argument_to_pass() -> None:
    with pytest.raises(ValueError, match="coupled=True"):
        empirical_ntk(made("set"), CASES["set"][1])
    with pytest.raises(ValueError, match="coupled=True"):
        empirical_ntk(made("no statistics"), CASES["no statistics"][1])
