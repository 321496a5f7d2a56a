"""What cannot be computed right is refused, by name, and leaves no trace either."""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from traces import settings, snapshot

from torch_ntk import empirical_nngp, empirical_ntk

METHODS = ["structured", "jacobian", "vector_product", "auto"]
X = torch.linspace(-1.0, 1.0, 15).reshape(3, 5)


class Module(nn.Module):
    """A linear layer inside of a given forward."""

    def __init__(self, forward: Callable[[nn.Module, Tensor], Any]) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 2)
        self._forward = forward

    def forward(self, x: Tensor) -> Any:
        return self._forward(self.layer, x)


def _script() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.script(nn.Linear(5, 2))


def _trace() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.trace(nn.Linear(5, 2), X)


def _quantized() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.Sequential(
            nn.Linear(5, 5), torch.ao.nn.quantized.dynamic.Linear(5, 2), nn.Linear(2, 2)
        )


def _with_value(value: float, where: str) -> nn.Module:
    model = nn.Sequential(nn.Linear(5, 3), nn.BatchNorm1d(3))
    with torch.no_grad():
        model.get_parameter(where).view(-1)[0] = value if where != "1.running_mean" else 0.0
    return model


def _nan_buffer() -> nn.Module:
    model = nn.Sequential(nn.Linear(5, 3), nn.BatchNorm1d(3))
    model[1].running_mean[1] = math.nan
    return model


class Sharded(nn.Parameter):
    """As a DTensor of FSDP2 looks from outside."""

    placements = ("Shard(0)",)


def _sharded() -> nn.Module:
    model = nn.Linear(5, 2)
    model.weight = Sharded(torch.ones(2, 5))
    return model


class FullyShardedDataParallel(nn.Linear):
    """As FSDP1 looks from outside."""


def _own_generator() -> nn.Module:
    model = Module(lambda f, x: f(x) + torch.rand(1, generator=model.noise))
    model.noise = torch.Generator().manual_seed(1)
    return model


MODELS: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "script": (_script, TypeError, "`model` must be made of Python modules.*TorchScript"),
    "script_inside": (
        lambda: nn.Sequential(_script(), nn.Linear(2, 2)),
        TypeError,
        "TorchScript module .*at '0'",
    ),
    "traced": (_trace, TypeError, "TorchScript"),
    "quantized": (_quantized, TypeError, "quantized module .*at '1'"),
    "lazy": (lambda: nn.Sequential(nn.LazyLinear(3)), TypeError, "lazy module.*at '0'"),
    "meta": (lambda: nn.Linear(5, 2, device="meta"), TypeError, "'weight' on the meta device"),
    "sharded": (_sharded, TypeError, "sharded parameter 'weight'.*full copy"),
    "sharded_wrapper": (lambda: FullyShardedDataParallel(5, 2), TypeError, "are sharded"),
    "nan_weight": (lambda: _with_value(math.nan, "0.weight"), ValueError, "NaN or.*'0.weight'"),
    "infinite_weight": (lambda: _with_value(math.inf, "1.bias"), ValueError, "'1.bias'"),
    "nan_buffer": (_nan_buffer, ValueError, "'1.running_mean'"),
    "no_parameters": (lambda: nn.Flatten(), ValueError, "0 parameters, none of which"),
    "all_frozen": (lambda: nn.Linear(5, 2).requires_grad_(False), ValueError, "2 parameters, none"),
    "two_dtypes": (
        lambda: nn.Sequential(nn.Linear(5, 2), nn.Linear(2, 2).double()),
        ValueError,
        "of one dtype; got '0.weight' in torch.float32, '1.weight' in torch.float64",
    ),
    "batchnorm_without_statistics": (
        lambda: nn.Sequential(nn.Linear(5, 3), nn.BatchNorm1d(3, track_running_stats=False)),
        ValueError,
        "running statistics \\(BatchNorm1d at '1'\\)",
    ),
    "mean_over_the_batch": (
        lambda: Module(lambda f, x: f(x - x.mean(0))),
        ValueError,
        "one sample",
    ),
    "sum_along_the_batch": (lambda: Module(lambda f, x: f(x.cumsum(0))), ValueError, "one sample"),
    "softmax_over_the_batch": (lambda: Module(lambda f, x: f(x).softmax(0)), ValueError, "one sam"),
    "number_of_the_batch": (
        lambda: Module(lambda f, x: f(x) * x.abs().max().item()),
        ValueError,
        "one sample",
    ),
    "random_dropout": (
        lambda: Module(lambda f, x: F.dropout(f(x), training=True)),
        ValueError,
        "deterministic",
    ),
    "random_numpy": (
        lambda: Module(lambda f, x: f(x) * np.random.rand()),  # noqa: NPY002
        ValueError,
        "deterministic",
    ),
    "random_python": (
        lambda: Module(lambda f, x: f(x) * random.random()),
        ValueError,
        "deterministic",
    ),
    "random_own_generator": (_own_generator, ValueError, "deterministic"),
    "returns_tuple": (lambda: Module(lambda f, x: (f(x), x)), TypeError, "one tensor.*tuple"),
    "returns_dict": (lambda: Module(lambda f, x: {"y": f(x), "h": x}), TypeError, "one.*dict"),
    "returns_none": (lambda: Module(lambda f, x: None), TypeError, "one tensor.*None"),
    "returns_classes": (lambda: Module(lambda f, x: f(x).argmax(1)), TypeError, "floating-point"),
    "returns_complex": (lambda: Module(lambda f, x: torch.fft.fft(f(x))), TypeError, "floating"),
    "returns_nothing": (lambda: Module(lambda f, x: f(x)[:, :0]), ValueError, "with outputs"),
    "loses_the_batch": (lambda: Module(lambda f, x: f(x).sum()), ValueError, "one row of outputs"),
    "nan_output": (lambda: Module(lambda f, x: f(x).abs().neg().log()), ValueError, "finite outp"),
    "infinite_gradient": (
        lambda: Module(lambda f, x: (f(x) * 0).abs().sqrt()),
        ValueError,
        "`kernel` must be finite; got .* NaN.*sqrt",
    ),
    "not_callable": (lambda: [nn.Linear(5, 2)], TypeError, "`model` must be an nn.Module or"),
}


