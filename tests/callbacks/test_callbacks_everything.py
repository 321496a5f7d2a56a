"""Every metric at once, on a network that has an infinite-width limit; and memory that runs out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging
from lightning_runs import QUIET, Classifier, TwoOptimizers, data
from test_callbacks_identity import assert_same, outcome
from torch import Tensor, nn

from torch_ntk import NTKLinear
from torch_ntk.callbacks import NTKMonitor, StabilityEdge
from torch_ntk.monitor import METRICS, OPTIONAL

pytestmark = [
    *[pytest.mark.filterwarnings(text) for text in QUIET],
    pytest.mark.filterwarnings("ignore:.*lr times the largest curvature"),
    pytest.mark.filterwarnings("ignore:'stability' is not measured. 2 optimizers"),
    pytest.mark.filterwarnings("ignore:'critical_sharpness' is not measured"),
]


def lifts() -> nn.Module:
    return nn.Sequential(NTKLinear(6, 32), nn.ReLU(), NTKLinear(32, 3))


def monitor(**options: Any) -> NTKMonitor:
    settings: dict[str, Any] = {
        "validation_probe": (data(60), range(40, 50)),
        "every_n_steps": 1,
        "metrics": (*METRICS, *OPTIONAL),
    }
    return NTKMonitor(8, **{**settings, **options})


def averaging() -> list[Any]:
    return [EMAWeightAveraging(decay=0.5)]


@pytest.mark.parametrize(
    ("kind", "make_others"), [(Classifier, list), (TwoOptimizers, list), (Classifier, averaging)]
)
@pytest.mark.parametrize("output", ["mean", "full"])
def test_with_every_metric(
    kind: type[Classifier], make_others: Callable[[], list[Any]], output: str, tmp_path: Path
) -> None:
    plain = outcome(tmp_path, lifts, kind, make_others(), {})
    watching = monitor(output=output)
    watched = outcome(tmp_path, lifts, kind, [*make_others(), watching], {})
    assert_same(plain, watched)
    history = watching.history
    names = {"module_drift/network.0", "module_drift/network.2", "infinite_gap", "val_drift"}
    if kind is Classifier:
        names |= {"stability", "stability_limit", "sharpness"}
    assert {f"ntk/{n}" for n in names} <= set(history)
    assert all(0.0 < gap < 2.0 for gap in history["ntk/infinite_gap"])
    assert history["step"] == list(range(11))


class Hungry(nn.Module):
    """Asks for more memory than there is when it is evaluated, after it has drawn and written."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.layer, self.kind = nn.Linear(6, 3), kind
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            torch.rand(3)
            self.calls += 1
            if self.kind == "cuda":
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 80.00 GiB")
            torch.empty(2**60, dtype=torch.uint8)
        return self.layer(x)


@pytest.mark.parametrize("kind", ["cuda", "cpu"])
@pytest.mark.parametrize("make", [NTKMonitor, StabilityEdge])
def test_memory_that_runs_out_in_a_measurement(make: type, kind: str, tmp_path: Path) -> None:
    plain = outcome(tmp_path, lambda: Hungry(kind), Classifier, [], {})
    watching = make(8, every_n_steps=1, on_error="warn")
    with pytest.warns(UserWarning, match="No measurement at step 0"):
        watched = outcome(tmp_path, lambda: Hungry(kind), Classifier, [watching], {})
    assert_same(plain, watched)
    assert watching.history == {}
