"""One of two processes that train together, without and with callbacks.

Started by `test_callbacks_ddp.py`. Usage: ddp_run.py RANK PORT FOLDER
"""

from __future__ import annotations

import sys
import time
import warnings
from collections import Counter
from datetime import timedelta
from pathlib import Path
from typing import Any

from two_processes import join, noted_answers

COLLECTIVES = (
    *("all_reduce", "reduce", "broadcast", "barrier", "all_gather", "gather", "scatter"),
    *("all_gather_object", "broadcast_object_list", "gather_object", "all_gather_into_tensor"),
    *("reduce_scatter", "all_to_all", "send", "recv", "monitored_barrier", "new_group"),
)
PATIENCE = 6.0  # seconds after which a process that waits for the other one fails
SLOW = 2.0  # seconds that one measurement takes


def main(rank: str, port: str, folder: str) -> None:
    join(rank, port)

    import torch
    from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
    from lightning.pytorch.loggers import CSVLogger
    from lightning.pytorch.strategies import DDPStrategy
    from lightning_runs import Classifier, classifier, data, fit, loader, with_batch_norm
    from torch import nn

    from torch_ntk.callbacks import LossForecast, NTKMonitor
    from torch_ntk.monitor import METRICS
    from torch_ntk.monitor.loop import _shared_kernel

    called: Counter[str] = Counter()
    for name in COLLECTIVES:
        original = getattr(torch.distributed, name)

        def counting(
            *args: Any, _name: str = name, _original: Any = original, **options: Any
        ) -> Any:
            called[_name] += 1
            return _original(*args, **options)

        setattr(torch.distributed, name, counting)

    class Slow(Classifier):
        """Takes its time over one evaluation in the middle of the run."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if not self.training and self.global_step == 3 and not hasattr(Slow, "rested"):
                Slow.rested = True
                time.sleep(SLOW)
            return super().forward(x)

    settings: dict[str, Any] = {
        "every_n_steps": 1,
        "metrics": (*METRICS, "stability", "module_drift"),
        "validation_probe": (data(60), range(40, 46)),
        "theta_0": "beside",
    }
    torch.set_num_threads(1)

    def train(path: Path, callbacks: list[Any]) -> dict[str, Any]:
        """A run with these callbacks, and everything that it leaves behind."""
        called.clear()
        saver = ModelCheckpoint(path / "checkpoints", save_last=True, every_n_train_steps=1)
        module = classifier(with_batch_norm, Slow)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            run = fit(
                path,
                module,
                [saver, *callbacks],
                logger=CSVLogger(path, version=0),
                strategy=DDPStrategy(timeout=timedelta(seconds=PATIENCE)),
                devices=2,
                enable_checkpointing=True,
            )
        return {
            "weights": dict(module.state_dict()),
            "moments": [s["momentum_buffer"] for s in run.optimizers[0].state.values()],
            "random": torch.get_rng_state(),
            "collectives": dict(called),
            "said": [str(w.message) for w in caught if "other processes waited" in str(w.message)],
        }

    train(Path(folder) / "first", [])  # makes the connection
    alone = train(Path(folder) / "alone", [])
    path = Path(folder) / "watched"
    monitor = NTKMonitor(4, **settings)
    found = train(path, [monitor])
    found["history"] = monitor.history
    warnings.filterwarnings("ignore")

    # Every process stops at the same epoch, and knows the verdict.
    stop = EarlyStopping(
        "ntk/param_drift", mode="max", stopping_threshold=0.1, check_on_train_epoch_end=True
    )
    watch = NTKMonitor(4, every_n_steps=2, metrics=("drift", "param_drift"))
    options: dict[str, Any] = {"strategy": "ddp", "devices": 2}
    stopped = fit(path, classifier(lr=0.1), [stop, watch], max_epochs=50, **options)
    found["stopped"] = [stopped.global_step, str(watch.verdict)]

    # A kernel that both processes take is the one that the first process takes alone.
    answers = noted_answers()
    for name, worth in (("alone", float("inf")), ("together", 0.0)):
        _shared_kernel._WORTH_SHARING = worth
        own = NTKMonitor(4, every_n_steps=1, metrics=("drift", "lambda_min"))
        fit(path, classifier(with_batch_norm), [own], max_epochs=2, **options)
        found[name] = own.history
    found["answers"] = answers
    _shared_kernel._WORTH_SHARING = float("inf")

    # Every process loads the state; the first one goes on measuring.
    again = NTKMonitor(4, **settings)
    last = str(path / "checkpoints" / "last.ckpt")
    fit(path, classifier(with_batch_norm), [again], ckpt_path=last, max_epochs=3, **options)
    state = again.state_dict()
    found["resumed"] = again.history
    found["probe"] = state["observer"]["anchor"]["x"]
    found["validation"] = state["validation"]["x"]

    # A network that is linear in its parameters goes where its kernel says, also when each
    # process has half of the samples.
    x = data()[:][0]
    y = x[:, :3] @ torch.eye(3)

    class Regressor(Classifier):
        def loss(self, batch: Any) -> torch.Tensor:
            return nn.functional.mse_loss(self(batch[0]), batch[1])

    forecast = LossForecast((x, y), every_n_steps=5)
    linear = classifier(lambda: nn.Sequential(nn.Linear(6, 3)), Regressor, lr=0.1)
    halves = loader(torch.utils.data.TensorDataset(x, y), batch_size=20)
    fit(path, linear, [forecast], halves, max_epochs=20, **options)
    found["forecast"] = forecast.history

    torch.save({"alone": alone, "watched": found}, Path(folder) / f"found{rank}.pt")

    # Lightning leaves the group open. A process that ends while the other one still holds a
    # connection to it may be aborted by gloo's threads, after all work is done.
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
