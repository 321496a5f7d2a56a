"""What has no limit is refused with the node, the reason and what to do."""

# ruff: noqa: E501  # tables are easier to read with one row a line
from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from small_nets import Beside, Function, Plus, conv, conv1d, dense
from torch import Tensor, nn

from torch_ntk import (
    NTKConv3d,
    NTKConvLocal2d,
    NTKConvTranspose1d,
    NTKLinear,
    analytic_kernels,
    analytic_nngp,
    analytic_ntk,
)

VECTOR, IMAGE = (4,), (3, 4, 5)


class Tied(nn.Module):
    """Two layers of one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = dense(4, 4), dense(4, 4)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.a(x)))


class Twice(nn.Module):
    """One layer used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.a = dense(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(torch.relu(self.a(x)))


class Own(nn.Module):
    """A parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.a = dense(4, 4)
        self.scale = nn.Parameter(torch.ones(4, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) * self.scale


class Written(nn.Module):
    """Two dense layers, or two convolutions, with a forward of the test's."""

    def __init__(self, forward: Callable[[Written, Tensor], Tensor], images: bool = False) -> None:
        super().__init__()
        make = (lambda *a: conv(*a, padding=1)) if images else dense
        self.a, self.b = make(3 if images else 4, 4), make(4, 4)
        self._written = forward

    def forward(self, x: Tensor) -> Tensor:
        return self._written(self, x)


def after(module: nn.Module | Callable[[Tensor], Tensor], images: bool = False) -> nn.Module:
    """A layer, and `module` on it."""
    first = conv(3, 4, padding=1) if images else dense(4, 4)
    return nn.Sequential(first, module if isinstance(module, nn.Module) else Function(module))


def hooked() -> nn.Module:
    net = after(nn.ReLU())
    net[1].register_forward_hook(lambda module, args, output: 2 * output)
    return net


def replaced() -> nn.Module:
    net = after(nn.ReLU())
    net[0].forward = lambda x: x
    return net


def shared_norm() -> nn.Module:
    norm = nn.LayerNorm(4, dtype=torch.float64)
    return nn.Sequential(dense(4, 4), norm, dense(4, 4), norm)


def in_place(m: Written, x: Tensor) -> Tensor:
    y = m.a(x)
    z = torch.relu_(y)
    return m.b(y) + m.b(z)


def in_place_through_a_view(m: Written, x: Tensor) -> Tensor:
    y = m.a(x)
    z = y.flatten(1).relu_()
    return y.flatten(1) + z


def doubled_gain() -> nn.Module:
    norm = nn.GroupNorm(2, 4, dtype=torch.float64)
    return nn.Sequential(conv(3, 4), norm, Function(lambda x: 2 * x), nn.ReLU())


class OwnDense(NTKLinear):
    """A layer that computes something else than its parent."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).square()


class Gated(nn.Module):
    """A layer times its own input."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return x * self.inner(x)


class UpTo(nn.Module):
    """A transposed convolution that is told the size of its output."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.up = NTKConvTranspose1d(2, 4, 3, stride=2, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(x, output_size=[self.size])


def cat_then_groups(pool: bool) -> nn.Module:
    both = Beside(conv(3, 4, padding=1), conv(3, 4, padding=1, sigma_w=0.3))
    between = [nn.AvgPool2d(2)] if pool else []
    return nn.Sequential(both, nn.ReLU(), *between, conv(8, 4, 1, groups=2))


ENCODER = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True, dtype=torch.float64)

# name: (network, shape of a sample, what the message says)
REFUSED: dict[str, tuple[nn.Module, tuple[int, ...], str]] = {
    "nn.Linear": (nn.Sequential(nn.Linear(4, 4)).double(), VECTOR, r"nn\.Linear at '0'.*diverges.*ntk_parameterize"),
    "nn.Linear alone": (nn.Linear(4, 4).double(), VECTOR, r"nn\.Linear.*ntk_parameterize"),
    "nn.Conv2d": (nn.Sequential(conv(3, 4), nn.Conv2d(4, 4, 1).double()), IMAGE, r"nn\.Conv2d at '1'.*ntk_parameterize"),
    "batch norm": (after(nn.BatchNorm2d(4).double(), True), IMAGE, r"nn\.BatchNorm2d at '1'.*GroupNorm"),
    "instance norm": (after(nn.InstanceNorm2d(4), True), IMAGE, r"InstanceNorm2d.*GroupNorm"),
    "max pool": (after(nn.MaxPool2d(2), True), IMAGE, r"nn\.MaxPool2d at '1'.*average pooling"),
    "F.max_pool2d": (after(lambda x: F.max_pool2d(x, 2), True), IMAGE, "max_pool2d"),
    "softmax": (after(nn.Softmax(-1)), VECTOR, r"nn\.Softmax at '1'.*outside"),
    "F.softmax": (after(lambda x: F.softmax(x, -1)), VECTOR, "softmax"),
    "x.softmax": (after(lambda x: x.softmax(-1)), VECTOR, "softmax"),
    "attention": (nn.Sequential(conv1d(2, 4), ENCODER), (2, 6), r"nn\.TransformerEncoderLayer at '1'"),
    "recurrent": (nn.Sequential(nn.GRU(4, 4).double()), VECTOR, r"nn\.GRU.*same weights"),
    "embedding": (nn.Sequential(nn.Embedding(4, 4).double()), VECTOR, r"nn\.Embedding"),
    "bilinear": (after(Function(lambda x: x @ x.T)), VECTOR, "getattr"),
    "three axes of two": (nn.Sequential(NTKConv3d(3, 4, 1).double()), IMAGE, r"NTKConv3d\(3, 4, …\) on samples of shape .* at '0'.*3 axes"),
    "another input size": (nn.Sequential(NTKConvLocal2d(3, 4, 2, input_size=9).double()), IMAGE, r"NTKConvLocal2d\(3, 4, …\) on .* positions.*weights for \(9, 9\)"),
    "output size": (UpTo(15), (2, 6), r"output_size=\[15\] at 'up'.*valid sizes range"),
    "no output": (nn.Sequential(NTKConvTranspose1d(2, 4, 2, padding=4).double()), (2, 6), "leaves no output"),
    "layer used twice": (Twice(), VECTOR, r"second use.*'a'.*separate layer, with its own parameters"),
    "tied weights": (Tied(), VECTOR, "second use of the parameters that 'a' uses"),
    "norm used twice": (shared_norm(), VECTOR, "second use of the parameters that '1' uses"),
    "own parameter": (Own(), VECTOR, r"parameter 'scale' used directly.*buffer"),
    "dependent sum": (Plus(nn.Sequential(dense(4, 4), nn.ReLU())), VECTOR, "not independent"),
    "x + relu(f(x))": (Written(lambda m, x: (lambda y: y + torch.relu(m.b(y)))(m.a(x))), VECTOR, r"not independent.*'add'|not independent.*NTK layer"),
    "f(x) + norm": (after(lambda y: y + F.layer_norm(y, (4,))), VECTOR, "not independent"),
    "product of a branch and what it is part of": (Written(lambda m, x: (lambda y: y * (y + m.b(torch.relu(y))))(m.a(x))), VECTOR, r"product of values that are not independent at 'mul'.*same units.*NTK layer"),
    "product of a value and its norm": (after(lambda y: y * F.layer_norm(y, (4,))), VECTOR, "not independent"),
    "quotient": (Written(lambda m, x: m.a(x) / m.b(x)), VECTOR, "quotient of features"),
    "quotient of data": (Written(lambda m, x: x / m.a(x)), VECTOR, "quotient by features"),
    "product with data": (Written(lambda m, x: m.a(x) * x), VECTOR, r"known tensor of shape \(2, 4\).*one entry on the axis of channels"),
    "unlike shapes": (Written(lambda m, x: m.a(x).mean((2, 3), keepdim=True) + m.b(m.a(x)), True), IMAGE, "second use|sum of features"),
    "activation twice": (nn.Sequential(dense(4, 4), nn.ReLU(), nn.LayerNorm(4), dense(4, 4)), VECTOR, "not Gaussian"),
    "activation of data": (nn.Sequential(Plus(dense(4, 4)), nn.ReLU()), VECTOR, r"not Gaussian.*NTK layer before"),
    "activation of pooled activations": (nn.Sequential(conv(3, 4), nn.ReLU(), nn.AvgPool2d(2, 1), nn.ReLU()), IMAGE, "not Gaussian"),
    "groups on inputs": (nn.Sequential(conv1d(4, 4, groups=2)), (4, 6), r"groups on the inputs.*groups=1"),
    "depthwise on inputs": (nn.Sequential(conv(3, 6, groups=3)), IMAGE, r"groups on the inputs.*groups=1"),
    "depthwise, then relu": (nn.Sequential(conv(3, 4), conv(4, 4, 1, groups=4), nn.ReLU()), IMAGE, r"not Gaussian.*depthwise.*kernel size 1"),
    "depthwise, then groups": (nn.Sequential(conv(3, 4), conv(4, 4, 1, groups=4), nn.GroupNorm(2, 4).double()), IMAGE, r"not Gaussian.*one group"),
    "depthwise times its input": (after(Gated(conv(4, 4, 1, groups=4)), True), IMAGE, "same units"),
    "groups on a concatenation": (cat_then_groups(False), IMAGE, r"groups on channels of several kinds"),
    "groups on a pooled concatenation": (cat_then_groups(True), IMAGE, r"groups on channels of several kinds"),
    "group norm of channels": (after(nn.GroupNorm(4, 4).double(), True), IMAGE, "one channel per group"),
    "trained gain, doubled, then relu": (doubled_gain(), IMAGE, r"trained gain.*another operation in between.*weight\.requires_grad_\(False\)"),
    "subclass": (nn.Sequential(OwnDense(4, 4)), VECTOR, r"OwnDense at '0'.*subclass of NTKLinear"),
    "partial layer norm": (after(lambda x: F.layer_norm(x, (5,)), True), IMAGE, "layer normalization over"),
    "gain per position": (after(nn.LayerNorm((4, 4, 5)).double(), True), IMAGE, "gain per position"),
    "dense on positions": (nn.Sequential(conv(3, 4), dense(3, 2)), IMAGE, r"NTKLinear.*Flatten or pool"),
    "wrong channels": (nn.Sequential(dense(4, 4), nn.ReLU(), dense(5, 1)), VECTOR, r"NTKLinear\(5, 1\) on 4 features"),
    "kernel too large": (nn.Sequential(conv(3, 4, 5)), IMAGE, "larger than the padded image"),
    "reflect padding too large": (nn.Sequential(conv(3, 4, padding=4, padding_mode="reflect")), IMAGE, "reflect padding of 4"),
    "circular padding too large": (nn.Sequential(conv(3, 4, padding=5, padding_mode="circular")), IMAGE, "circular padding of 5"),
    "window too large": (after(nn.AvgPool2d(7), True), IMAGE, r"average over positions \(4, 5\)"),
    "pooling of vectors": (after(lambda x: F.adaptive_avg_pool2d(x, 1)), VECTOR, "adaptive_avg_pool2d on samples"),
    "nn.AvgPool2d of vectors": (after(nn.AvgPool2d(2)), VECTOR, "avg_pool2d on samples"),
    "F.avg_pool1d over channels": (after(lambda x: F.avg_pool1d(x, 2)), (6, 4), r"avg_pool1d on samples of shape \(6, 4\) with channels on axis 2.*Permute"),
    "F.adaptive_avg_pool1d over channels": (after(lambda x: F.adaptive_avg_pool1d(x, 2)), (6, 4), "channels on axis 2"),
    "mean over channels": (after(lambda x: x.mean(1), True), IMAGE, "Only positions"),
    "mean of everything": (after(lambda x: x.mean(), True), IMAGE, "mix the samples"),
    "flatten of samples": (after(lambda x: x.flatten(0, 1), True), IMAGE, "flattening of axis 0"),
    "reshape": (after(lambda x: x.reshape(-1, 5, 4, 4), True), IMAGE, "reshaping"),
    "positions of averaged channels": (nn.Sequential(conv(3, 8), nn.ReLU(), nn.AvgPool2d(2), nn.PixelShuffle(2)), IMAGE, r"makes positions of channels at '3'.*outputs of a layer.*before the activation"),
    "one channel": (nn.Sequential(conv(3, 4), nn.PixelShuffle(2)), IMAGE, "no axis of channels|several axes"),
    "index": (after(lambda x: x[:, 0]), VECTOR, r"an index that leaves no axis of channels.*x\[:, :1\]"),
    "cat of samples": (after(lambda x: torch.cat([x, x], 0)), VECTOR, "axis 0"),
    "zero factor": (after(lambda x: 0 * x), VECTOR, "factor of 0"),
    "PReLU": (after(nn.PReLU(dtype=torch.float64)), VECTOR, r"slope is trained at '1'"),
    "noise": (after(lambda x: F.rrelu(x, training=True)), VECTOR, r"rrelu|deterministic"),
    "active dropout": (after(lambda x: F.dropout(x, 0.5)), VECTOR, r"dropout.*training=self\.training"),
    "log": (after(torch.log), VECTOR, "finite"),
    "rounded": (after(lambda x: x.to(torch.int64).double()), VECTOR, "conversion of features to torch.int64 at 'to'"),
    "truth values": (after(lambda x: x.type_as(torch.tensor(True)) * 1.0), VECTOR, "conversion of features to torch.bool"),
    "jump": (after(torch.sign), VECTOR, r"not an elementwise activation at 'sign"),
    "a branch times itself, elsewhere": (Written(lambda m, x: (lambda y: y[:, :, :, :2] * y[:, :, :, 3:])(torch.relu(m.a(x))), True), IMAGE, r"product of values that are not independent at 'mul'.*NTK layer"),
    "two features": (Written(lambda m, x: (lambda y: torch.maximum(y, m.b(y)))(m.a(x))), VECTOR, "maximum, an elementwise function of two"),
    "a slope for each channel": (after(lambda x: torch.maximum(x, torch.arange(4.0))), VECTOR, "maximum with a known tensor.*number"),
    "no layer": (nn.Sequential(nn.ReLU()), VECTOR, "depends on no random weights"),
    "hook": (hooked(), VECTOR, r"ReLU with a forward hook.*'1'"),
    "replaced forward": (replaced(), VECTOR, "replaced forward"),
    "overwritten": (Written(in_place), VECTOR, r"in place.*overwrites 'a'"),
    "overwritten through a view": (Written(in_place_through_a_view), VECTOR, "in place"),
    "weight norm": (nn.Sequential(nn.utils.parametrizations.weight_norm(dense(4, 4))), VECTOR, "ParametrizedNTKLinear at"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refusal(name: str) -> None:
    net, shape, says = REFUSED[name]
    x = torch.randn(2, *shape, dtype=torch.float64)
    for kernel in (analytic_ntk, analytic_nngp):
        with pytest.raises(ValueError, match=rf"(?s)`model` must be.*({says})") as error:
            kernel(net, x)
        # What came, at which node; why it has no limit; what to do.
        _, _, came = str(error.value).partition("; got ")
        if name != "no layer":
            assert re.search(r" at '[^']+'\. .+?\.\)? .+\.$", came), came


def test_a_gain_that_is_not_one() -> None:
    net = after(nn.LayerNorm(4, dtype=torch.float64))
    with torch.no_grad():
        net[1].weight[0] = 2
    with pytest.raises(ValueError, match="Initialize its weight to 1"):
        analytic_ntk(net, torch.randn(2, 4))
    with torch.no_grad():
        net[1].weight.fill_(1)
        net[1].bias[1] = 0.5
    with pytest.raises(ValueError, match="Initialize its bias to 0"):
        analytic_ntk(net, torch.randn(2, 4))


class Branching(nn.Module):
    """Control flow by the data."""

    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


class Two(nn.Module):
    """Two inputs, and two outputs."""

    def __init__(self, pair: bool) -> None:
        super().__init__()
        self.a, self.pair = dense(4, 4), pair

    def forward(self, x: Tensor, y: Tensor | None = None) -> object:
        return (self.a(x), x) if self.pair else self.a(x)


class Needs(nn.Module):
    """A second tensor without a default."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y


@pytest.mark.parametrize(
    ("net", "says"),
    [
        (nn.Sequential(dense(4, 4), Branching()), r"traceable by torch.fx.*control flow"),
        (Two(True), r"to one tensor.*tuple"),
        (Needs(), r"of one tensor.*'y'"),
        (lambda x: x, r"nn\.Module"),
        (nn.ReLU, r"nn\.Module"),
        (None, r"nn\.Module"),
    ],
    ids=["control flow", "two outputs", "two inputs", "function", "class", "None"],
)
def test_what_cannot_be_read(net: nn.Module, says: str) -> None:
    with pytest.raises(TypeError, match=rf"(?s)`model` must be.*{says}"):
        analytic_kernels(net, torch.randn(2, 4))


def test_an_argument_with_a_default_is_left_at_it() -> None:
    assert analytic_ntk(Two(False), torch.randn(2, 4)).shape == (2, 2)


def test_a_changed_root() -> None:
    x = torch.randn(2, 4, dtype=torch.float64)
    net = nn.Sequential(dense(4, 4), nn.ReLU(), dense(4, 1))
    handle = net.register_forward_hook(lambda module, args, out: 2 * out)
    with pytest.raises(ValueError, match="Sequential with a forward hook"):
        analytic_ntk(net, x)
    handle.remove()
    net.forward = lambda x: 2 * x  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="replaced forward"):
        analytic_ntk(net, x)