@pytest.mark.parametrize("name", list(MODELS))
@pytest.mark.parametrize("method", METHODS)
def test_models_are_refused(name: str, method: str) -> None:
    build, error, pattern = MODELS[name]
    model = build()
    untouched = name in ("meta", "lazy", "script", "traced", "script_inside")
    before = settings() if untouched or not isinstance(model, nn.Module) else snapshot(model, X)
    training = [m.training for m in model.modules()] if isinstance(model, nn.Module) else None
    with pytest.raises(error, match=f"(?s){pattern}"):
        empirical_ntk(model, X, method=method)
    after = settings() if untouched or not isinstance(model, nn.Module) else snapshot(model, X)
    assert after == before
    if training is not None:
        assert [m.training for m in model.modules()] == training


@pytest.mark.parametrize("name", ["mean_over_the_batch", "softmax_over_the_batch"])
@pytest.mark.parametrize("method", METHODS)
def test_coupling_is_seen_from_one_sample_and_from_equal_ones(name: str, method: str) -> None:
    model = MODELS[name][0]()
    for x1, x2 in ((X[:1], None), (X[:1], X), (X[:1].repeat(3, 1), None), (0 * X, None)):
        with pytest.raises(ValueError, match="one sample at a time"):
            empirical_ntk(model, x1, x2, method=method)


def test_batch_first_forgotten() -> None:
    attention = nn.TransformerEncoderLayer(4, 2, 4)
    with pytest.raises(ValueError, match="batch_first"):
        empirical_ntk(attention, torch.randn(3, 6, 4))
    with pytest.raises(ValueError, match="batch_first"):
        empirical_nngp(attention, torch.randn(3, 6, 4))


def test_a_cancelled_output_is_no_coupling() -> None:
    """f = g - g is zero up to rounding, which differs from batch to batch."""
    model = Module(lambda f, x: (f(x) + 1e3) - (f(x) + 1e3) + 1e-9 * f(x))
    assert torch.isfinite(empirical_ntk(model, X)).all()


