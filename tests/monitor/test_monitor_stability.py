"""The step size against the curvature of the loss, from the Hessian in the parameters."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from oracles import jacobian_loop
from torch import Tensor, nn

from torch_ntk.monitor import Probe
from torch_ntk.monitor.measure._record import Record
from torch_ntk.monitor.stability import Training, _stability

N, OUTPUTS = 6, 3


def network() -> nn.Module:
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(4, 7), nn.Tanh(), nn.Linear(7, OUTPUTS)).double()


def samples(y: Tensor) -> Probe:
    torch.manual_seed(3)
    return Probe(torch.randn(N, 4, dtype=torch.float64), y)


LABELS = torch.tensor([0, 2, 1, 1, 0, 2])
NUMBERS = torch.linspace(-1, 2, N * OUTPUTS, dtype=torch.float64).reshape(N, OUTPUTS)
SHARES = NUMBERS.softmax(1)


def observed(
    model: nn.Module, probe: Probe, training: Training, **options: Any
) -> dict[str, float]:
    record = Record(("stability",), **options)
    record.begin(model, probe, 0)
    return record.measure(model, 0, training).scalars


def gauss_newton(model: nn.Module, x: Tensor, loss: Callable[[Tensor], Tensor]) -> Tensor:
    """Jᵀ H J `[P, P]`."""
    model = copy.deepcopy(model).eval()
    jacobian = jacobian_loop(model, x).reshape(-1, sum(p.numel() for p in model.parameters()))
    f = model(x).detach().flatten()
    second = torch.autograd.functional.hessian(lambda v: loss(v.reshape(N, OUTPUTS)), f)
    return jacobian.T @ second @ jacobian


def top(matrix: Tensor) -> float:
    return float(torch.linalg.eigvalsh(matrix)[-1])


def half_huber(f: Tensor, y: Tensor) -> Tensor:
    return F.smooth_l1_loss(f, y, beta=2.0)


@pytest.mark.parametrize(
    ("given", "y", "meant"),
    [
        ("auto", LABELS, F.cross_entropy),
        ("cross_entropy", LABELS, F.cross_entropy),
        (nn.CrossEntropyLoss(label_smoothing=0.3), LABELS, F.cross_entropy),
        (F.cross_entropy, SHARES, F.cross_entropy),
        ("auto", torch.where(LABELS == 1, -100, LABELS), F.cross_entropy),
        (nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 5.0])), LABELS, "weighted"),
        ("auto", NUMBERS, F.mse_loss),
        ("mse_loss", SHARES, F.mse_loss),
        (nn.MSELoss(), NUMBERS, F.mse_loss),
        (lambda f, y: (f - y).square().sum(1).mean(), NUMBERS, None),
        (lambda f, y: N * F.mse_loss(f, y), NUMBERS, None),
        (half_huber, NUMBERS, None),
        (nn.BCEWithLogitsLoss(), SHARES, None),
    ],
)
def test_curvature_of_the_loss_that_is_meant(given: Any, y: Tensor, meant: Any) -> None:
    model, probe = network(), samples(y)
    # Weights are those of a module that is trained in float32, while outputs are in float64.
    loss = copy.deepcopy(given).double() if meant == "weighted" else meant or given
    optimizer = torch.optim.SGD(model.parameters(), lr=0.25)
    got = observed(model, probe, Training(optimizers=[optimizer]), loss=given)
    expected = top(gauss_newton(model, probe.x, lambda f: loss(f, y)))
    assert got["sharpness"] == pytest.approx(expected, rel=1e-10)
    assert got["stability"] == pytest.approx(0.25 * expected, rel=1e-10)
    assert got["stability_limit"] == 2.0


def test_many_outputs_take_another_way() -> None:
    """More rows than all eigenvalues are computed of."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 20)).double()
    x, y = torch.randn(40, 4, dtype=torch.float64), torch.arange(40) % 20
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    state = torch.get_rng_state()
    got = observed(model, Probe(x, y), Training(optimizers=[optimizer]))
    assert torch.equal(state, torch.get_rng_state())
    # A model that is linear in its parameters: the Hessian of the loss itself.
    p = torch.cat([model[0].weight.detach(), model[0].bias.detach()[:, None]], 1)
    features = torch.cat([x, torch.ones(40, 1).double()], 1)
    second = torch.autograd.functional.hessian(
        lambda w: F.cross_entropy(features @ w.reshape(p.shape).T, y), p.flatten()
    )
    assert got["sharpness"] == pytest.approx(top(second), rel=1e-9)


