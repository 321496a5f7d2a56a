"""`coupled=True`: a training on the nodes of one graph, beside plain loops over its rows."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from coupled_cases import EDGES, Graph, error, normal
from torch import Tensor, nn

from torch_ntk.monitor import Monitor

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it compiles a class with TorchScript, which is deprecated
    from torch_geometric.data import Data

X, Y = normal(5, 3), torch.tensor([0, 1, 1, 0])
MASK = torch.tensor([True, True, False, True, True])
GRAPH = {"x": X, "edges": EDGES}


def nodes(net: nn.Module, batch: Any) -> Tensor:
    out: Tensor = net(**batch)[MASK]
    return out


def jacobian(net: nn.Module, f: Tensor) -> Tensor:
    """`[N·O, P]`."""
    params = list(net.parameters())
    rows = [torch.autograd.grad(g, params, retain_graph=True) for g in f.flatten()]
    return torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])


def mean_kernel(net: nn.Module, f: Tensor) -> Tensor:
    j = jacobian(net, f).view(*f.shape, -1)
    return torch.einsum("nip,mip->nm", j, j) / f.shape[1]


def gap(net: nn.Module, start: nn.Module, f: Tensor, f_0: Tensor) -> Tensor:
    delta = [p - q for p, q in zip(net.parameters(), start.parameters(), strict=True)]
    linear = f_0.flatten() + jacobian(start, f_0) @ torch.cat([d.flatten() for d in delta])
    return (f.flatten() - linear).norm() / (f - f_0).norm()


@pytest.mark.parametrize("output", [None, "full", "probed"])
def test_a_graph(output: Any) -> None:
    torch.manual_seed(0)
    net = Graph().double()
    start, optimizer = copy.deepcopy(net), torch.optim.SGD(net.parameters(), lr=0.1)
    metrics = ("drift", "alignment", "linearization_gap", "stability", "critical_sharpness")
    options: dict[str, Any] = {
        "every_n_steps": 1, "metrics": metrics, "output": output, "coupled": True,
        "forward_fn": nodes, "loss": "auto" if output == "full" else F.cross_entropy,
    }  # fmt: skip
    if output == "full":
        options["loss"] = F.cross_entropy
    if output == "probed":
        options["metrics"] = ("drift", "linearization_gap")
    monitor = Monitor((GRAPH, Y), **options)
    state = None
    for k in range(4):
        if k == 2:  # a resumed run goes on with the same reference
            monitor = Monitor((GRAPH, Y), **options)
            monitor.load_state_dict(state)
        seen = monitor.step(net, optimizer)
        f, f_0 = nodes(net, GRAPH), nodes(start, GRAPH)
        assert seen is not None
        if output != "probed":
            now, before = mean_kernel(net, f), mean_kernel(start, f_0)
            if output is None:
                assert error(seen.kernel, now) < 1e-10
                drift = (now - before).norm() / before.norm()
                assert seen.scalars["drift"] == pytest.approx(drift.item(), abs=1e-10)
        if k:
            expected = gap(net, start, f, f_0).item()
            assert seen.scalars["linearization_gap"] == pytest.approx(expected, rel=1e-8)
        state = monitor.state_dict()
        optimizer.zero_grad()
        F.cross_entropy(nodes(net, GRAPH), Y).backward()
        optimizer.step()
    monitor.finish(net, optimizer)
    assert len(monitor.history["step"]) == 5


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="`probe` must be None or a batch with coupled=True"):
        Monitor(8, coupled=True)
    with pytest.raises(ValueError, match="`batch_size` must be None with coupled=True"):
        Monitor(GRAPH, coupled=True, batch_size=4)
    monitor = Monitor((GRAPH, Y[:2]), coupled=True, forward_fn=nodes)
    with pytest.raises(ValueError, match=r"`probe` must be \(x, y\) with 4 targets"):
        monitor.step(Graph().double())
    net = Graph().double()
    with pytest.raises(TypeError, match="Pass its tensors as a dict"):
        Monitor(coupled=True).step(net, batch=Data(x=X, edge_index=EDGES))