class RecomputingFunction(torch.autograd.Function):
    """Recomputes its module in backward, as checkpointing of other libraries does."""

    @staticmethod
    def forward(ctx: Any, run: Callable[[Tensor], Tensor], x: Tensor, *params: Tensor) -> Tensor:
        ctx.run = run
        ctx.save_for_backward(x)
        with torch.no_grad():
            return run(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        with torch.enable_grad():
            torch.autograd.backward(ctx.run(x.detach()), grad)
        return (None,) * (2 + 2)


@pytest.mark.parametrize("method", METHODS)
def test_recomputation_with_other_parameters(method: str) -> None:
    model = Module(lambda f, x: RecomputingFunction.apply(f, x, f.weight, f.bias))
    model.layer.weight.grad = torch.ones(2, 5)
    before = snapshot(model, X)
    with pytest.raises(ValueError, match="`model` must be"):
        empirical_ntk(model, X, method=method)
    assert snapshot(model, X) == before


def test_distributed_tensors(tmp_path) -> None:
    from torch import distributed
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import Replicate, distribute_module

    distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1
    )
    try:
        mesh = DeviceMesh("cpu", [0])
        model = distribute_module(nn.Linear(5, 2), mesh)
        assert Replicate  # the parameters are replicated DTensors
        with pytest.raises(TypeError, match="sharded parameter 'weight' \\(DTensor\\)"):
            empirical_ntk(model, X)
        replicated = nn.parallel.DistributedDataParallel(nn.Linear(5, 2))
        before = snapshot(replicated, X)
        kernel = empirical_ntk(replicated, X)
        assert torch.equal(kernel, empirical_ntk(replicated.module, X))
        assert snapshot(replicated, X) == before
    finally:
        distributed.destroy_process_group()


def test_nan_output_of_a_later_sample() -> None:
    model = Module(lambda f, x: f(x) / (x[:, :1] - 1.0 + 2.0).clamp(max=0.5))
    x = X.abs()
    x[2, 0] = -1.0
    with pytest.raises(ValueError, match="`kernel` must be finite; got"):
        empirical_ntk(model, x[[0, 2]])
    with pytest.raises(ValueError, match="`kernel` must be finite; got"):
        empirical_ntk(model, x)
    with pytest.raises(ValueError, match=r"`model\(x1\)` must be finite"):
        empirical_nngp(model, x)


def test_names_that_contain_quantized_are_no_reason() -> None:
    class Mine(nn.Linear):
        pass

    Mine.__module__ = "my_quantized_nets"
    assert empirical_ntk(Mine(5, 2), X).shape == (3, 3, 2, 2)


class Cut(nn.Module):
    """Outputs that autograd does not connect to the parameters."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.first, self.last, self.how = nn.Linear(3, 4), nn.Linear(4, 2), how

    def forward(self, x: Tensor) -> Tensor:
        out = self.last(self.first(x).detach() if self.how == "first layer" else self.first(x))
        if self.how == "argmax":
            return out.argmax(1).to(x.dtype)
        return torch.from_numpy(out.detach().numpy()) if self.how == "numpy" else out


@pytest.mark.parametrize("method", ["auto", "jacobian", "vector_product"])
def test_a_forward_fn_of_another_module_is_refused(method: Any) -> None:
    """It would have a kernel of zeros, since no parameter of the model has an effect."""
    model, other = nn.Linear(4, 2), nn.Linear(4, 2)
    with pytest.raises(ValueError, match=r"connects to none of them.*forward_fn has to call the"):
        empirical_ntk(model, torch.ones(3, 4), method=method, forward_fn=lambda _, x: other(x))


@pytest.mark.parametrize("method", ["auto", "jacobian", "vector_product"])
@pytest.mark.parametrize("how", ["argmax", "numpy"])
def test_outputs_without_derivatives(how: str, method: Any) -> None:
    with pytest.raises(ValueError, match=r"outputs depend on the parameters.*argmax"):
        empirical_ntk(Cut(how), torch.ones(2, 3), method=method)


def test_a_part_of_the_parameters_may_have_no_influence() -> None:
    net, x = Cut("first layer"), torch.ones(2, 3)
    assert not empirical_ntk(net, x, params=["first.*"]).any()
    whole, last = empirical_ntk(net, x), empirical_ntk(net, x, params=["last.*"])
    assert torch.equal(whole, last)
    frozen = Cut("argmax")
    frozen.first.requires_grad_(False)
    with pytest.raises(ValueError, match=r"none of them \('last.weight' … 'last.bias'\)"):
        empirical_ntk(frozen, x)
