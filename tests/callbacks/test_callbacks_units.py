"""The step size against the curvature, in the units of what the Trainer really descends on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning_runs import QUIET, Classifier, classifier, fit, loader
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from torch_ntk.callbacks import StabilityEdge

pytestmark = [
    *[pytest.mark.filterwarnings(text) for text in QUIET],
    pytest.mark.filterwarnings("ignore:StabilityEdge. at step"),
]
X = torch.randn(8, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
Y = X[:, :3].tanh()


def linear() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 3, bias=False)).double()


class Regressor(Classifier):
    """Squared error under SGD with momentum; writes down the loss of each batch."""

    momentum, summed = 0.0, False

    def loss(self, batch: Any) -> Tensor:
        loss = F.mse_loss(self(batch[0]), batch[1], reduction="sum" if self.summed else "mean")
        self.losses = [*getattr(self, "losses", []), float(loss.detach())]
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=self.momentum)


class WithMomentum(Regressor):
    momentum = 0.8


class Summed(Regressor):
    summed = True


def same_batches(n: int) -> Any:
    """All samples, `n` times in each epoch."""
    return loader(TensorDataset(X.repeat(n, 1), Y.repeat(n, 1)), batch_size=8, shuffle=False)


def run(path: Path, kind: type[Regressor], lr: float, accumulated: int, **options: Any) -> Any:
    edge, module = StabilityEdge((X, Y), every_n_steps=100, **options), classifier(linear, kind)
    module.lr = lr
    settings = {"accumulate_grad_batches": accumulated, "max_epochs": 80}
    fit(path, module, [edge], same_batches(accumulated), **settings)
    return edge, module.losses


def summed(f: Tensor, y: Tensor) -> Tensor:
    return F.mse_loss(f, y, reduction="sum")


@pytest.mark.parametrize("accumulated", [1, 3])
@pytest.mark.parametrize(
    ("kind", "options", "limit"),
    [(Regressor, {}, 2.0), (WithMomentum, {}, 3.6), (Summed, {"loss": summed}, 2.0)],
)
def test_training_diverges_beyond_the_limit(
    kind: type[Regressor], options: Any, limit: float, accumulated: int, tmp_path: Path
) -> None:
    """Just below it the loss goes down, just above it goes up; accumulation changes nothing."""
    probe, _ = run(tmp_path, kind, 1e-3, accumulated, **options)
    assert probe.history["ntk/stability_limit"][0] == pytest.approx(limit)
    critical = 1e-3 * limit / probe.history["ntk/stability"][0]
    _, calm = run(tmp_path, kind, 0.95 * critical, accumulated, **options)
    edge, wild = run(tmp_path, kind, 1.05 * critical, accumulated, **options)
    assert calm[-1] < 0.1 * calm[0]
    assert wild[-1] > 10.0 * wild[0]
    assert edge.history["ntk/stability"][0] == pytest.approx(1.05 * limit)


class SumModule(Classifier):
    """A loss module that adds up instead of taking the mean."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.criterion = nn.CrossEntropyLoss(reduction="sum")


def test_a_sum_in_the_module_is_refused_by_name(tmp_path: Path) -> None:
    """Its curvature grows with the batch, of which the probe knows nothing."""
    edge = StabilityEdge(8, every_n_steps=5)
    with pytest.warns(UserWarning, match=r"'stability' is not measured: .*reduction='sum'.*Pass"):
        fit(tmp_path, classifier(kind=SumModule), [edge])
    assert "ntk/stability" not in edge.history


class Rising(Regressor):
    """The learning rate is raised beyond the limit, lowered, and raised again."""

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=self.lr)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: 1e4 if step in (3, 6) else 1.0
        )
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


def test_one_warning_at_the_step_that_crosses(tmp_path: Path) -> None:
    edge, module = StabilityEdge((X, Y), every_n_steps=1), classifier(linear, Rising, lr=1e-3)
    with pytest.warns(UserWarning, match="at step 3 lr times") as caught:
        fit(tmp_path, module, [edge], same_batches(1), max_epochs=8)
    assert sum("lr times the largest curvature" in str(w.message) for w in caught) == 1
    above = [v > 2.0 for v in edge.history["ntk/stability"]]
    assert [k for k, is_above in enumerate(above) if is_above] == [3, 6]
