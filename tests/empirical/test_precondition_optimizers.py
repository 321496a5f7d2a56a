"""P of real optimizers after real steps, and what the kernel J P Jᵀ says of the next one."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning.fabric import Fabric
from lightning.pytorch.core.optimizer import LightningOptimizer
from oracles import contract_full, jacobian_loop, relative_error
from torch import Tensor, nn
from torch.optim import SGD, Adagrad, Adam, Adamax, AdamW, NAdam, Optimizer, RMSprop

from torch_ntk import empirical_ntk
from torch_ntk._optimizers import NoScalesError, NoStepError, step_scales, unwrapped

X = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
STEPS = 4
Gradients = list[Tensor]


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).double()


def trained(model: nn.Module, optimizer: Optimizer, steps: int = STEPS) -> dict[str, Gradients]:
    """The gradients of some steps by name."""
    found: dict[str, Gradients] = {n: [] for n, _ in model.named_parameters()}
    for k in range(steps):
        optimizer.zero_grad()
        model(X * (1 + k)).square().sum().backward()
        for n, p in model.named_parameters():
            found[n].append(p.grad.clone())
        optimizer.step()
    return found


def average(values: Gradients, decay: float) -> Tensor:
    """a ← β a + (1 - β) value, from 0 on."""
    a = torch.zeros_like(values[0])
    for value in values:
        a = decay * a + (1 - decay) * value
    return a


def squares(g: Gradients) -> Gradients:
    return [t**2 for t in g]


def adam(g: Gradients, beta: float = 0.999, eps: float = 1e-8) -> Tensor:
    v = average(squares(g), beta) / (1 - beta ** len(g))
    return 1 / (v.sqrt() + eps)


def amsgrad(g: Gradients) -> Tensor:
    """The largest average so far, corrected by the present number of steps."""
    each = [average(squares(g[: k + 1]), 0.9) for k in range(len(g))]
    return 1 / ((torch.stack(each).amax(0) / (1 - 0.9 ** len(g))).sqrt() + 1e-8)


def centered(g: Gradients) -> Tensor:
    return 1 / ((average(squares(g), 0.9) - average(g, 0.9) ** 2).sqrt() + 1e-6)


def adagrad(g: Gradients) -> Tensor:
    total = 0.2 + torch.stack(squares(g)).sum(0)
    return 1 / (total.sqrt() + 1e-10) / (1 + (len(g) - 1) * 0.3)


Make = Callable[[Any], Optimizer]
KINDS: dict[str, tuple[Make, Callable[[Gradients], Tensor]]] = {
    "sgd": (lambda p: SGD(p, 0.01, momentum=0.9, nesterov=True), torch.ones_like),
    "adam": (lambda p: Adam(p, 0.01), adam),
    "adam, one by one": (lambda p: Adam(p, 0.01, foreach=False), adam),
    "adam, fused": (lambda p: Adam(p, 0.01, fused=True), adam),
    "adam, lr in a tensor": (lambda p: Adam(p, torch.tensor(0.01), foreach=False), adam),
    "adam, maximize": (lambda p: Adam(p, 1e-4, maximize=True), adam),
    "adam, other constants": (
        lambda p: Adam(p, 0.01, betas=(0.5, 0.8), eps=0.1),
        lambda g: adam(g, 0.8, 0.1),
    ),
    "amsgrad": (lambda p: AdamW(p, 0.01, betas=(0.9, 0.9), amsgrad=True), amsgrad),
    "adamw": (lambda p: AdamW(p, 0.01, weight_decay=0.3), adam),
    "nadam": (lambda p: NAdam(p, 0.01), adam),
    "rmsprop": (
        lambda p: RMSprop(p, 0.01, alpha=0.9, eps=1e-6, momentum=0.5),
        lambda g: 1 / (average(squares(g), 0.9).sqrt() + 1e-6),
    ),
    "rmsprop, centered": (lambda p: RMSprop(p, 0.01, 0.9, 1e-6, centered=True), centered),
    "adagrad": (lambda p: Adagrad(p, 0.01, 0.3, initial_accumulator_value=0.2), adagrad),
}


@pytest.mark.parametrize("kind", KINDS)
def test_formula(kind: str) -> None:
    """From the gradients of the steps, without the optimizer's state; which is not touched."""
    make, expected = KINDS[kind]
    model = net()
    optimizer = make(model.parameters())
    gradients = trained(model, optimizer)
    before = copy.deepcopy(optimizer.state_dict())
    p = dict(step_scales("precondition", optimizer, dict(model.named_parameters())))
    for n, g in gradients.items():
        wanted = torch.ones_like(g[0]) if kind == "sgd" else expected(g)
        assert relative_error(torch.as_tensor(p[n]).expand(g[0].shape), wanted) < 1e-12
    roots = torch.cat(
        [torch.as_tensor(p[n]).expand(g[0].shape).flatten() for n, g in gradients.items()]
    )
    kernel = empirical_ntk(model, X, precondition=optimizer)
    after = optimizer.state_dict()
    assert str(after) == str(before)
    j = jacobian_loop(model, X) * roots.sqrt()
    assert relative_error(kernel, contract_full(j, j)) < 1e-10