@pytest.mark.parametrize(("loss", "y"), [("cross_entropy", LABELS), ("mse_loss", NUMBERS)])
def test_a_kernel_that_is_only_multiplied_with(
    loss: str, y: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What happens with thousands of outputs, also with learning rates of their own."""
    model, probe = network(), samples(y)
    groups = [{"params": model[0].parameters(), "lr": 0.4}, {"params": model[2].parameters()}]  # type: ignore[index]
    for optimizer in (sgd(model), torch.optim.SGD(groups, lr=0.1)):
        training = Training(optimizers=[optimizer])
        formed = observed(model, probe, training, loss=loss)
        with monkeypatch.context() as limit:
            limit.setattr(_stability, "_MOST_ROWS", 4)
            got = observed(model, probe, training, loss=loss)
        assert got["stability"] == pytest.approx(formed["stability"], rel=1e-5)
    monkeypatch.setattr(_stability, "_MOST_ROWS", 4)
    with pytest.warns(UserWarning, match="18 outputs in all.*smaller probe"):
        observed(model, probe, training, loss=half_huber)


FROZEN = 1.0 - 1e-12  # of an average of squares that hardly moves
SGD, ADAM, ADAMW = torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW
RMSPROP, ADAGRAD = torch.optim.RMSprop, torch.optim.Adagrad


def with_settled_squares(optimizer: torch.optim.Optimizer) -> None:
    """Put an average of squares into the state that no further step changes."""
    for group in optimizer.param_groups:
        for p in group["params"]:
            v = torch.linspace(0.3, 2.0, p.numel(), dtype=p.dtype).reshape(p.shape)
            optimizer.state[p]["step"] = torch.tensor(1e14)
            if type(optimizer) is ADAGRAD:
                optimizer.state[p]["sum"] = 1e14 * v
            elif type(optimizer) is RMSPROP:
                optimizer.state[p].update(square_avg=v, momentum_buffer=torch.zeros_like(p))
            elif type(optimizer) is not SGD:
                optimizer.state[p].update(exp_avg=torch.zeros_like(p), exp_avg_sq=v)


def grows(optimizer: torch.optim.Optimizer, model: nn.Module, probe: Probe) -> bool:
    """Whether steps towards 0 lead far away from it, instead of near it."""
    start = float(model.weight.detach().norm())
    for _ in range(1500):
        optimizer.zero_grad()
        F.mse_loss(model(probe.x), probe.y).backward()
        optimizer.step()
        size = float(model.weight.detach().norm())
        if size > 1e3 * start:  # before squares of this size count in their average
            return True
    assert size < 1e-2 * start
    return False


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (SGD, {}),
        (SGD, {"momentum": 0.9}),
        (SGD, {"momentum": 0.5, "dampening": 0.3}),
        (SGD, {"momentum": 0.8, "nesterov": True}),
        (SGD, {"dampening": 0.7}),
        (SGD, {"weight_decay": 0.5}),
        (SGD, {"momentum": 0.8, "nesterov": True, "weight_decay": 0.5}),
        (ADAM, {"betas": (0.9, FROZEN)}),
        (ADAM, {"betas": (0.0, FROZEN)}),
        (ADAMW, {"betas": (0.8, FROZEN), "weight_decay": 0.0}),
        (ADAMW, {"betas": (0.8, FROZEN), "weight_decay": 0.05}),
        (ADAMW, {"betas": (0.0, FROZEN), "weight_decay": 0.5}),
        (RMSPROP, {"alpha": FROZEN}),
        (RMSPROP, {"alpha": FROZEN, "momentum": 0.7}),
        (ADAGRAD, {}),
    ],
)
def test_steps_diverge_beyond_the_limit(kind: Any, options: dict[str, Any]) -> None:
    """Torch's own steps on a quadratic, just below and just above."""
    torch.manual_seed(1)
    probe = Probe(torch.randn(N, 4, dtype=torch.float64), torch.zeros(N, 1, dtype=torch.float64))
    grew = []
    for factor in (0.98, 1.02):
        model = nn.Linear(4, 1, bias=False).double()
        optimizer = kind(model.parameters(), lr=1.0, **options)
        with_settled_squares(optimizer)
        training, values = Training(optimizers=[optimizer]), []
        for lr in (0.0, 1.0):
            optimizer.param_groups[0]["lr"] = lr
            values.append(observed(model, probe, training))
        # Both sides are linear in the learning rate, the limit because of weight decay.
        limit, curvature = values[0]["stability_limit"], values[1]["stability"]
        lr = factor * limit / (curvature + limit - values[1]["stability_limit"])
        optimizer.param_groups[0]["lr"] = lr
        got = observed(model, probe, training)
        assert (got["stability"] > got["stability_limit"]) == (factor > 1.0)
        if options.get("weight_decay"):
            assert got["stability_limit"] < 0.95 * limit
        grew.append(grows(optimizer, model, probe))
    assert grew == [False, True]


@pytest.mark.parametrize("kind", [ADAM, RMSPROP, ADAGRAD])
def test_curvature_under_an_optimizer(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """λ_max of P^½ Jᵀ H J P^½, P by its definition and with the groups' learning rates."""
    model, probe = network(), samples(LABELS)
    groups = [{"params": model[0].parameters(), "lr": 0.02}, {"params": model[2].parameters()}]  # type: ignore[index]
    optimizer = kind(groups, lr=0.1)
    assert set(observed(model, probe, Training(optimizers=[optimizer]))) == {"seconds"}
    F.cross_entropy(model(probe.x), LABELS).backward()
    optimizer.step()
    got = observed(model, probe, Training(optimizers=[optimizer]))
    g = torch.cat([p.grad.flatten() for p in model.parameters()])
    # In the first step v is g², but a hundredth of it for RMSprop, which corrects nothing.
    p = 1.0 / ((0.1 if kind is RMSPROP else 1.0) * g.abs() + (1e-10 if kind is ADAGRAD else 1e-8))
    p[:35] *= 0.02
    p[35:] *= 0.1
    matrix = gauss_newton(model, probe.x, lambda f: F.cross_entropy(f, LABELS))
    expected = top(p.sqrt()[:, None] * matrix * p.sqrt())
    assert got["stability"] == pytest.approx(expected, rel=1e-9)
    assert got["stability_limit"] == pytest.approx(38.0 if kind is ADAM else 2.0)
    assert "sharpness" not in got
    monkeypatch.setattr(_stability, "_MOST_ROWS", 4)
    multiplied = observed(model, probe, Training(optimizers=[optimizer]))
    assert multiplied["stability"] == pytest.approx(expected, rel=1e-5)


def test_groups_with_learning_rates_of_their_own() -> None:
    """λ_max of P^½ Jᵀ H J P^½ with the learning rates on the diagonal of P."""
    model, probe = network(), samples(LABELS)
    groups = [
        {"params": model[0].parameters(), "lr": 0.4},  # type: ignore[index]
        {"params": [model[2].weight], "lr": 0.01},  # type: ignore[index]
        {"params": [model[2].bias], "lr": 0.0},  # type: ignore[index]
    ]
    optimizer = torch.optim.SGD(groups, lr=1.0)
    got = observed(model, probe, Training(optimizers=[optimizer]))
    matrix = gauss_newton(model, probe.x, lambda f: F.cross_entropy(f, LABELS))
    root = torch.tensor([0.4] * 35 + [0.01] * 21 + [0.0] * 3, dtype=torch.float64).sqrt()
    assert got["stability"] == pytest.approx(top(root[:, None] * matrix * root), rel=1e-10)
    assert "sharpness" not in got


def test_parameters_that_stay_do_not_count() -> None:
    model, probe = network(), samples(LABELS)
    optimizer = torch.optim.SGD(model[2].parameters(), lr=0.5)  # type: ignore[index]
    got = observed(model, probe, Training(optimizers=[optimizer]))
    matrix = gauss_newton(model, probe.x, lambda f: F.cross_entropy(f, LABELS))
    assert got["stability"] == pytest.approx(0.5 * top(matrix[35:, 35:]), rel=1e-10)


def test_a_learning_rate_of_zero_has_a_curvature() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=torch.tensor(0.0))
    got = observed(model, samples(LABELS), Training(optimizers=[optimizer]))
    assert got["stability"] == 0.0
    assert got["sharpness"] > 0.0


def sgd(model: nn.Module, **options: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), **{"lr": 0.1, **options})


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda m: [], "no optimizer is known"),
        (lambda m: [torch.optim.Adamax(m.parameters())], "limit of Adamax is not known.*Adam"),
        (lambda m: [sgd(nn.Linear(1, 1))], "no optimizer holds a parameter"),
        (lambda m: [sgd(m[0]), sgd(m[2])], "2 optimizers move the network"),
        (lambda m: [sgd(m, maximize=True)], "maximizes"),
        (lambda m: [sgd(m, momentum=1.0)], "momentum 1 is not in"),
        (lambda m: [sgd(m, momentum=0.5, dampening=1.0)], "dampening 1 leaves nothing"),
        (
            lambda m: [
                torch.optim.SGD(
                    [
                        {"params": m[0].parameters()},
                        {"params": m[2].parameters(), "momentum": 0.9},
                    ],
                    lr=0.1,
                )
            ],
            "differ in momentum",
        ),
    ],
)
def test_undefined_for_other_optimizers(make: Any, reason: str) -> None:
    model = network()
    with pytest.warns(UserWarning, match=f"'stability' is not measured: .*{reason}"):
        got = observed(model, samples(LABELS), Training(optimizers=make(model)))
    assert set(got) == {"seconds"}


