"""One process of a two-process training; started by `test_callbacks_ddp.py`.

Usage: ddp_run.py RANK PORT FOLDER WATCHED
"""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path
from typing import Any


def main(rank: str, port: str, folder: str, watched: str) -> None:
    os.environ.update(
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=port,
        WORLD_SIZE="2",
        RANK=rank,
        LOCAL_RANK=rank,
        NODE_RANK="0",
    )
    warnings.filterwarnings("ignore")

    import torch
    from lightning.pytorch.callbacks import ModelCheckpoint
    from lightning.pytorch.loggers import CSVLogger
    from lightning_runs import classifier, data, fit, with_batch_norm

    from torch_ntk.callbacks import NTKMonitor
    from torch_ntk.monitor import METRICS

    settings: dict[str, Any] = {
        "every_n_steps": 1,
        "metrics": (*METRICS, "stability", "module_drift"),
        "validation_probe": (data(60), range(40, 46)),
        "theta_0": "beside",
    }
    torch.set_num_threads(1)
    path = Path(folder)
    monitor = NTKMonitor(4, **settings)
    saver = ModelCheckpoint(path / "checkpoints", save_last=True, every_n_train_steps=1)
    module = classifier(with_batch_norm)
    fit(
        path,
        module,
        [saver, monitor] if watched == "watched" else [saver],
        logger=CSVLogger(path, version=0),
        strategy="ddp",
        devices=2,
        enable_checkpointing=True,
    )
    torch.save(dict(module.state_dict()), path / f"weights{rank}.pt")
    torch.save(monitor.history, path / f"history{rank}.pt")

    # Every process loads the state; the first one goes on measuring.
    again = NTKMonitor(4, **settings)
    if watched == "watched":
        last = str(path / "checkpoints" / "last.ckpt")
        fit(
            path,
            classifier(with_batch_norm),
            [again],
            ckpt_path=last,
            strategy="ddp",
            devices=2,
            max_epochs=3,
        )
    torch.save(again.history, path / f"resumed{rank}.pt")

    # Lightning leaves the group open. A process that ends while the other one still holds a
    # connection to it may be aborted by gloo's threads, after all work is done.
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
