"""Training in float16 with a gradient scaler is bitwise the training without the monitor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning_runs import QUIET, Classifier, mlp, with_batch_norm
from test_callbacks_identity import assert_same, outcome

from torch_ntk.callbacks import NTKMonitor
from torch_ntk.monitor import METRICS

pytestmark = [
    *[pytest.mark.filterwarnings(text) for text in QUIET],
    pytest.mark.filterwarnings("ignore:.*lr times the largest curvature"),
]


class Scales(Callback):
    """Writes down the scale of the loss, which halves when a gradient overflows."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        scaler = trainer.precision_plugin.scaler  # type: ignore[union-attr]
        assert scaler is not None
        self.seen.append(dict(scaler.state_dict()))


def mixed(device: str, scale: float) -> MixedPrecision:
    """Lightning turns `precision="16-mixed"` on a CPU into bfloat16; the plugin does not."""
    return MixedPrecision("16-mixed", device, torch.amp.GradScaler(device, init_scale=scale))


@pytest.mark.parametrize("scale", [2.0**10, 2.0**40], ids=["calm", "overflowing"])
@pytest.mark.parametrize("make", [mlp, with_batch_norm])
def test_sixteen_bits_on_a_cpu(make: Any, scale: float, tmp_path: Path) -> None:
    """Also where steps are skipped, because the scaled gradients are infinite."""
    found = []
    monitor = NTKMonitor(8, every_n_steps=1, metrics=(*METRICS, "stability"))
    for monitors in ([], [monitor]):
        scales = Scales()
        options = {"plugins": [mixed("cpu", scale)], "accumulate_grad_batches": 2}
        result = outcome(tmp_path, make, Classifier, [scales, *monitors], options)
        found.append({**result, "scales": scales.seen})
    assert_same(found[0], found[1])
    first, last = found[0]["scales"][0]["scale"], found[0]["scales"][-1]["scale"]
    assert (last < first) == (scale > 2.0**20)
    assert monitor.history["step"] == list(range(7))
