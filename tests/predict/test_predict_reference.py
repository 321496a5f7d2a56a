"""Agreement with values that neural-tangents computed in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from predict_problems import dynamics
from torch import Tensor

from torch_ntk.predict import (
    KernelPair,
    ensemble_mse,
    gp_inference,
    gradient_flow,
    gradient_flow_mse,
    max_learning_rate,
    one_hot,
)


def close(value: Tensor | None, expected: Tensor, tolerance: float = 1e-12) -> None:
    assert value is not None
    torch.testing.assert_close(value, expected, rtol=tolerance, atol=tolerance)


def test_squared_error_at_five_times() -> None:
    r = dynamics()
    predictor = gradient_flow_mse(r["ntk_tt"], r["y_centered"], reduction="mean")
    train, test = predictor(r["times"], r["f0_train"], r["f0_test"], r["ntk_st"])
    assert r["times"].numel() == 5
    close(train, r["mse_train"])
    close(test, r["mse_test"])
    for i, t in enumerate(r["times"].tolist()):  # one at a time
        train, test = predictor(t, r["f0_train"], r["f0_test"], r["ntk_st"])
        close(train, r["mse_train"][i])
        close(test, r["mse_test"][i])


@pytest.mark.parametrize("t", [None, float("inf"), torch.tensor(float("inf"))])
def test_squared_error_in_the_limit(t: float | Tensor | None) -> None:
    r = dynamics()
    for reduction in ("mean", "sum"):  # the limit does not depend on it
        predictor = gradient_flow_mse(r["ntk_tt"], r["y_centered"], reduction=reduction)
        train, test = predictor(t, r["f0_train"], r["f0_test"], r["ntk_st"])
        close(train, r["mse_inf_train"])
        close(test, r["mse_inf_test"])


def test_ridge() -> None:
    r = dynamics()
    predictor = gradient_flow_mse(r["ntk_tt"], r["y_centered"], diag_reg=1e-3)
    _, test = predictor(None, r["f0_train"], r["f0_test"], r["ntk_st"])
    close(test, r["mse_reg_inf_test"])


@pytest.mark.parametrize(
    ("ensemble", "t", "name"),
    [("ntk", None, "ens_ntk"), ("ntk", 10.0, "ens_t10"), ("nngp", None, "ens_nngp")],
)
def test_ensembles(ensemble: str, t: float | None, name: str) -> None:
    r = dynamics()
    predictor = ensemble_mse(
        KernelPair(r["nngp_tt"], r["ntk_tt"]),
        r["y_centered"],
        ensemble=ensemble,  # type: ignore[arg-type]
        reduction="mean",
        diag_reg=1e-4,
    )
    mean, covariance = predictor(t, KernelPair(r["nngp_st"], r["ntk_st"]), r["nngp_ss"])
    close(mean, r[f"{name}_mean"])
    close(covariance, r[f"{name}_cov"])


def test_the_bayesian_posterior() -> None:
    r = dynamics()
    posterior = gp_inference(r["nngp_tt"], r["y_centered"], diag_reg=1e-4)
    mean, covariance = posterior(r["nngp_st"], r["nngp_ss"])
    close(mean, r["ens_nngp_mean"])
    close(covariance, r["ens_nngp_cov"])


def test_the_largest_learning_rate() -> None:
    r = dynamics()
    expected = r["max_lr"].item()
    k = r["ntk_tt"]
    assert max_learning_rate(k, reduction="mean", num_outputs=3) == pytest.approx(
        expected, rel=1e-9
    )
    full = k[:, :, None, None] * torch.eye(3, dtype=torch.float64)
    assert max_learning_rate(full, reduction="mean") == pytest.approx(expected, rel=1e-9)
    assert max_learning_rate(k) * k.shape[0] * 3 == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("method", ["BDF", "Radau", "LSODA"])
def test_cross_entropy(method: str) -> None:
    """The reference was integrated to about 1e-8; this is ten times looser than the worst seen."""
    r = dynamics()

    def loss(f: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(f, y, reduction="sum") / f.numel()

    predictor = gradient_flow(loss, r["ntk_tt"], r["y_onehot"], method=method)  # type: ignore[arg-type]
    train, test = predictor(r["ce_times"], r["f0_train"], r["f0_test"], r["ntk_st"])
    close(train, r["ce_train"], 1e-6)
    close(test, r["ce_test"], 1e-6)


def test_cross_entropy_at_tight_tolerances() -> None:
    """Closer to each other than to the reference, whose own error shows: 1.2e-8."""
    r = dynamics()

    def loss(f: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(f, y, reduction="sum") / f.numel()

    results = []
    for method, tolerance in (("Radau", 1e-10), ("BDF", 1e-11)):
        predictor = gradient_flow(
            loss, r["ntk_tt"], r["y_onehot"], method=method, rtol=tolerance, atol=tolerance
        )  # type: ignore[arg-type]
        train, _ = predictor(r["ce_times"], r["f0_train"])
        close(train, r["ce_train"], 3e-8)
        results.append(train)
    close(results[0], results[1], 3e-9)


def test_one_hot_targets() -> None:
    r = dynamics()
    labels = r["y_onehot"].argmax(1)
    close(one_hot(labels, 3, dtype=torch.float64), r["y_onehot"])
    close(one_hot(labels, 3, zero_centered=True, dtype=torch.float64), r["y_centered"])