@pytest.mark.parametrize(
    ("loss", "y", "reason"),
    [
        ("auto", None, "no targets"),
        ("auto", SHARES, "probabilities may be meant for cross-entropy or for squared error"),
        ("auto", LABELS[:, None].expand(-1, 2), "integer targets of shape"),
        ("auto", NUMBERS[:, :1], "do not say which loss"),
        ("mse_loss", LABELS, "squared error needs targets"),
        ("cross_entropy", NUMBERS[:, :1], "cross-entropy of outputs"),
        (lambda f, y: (f - y).abs(), NUMBERS, "cannot be differentiated twice"),
        (lambda f, y: F.mse_loss(f[:, 0].sqrt(), y[:, 0]), NUMBERS, "not finite"),
    ],
)
def test_undefined_for_losses_that_do_not_fit(loss: Any, y: Any, reason: str) -> None:
    model = network()
    with pytest.warns(UserWarning, match=f"'stability' is not measured: .*{reason}"):
        got = observed(model, samples(y), Training(optimizers=[sgd(model)]), loss=loss)
    assert set(got) == {"seconds"}


def test_the_loss_is_found_in_the_module() -> None:
    model, probe = network(), samples(SHARES)
    module = nn.ModuleDict({"net": model, "loss": nn.BCEWithLogitsLoss()})
    got = observed(model, probe, Training(module, [sgd(model)]))
    expected = top(gauss_newton(model, probe.x, lambda f: nn.BCEWithLogitsLoss()(f, SHARES)))
    assert got["sharpness"] == pytest.approx(expected, rel=1e-10)
    module["other"] = nn.MSELoss()
    with pytest.warns(UserWarning, match=r"several losses \(BCEWithLogitsLoss, MSELoss\)"):
        observed(model, probe, Training(module, [sgd(model)]))


@pytest.mark.parametrize(
    ("loss", "error"),
    [
        ("mse", ValueError),
        (3, TypeError),
        (nn.MSELoss, TypeError),
        (nn.MSELoss(reduction="sum"), ValueError),
        (nn.CrossEntropyLoss(reduction="none"), ValueError),
    ],
)
def test_bad_losses(loss: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="`loss` must be"):
        Record(("stability",), loss=loss)