def test_a_state_that_was_loaded_and_the_same_tensors_under_other_names() -> None:
    model = net()
    optimizer = Adam(model.parameters(), 0.01)
    trained(model, optimizer)
    kernel = empirical_ntk(model, X, precondition=optimizer)
    twin = copy.deepcopy(model)
    other = Adam(twin.parameters(), 0.01)
    other.load_state_dict(optimizer.state_dict())
    assert torch.equal(empirical_ntk(twin, X, precondition=other), kernel)
    compiled = torch.compile(model, backend="eager")
    assert torch.equal(empirical_ntk(compiled, X, precondition=optimizer), kernel)
    params = dict(model.named_parameters())

    def f(values: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(model, values, (x,))

    found = empirical_ntk(f, X, params=params, precondition=optimizer)
    assert relative_error(found, kernel) < 1e-12


@pytest.mark.parametrize("method", ["structured", "jacobian", "vector_product"])
def test_in_inference_mode(method: Any) -> None:
    model = net()
    optimizer = Adam(model.parameters(), 0.01)
    trained(model, optimizer)
    kernel = empirical_ntk(model, X, precondition=optimizer)
    with torch.inference_mode():
        found = empirical_ntk(model, X, method=method, precondition=optimizer)
    assert relative_error(found, kernel) < 1e-12


def test_learning_rates_count_relative_to_the_first_group() -> None:
    model = net()
    adam_, sgd = Adam(groups_of(model)), SGD(groups_of(model))
    gradients = trained(model, adam_)
    rates = {"0.weight": 0.25, "0.bias": 0.0, "2.weight": 1.0, "2.bias": 1.0}
    parts = empirical_ntk(model, X, by="parameter", precondition=adam_)
    plain = empirical_ntk(model, X, by="parameter", precondition=sgd)
    free = empirical_ntk(model, X, by="parameter")
    whole = empirical_ntk(model, X, precondition=adam_)
    assert relative_error(sum(parts.values()), whole) < 1e-12
    start, j = 0, jacobian_loop(model, X)
    for n, g in gradients.items():
        own = j[..., start : start + g[0].numel()] * (rates[n] * adam(g)).sqrt().flatten()
        start += g[0].numel()
        assert float((parts[n] - contract_full(own, own)).abs().max()) < 1e-10 * float(whole.max())
        assert float((plain[n] - rates[n] * free[n]).abs().max()) < 1e-12 * float(free[n].max())


def groups_of(model: nn.Module) -> list[dict[str, Any]]:
    return [
        {"params": model[2].parameters(), "lr": 0.02},
        {"params": [model[0].weight], "lr": 0.005},
        {"params": [model[0].bias], "lr": 0.0},
    ]


def test_a_single_group_has_p_whatever_its_learning_rate() -> None:
    """A schedule may begin and end with 0."""
    model = net()
    optimizer = Adam(model.parameters(), 0.01)
    trained(model, optimizer)
    kernel = empirical_ntk(model, X, precondition=optimizer)
    optimizer.param_groups[0]["lr"] = 0.0
    assert torch.equal(empirical_ntk(model, X, precondition=optimizer), kernel)


def test_a_small_step_of_adam_moves_the_outputs_by_the_kernel() -> None:
    r"""Without momentum f(θ - lr P g) - f(θ) = -lr J P Jᵀ ∂L/∂f + O(lr²), P that of this step."""
    misses = []
    for lr in (2e-4, 1e-4):
        model = net()
        optimizer = Adam(model.parameters(), 0.05, betas=(0.0, 0.9))
        trained(model, optimizer)
        optimizer.param_groups[0]["lr"] = lr
        start = copy.deepcopy(model.state_dict())
        f_0 = model(X)
        of_loss = (f_0 - 1.0).detach()  # of L = ½ Σ (f - 1)²
        optimizer.zero_grad()
        (0.5 * (f_0 - 1.0).square().sum()).backward()
        optimizer.step()
        moved = (model(X) - f_0).detach()
        model.load_state_dict(start)  # into the parameters that the optimizer holds
        kernel = empirical_ntk(model, X, precondition=optimizer)
        predicted = -lr * torch.einsum("nmij,mj->ni", kernel, of_loss)
        misses.append(relative_error(predicted, moved))
        free = -lr * torch.einsum("nmij,mj->ni", empirical_ntk(model, X), of_loss)
        scale = (free * moved).sum() / (free * free).sum()
        assert relative_error(scale * free, moved) > 0.1  # gradient descent goes elsewhere
    assert misses[0] < 1e-2
    assert misses[1] / misses[0] == pytest.approx(0.5, rel=0.05)


def test_complex_moments() -> None:
    """torch keeps one second moment for each part of a complex number."""
    w = nn.Parameter(torch.randn(3, dtype=torch.complex128))
    optimizer = Adam([w], 0.01)
    gradients = []
    for k in range(3):
        optimizer.zero_grad()
        (w * torch.tensor([1 + 2j, 3 - 1j, k * 1.0])).abs().square().sum().backward()
        gradients.append(torch.view_as_real(w.grad).clone())
        optimizer.step()
    ((_, p),) = step_scales("precondition", optimizer, {"w": w})
    assert relative_error(torch.as_tensor(p), adam(gradients)) < 1e-12


def test_wrappers_that_delegate_their_steps() -> None:
    model = net()
    optimizer = Adam(model.parameters(), 0.01)
    trained(model, optimizer)
    kernel = empirical_ntk(model, X, precondition=optimizer)
    lightning = LightningOptimizer(optimizer)
    assert torch.equal(empirical_ntk(model, X, precondition=lightning), kernel)
    fabric = Fabric(accelerator="cpu").setup_optimizers(optimizer)
    assert unwrapped(LightningOptimizer(optimizer)) is unwrapped(fabric) is optimizer


class Other(Adam):
    """A subclass, which may take any step."""


class Lookahead(Optimizer):
    """Steps of its own around another optimizer."""

    def __init__(self, optimizer: Optimizer) -> None:
        super().__init__(optimizer.param_groups, {})
        self.optimizer = optimizer


def sparse_training() -> tuple[nn.Module, Optimizer]:
    model = net()
    optimizer = Adam(model.parameters(), 0.01)
    model[0].bias.requires_grad_(False)
    model(X).sum().backward()
    optimizer.step()
    model[0].bias.requires_grad_(True)
    return model, optimizer


def with_a_step(make: Make, **group: Any) -> Callable[[nn.Module], Optimizer]:
    def made(model: nn.Module) -> Optimizer:
        optimizer = make(model.parameters())
        trained(model, optimizer, 1)
        optimizer.param_groups[0].update(group)
        return optimizer

    return made


def without_entry(model: nn.Module) -> dict[str, Tensor]:
    return {n: torch.ones_like(p) for n, p in model.named_parameters() if n != "2.bias"}


def entry(**changed: Any) -> Callable[[nn.Module], dict[str, Any]]:
    def made(model: nn.Module) -> dict[str, Any]:
        ones = {n: torch.ones_like(p) for n, p in model.named_parameters()}
        return {**ones, **{n.replace("_", "."): p for n, p in changed.items()}}

    return made


ADAM: Make = lambda p: Adam(p, 0.01)  # noqa: E731
WRONG: dict[str, tuple[Callable[[nn.Module], Any], type[Exception], str]] = {
    "a string": (lambda m: "adam", TypeError, "`precondition` must be None, a torch.optim"),
    "a list": (lambda m: [torch.ones(3)], TypeError, "got a list of length 1.*name"),
    "another optimizer": (
        with_a_step(lambda p: Adamax(p)),
        TypeError,
        "one of torch.optim's SGD, Adam, AdamW, NAdam, RMSprop, Adagrad itself, or a mapping.*"
        r"Adamax.*precondition=\{name: P\}",
    ),
    "a subclass": (with_a_step(Other), TypeError, "itself, or a mapping.*Other"),
    "an unknown wrapper": (lambda m: Lookahead(with_a_step(ADAM)(m)), TypeError, "Lookahead"),
    "no step": (lambda m: ADAM(m.parameters()), NoStepError, "has taken a step; got a Adam before"),
    "no step of Adagrad": (lambda m: Adagrad(m.parameters()), NoStepError, "before its first"),
    "of another model": (
        lambda m: with_a_step(ADAM)(net()),
        ValueError,
        "holds every parameter.*'0.weight', '0.bias', '2.weight', '2.bias'",
    ),
    "of a part": (
        lambda m: SGD([*m[0].parameters(), m[2].weight], 0.1),
        ValueError,
        r"does not hold '2.bias'\..*params=\[",
    ),
    "first rate 0": (
        with_a_step(lambda p: Adam([{"params": [q]} for q in p], 0.01), lr=0.0),
        NoScalesError,
        "first group of parameters has a learning rate above 0",
    ),
    "rate not finite": (with_a_step(ADAM, lr=float("nan")), ValueError, "finite learning rates"),
    "diverged": (
        lambda m: poisoned(with_a_step(ADAM)(m)),
        ValueError,
        "finite P; got.*not finite for '0.weight'.*eps",
    ),
    "missing": (without_entry, ValueError, "for all parameters; got none for '2.bias'"),
    "unknown": (
        entry(head=torch.ones(3)),
        ValueError,
        "by the names of the model's parameters; got also 'head'",
    ),
    "shape": (entry(**{"2_bias": torch.ones(3)}), ValueError, r"\['2.bias'\]` must be.*\(2,\)"),
    "a number": (
        entry(**{"2_bias": 1.0}),
        TypeError,
        r"`precondition\['2.bias'\]` must be a torch",
    ),
    "zero": (
        entry(**{"2_bias": torch.tensor([1.0, 0.0])}),
        ValueError,
        "positive in every entry; got a smallest entry of 0",
    ),
    "negative": (entry(**{"2_bias": torch.tensor([1.0, -2.0])}), ValueError, "entry of -2"),
    "nan": (entry(**{"2_bias": torch.tensor([1.0, torch.nan])}), ValueError, "finite; got 1 NaN"),
    "integers": (entry(**{"2_bias": torch.ones(2).long()}), TypeError, "floating-point"),
}


def poisoned(optimizer: Optimizer) -> Optimizer:
    next(iter(optimizer.state.values()))["exp_avg_sq"][0] = torch.nan
    return optimizer


@pytest.mark.parametrize("name", WRONG)
def test_refusals(name: str) -> None:
    make, kind, said = WRONG[name]
    model = net()
    given = make(model)
    with pytest.raises(kind, match=said):
        empirical_ntk(model, X, precondition=given)


def test_a_parameter_that_never_had_a_gradient_is_named() -> None:
    model, optimizer = sparse_training()
    with pytest.raises(ValueError, match=r"no state for '0\.bias', which never had a gradient"):
        empirical_ntk(model, X, precondition=optimizer)
    assert len(optimizer.state) == 3  # asking makes no entry
    names = ["0.weight", "2.*"]
    assert empirical_ntk(model, X, params=names, precondition=optimizer).isfinite().all()
