"""The right values, by loops of plain backward passes over a module's own parameters.

Nothing here replaces parameters, batches samples or uses torch.func: what is compared with these
loops must agree with the gradients that training itself would see.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from traces import snapshot

from torch_ntk import NTKOperator, empirical_ntk, linearize, verify

Make = Callable[[], nn.Module]

METHODS = ("auto", "structured", "jacobian", "vector_product")
KERNELS = (*METHODS, "operator")
WAYS = (*(k for k in KERNELS if k != "structured"), "linearize")
"""Without the structured method by its name, which is what `"auto"` takes first."""

NO_FORWARD_MODE = "forward.mode|forward AD|setup_context|method='jacobian'"
"""What `method="vector_product"` may say of an operation that has only a backward rule."""


class Net(nn.Module):
    """A module around a function `(net, x) -> outputs` of its parts: modules and parameters."""

    def __init__(self, function: Callable[[nn.Module, Tensor], Tensor], **parts: object) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def weight(*shape: int) -> nn.Parameter:
    """A parameter of normal numbers."""
    return nn.Parameter(torch.randn(*shape))


def built(make: Make) -> nn.Module:
    """The module in float64, the same at every call, in train mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return make().double()


def inputs(*shape: int, seed: int = 0) -> Tensor:
    """Normal numbers in float64, the same at every call."""
    generator = torch.Generator().manual_seed(100 + seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def normal_like(t: Tensor, seed: int = 0) -> Tensor:
    """Normal numbers of the shape and dtype of `t`; draws nothing from the global state."""
    if t.is_complex():
        return torch.view_as_complex(inputs(*t.shape, 2, seed=seed)).to(t.dtype)
    return inputs(*t.shape, seed=seed).to(t.dtype)


def selected(model: nn.Module, names: Sequence[str] | None = None) -> list[nn.Parameter]:
    """The parameters that require grad, or those of these names; a shared one once."""
    named = model.named_parameters()
    return [p for n, p in named if (p.requires_grad if names is None else n in names)]


def numbers(t: Tensor) -> Tensor:
    """Dense real numbers in one row; a complex number is the pair of its parts."""
    t = (t.to_dense() if t.layout != torch.strided else t).detach()
    return (torch.view_as_real(t.resolve_conj()) if t.is_complex() else t).reshape(-1)


def jacobian(model: nn.Module, x: Tensor, names: Sequence[str] | None = None) -> Tensor:
    """`[N, O, P]` in eval mode, by one backward pass for each sample and output."""
    return outputs_and_jacobian(model, x, names)[1]


def outputs_and_jacobian(
    model: nn.Module, x: Tensor, names: Sequence[str] | None = None
) -> tuple[Tensor, Tensor]:
    """`[N, O]` and `[N, O, P]`, sample by sample in eval mode.

    Pass a module that nobody else uses: a forward may keep what it has computed.
    """
    model.eval()
    params = selected(model, names)
    values, rows = [], []
    for sample in x.split(1):
        with torch.enable_grad():
            outputs = model(sample.detach().clone()).reshape(-1)
        values.append(outputs.detach())
        rows.append(torch.stack([gradient_row(output, params) for output in outputs]))
    return torch.stack(values), torch.stack(rows)


def gradient_row(out: Tensor, params: list[nn.Parameter], u: Tensor | None = None) -> Tensor:
    """The gradient of `out`, weighted with `u`, as one row `[P]`."""
    grads = torch.autograd.grad(out, params, u, retain_graph=True, allow_unused=True)
    pairs = zip(params, grads, strict=True)
    return torch.cat([numbers(torch.zeros_like(p) if g is None else g) for p, g in pairs])


def full(j1: Tensor, j2: Tensor | None = None) -> Tensor:
    """`Θ[n, m, i, j] = Σ_p J1[n, i, p] J2[m, j, p]`."""
    return torch.einsum("nip,mjp->nmij", j1, j1 if j2 is None else j2)


def mean(j1: Tensor, j2: Tensor | None = None) -> Tensor:
    """`Σ_i Θ[n, m, i, i] / O`."""
    return torch.einsum("nmii->nm", full(j1, j2)) / j1.shape[1]


def error(value: Tensor, expected: Tensor) -> float:
    """The largest difference, divided by the largest entry that was expected."""
    assert value.shape == expected.shape, f"{tuple(value.shape)} is not {tuple(expected.shape)}"
    difference = (value.detach().double() - expected).abs().max()
    return float(difference / expected.abs().max().clamp_min(1e-300))


def said(call: Callable[[], object]) -> str:
    """The message of a refusal in the form of this package, empty if there was none."""
    try:
        call()
    except (ValueError, TypeError) as refused:
        if not str(refused).startswith("`"):
            raise
        return str(refused)
    return ""


def errors(
    way: str,
    model: nn.Module,
    x: Tensor,
    j: Tensor,
    f_0: Tensor,
    names: Sequence[str] | None = None,
) -> float:
    """How far one way of evaluating the model is from its outputs `f_0` and Jacobian `j`."""
    n, o, _ = j.shape
    params = None if names is None else list(names)
    if way in METHODS:
        value = empirical_ntk(model, x, method=way, params=params)  # type: ignore[arg-type]
        return error(value, full(j))
    if way == "operator":
        value = NTKOperator(model, x, params=params) @ torch.eye(n * o, dtype=x_dtype(model))
        return error(value, full(j).permute(0, 2, 1, 3).reshape(n * o, n * o))
    if way == "verify":
        found = verify(model, x, params=params, samples=n)
        assert found.is_right, str(found)
        assert any(c.method == "auto" and c.is_right for c in found.checks), str(found)
        return max(c.error for c in found.checks if not c.refusal and c.dtype == torch.float64)
    return linear_error(model, x, j, f_0)


def x_dtype(model: nn.Module) -> torch.dtype:
    """The precision that the model's kernel has by default."""
    kinds = (p.real.dtype if p.is_complex() else p.dtype for p in model.parameters())
    return next(kind for kind in kinds if kind.is_floating_point)


def linear_error(model: nn.Module, x: Tensor, j: Tensor, f_0: Tensor) -> float:
    """Of the linearized network: its outputs at other parameters, and its gradients there."""
    lin = linearize(model)
    params = selected(lin)
    steps = [0.3 * normal_like(p, k) for k, p in enumerate(params)]
    with torch.no_grad():
        for p, d in zip(params, steps, strict=True):
            p.add_(d)
    moved = torch.einsum("nip,p->ni", j, torch.cat([numbers(d) for d in steps]).double())
    out = lin(x).reshape(len(x), -1)
    values = error(out - f_0, moved)
    u = normal_like(out)
    row = gradient_row(out, params, u)
    return max(values, error(row, torch.einsum("nip,ni->p", j, u.to(j.dtype))))


def check(
    way: str,
    make: Make,
    x: Tensor,
    *,
    refusal: str = "",
    names: Sequence[str] | None = None,
    tolerance: float = 1e-10,
    before: Callable[[nn.Module], object] | None = None,
    plain: Make | None = None,
) -> None:
    """One way gives the value of the loop, or refuses for the cause that is named; no trace.

    Args:
        way: One of `WAYS`, or `verify`.
        make: Builds the module.
        x: The samples.
        refusal: A pattern that a refusal has to match; empty if there must be none.
        names: The parameters to differentiate by.
        tolerance: Of the relative error.
        before: What the user has done with the module before.
        plain: Builds the same function for the loop, where that cannot take the module itself.
    """
    f_0, j = outputs_and_jacobian(built(plain or make), x, names)
    model = built(make)
    if before is not None:
        before(model)
    state = snapshot(model, x)
    found: list[float] = []
    message = said(lambda: found.append(errors(way, model, x, j, f_0, names)))
    after = snapshot(model, x)
    assert not [k for k in {**state, **after} if state.get(k) != after.get(k)], "it left a trace"
    if message:
        assert refusal, message
        assert re.search(refusal, message, re.IGNORECASE | re.DOTALL), message
    else:
        assert found[0] <= tolerance, f"{way} is off by {found[0]:.1e}"
