"""The kernel of the Trainer's own optimizer, which the measurement leaves as it is."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_runs import QUIET, Classifier, TwoOptimizers, classifier, fit, loader
from test_callbacks_identity import assert_same, outcome
from test_callbacks_resume import batches, curves, stopped
from torch import nn

from torch_ntk.callbacks import KernelDrift, KernelSpectrum, NTKMonitor

pytestmark = [pytest.mark.filterwarnings(text) for text in QUIET]


class WithAdam(Classifier):
    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), 0.02)


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3))


@pytest.mark.parametrize("kind", [NTKMonitor, KernelDrift, KernelSpectrum])
def test_bitwise_the_same_run(kind: type, tmp_path: Path) -> None:
    monitor = kind(8, every_n_steps=1, kernel="optimizer")
    plain = outcome(tmp_path, mlp, WithAdam, [], {})
    assert_same(plain, outcome(tmp_path, mlp, WithAdam, [monitor], {}))
    own = "ntk/lambda_max" if kind is KernelSpectrum else "ntk/drift"
    assert [math.isnan(v) for v in monitor.history[own]] == [True] + [False] * 10
    assert len(set(monitor.history[own])) > 8


def test_a_resumed_run(tmp_path: Path) -> None:
    options: dict[str, Any] = {"every_n_steps": 1, "log_figures": False, "kernel": "optimizer"}
    whole = NTKMonitor(8, **options)
    fit(tmp_path, classifier(kind=WithAdam), [whole], batches(), max_steps=6, max_epochs=-1)
    for stop in (1, 3):
        path = tmp_path / str(stop)
        first, again = NTKMonitor(8, **options), NTKMonitor(8, **options)
        saved = stopped(path, classifier(kind=WithAdam), first, max_steps=stop)
        module = classifier(kind=WithAdam)
        fit(path, module, [again], batches(), saved, max_steps=6, max_epochs=-1)
        expected, found = curves(whole), curves(again)
        assert list(found) == list(expected)
        for step, row in expected.items():
            assert found[step] == pytest.approx(row, rel=1e-9), step


def test_two_optimizers(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="2 optimizers move the network") as caught:
        fit(tmp_path, classifier(kind=TwoOptimizers), [KernelDrift(8, kernel="optimizer")])
    # No other inputs or outputs would help.
    assert not any(name in str(caught.value) for name in ("forward_fn", "input_fn", "probe="))
    part = KernelDrift((loader().dataset[:8][0], None), network="network.0", kernel="optimizer")
    fit(tmp_path, classifier(kind=TwoOptimizers), [part])
    assert part.history["ntk/drift"][0] == 0.0
