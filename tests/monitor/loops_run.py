"""One of two processes that train together in three loops, without and with the monitor.

Started by `test_loops_ddp.py`. Usage: loops_run.py RANK PORT FOLDER
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from two_processes import join, noted_answers


def main(rank: str, port: str, folder: str) -> None:
    join(rank, port)
    os.environ["ACCELERATE_USE_CPU"] = "true"

    import torch
    import torch.nn.functional as F
    from accelerate import Accelerator
    from lightning.fabric import Fabric
    from torch import nn
    from torch.nn.parallel import DistributedDataParallel
    from torch.utils.data import DataLoader, TensorDataset
    from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

    from torch_ntk.integrations.transformers import NTKMonitorCallback
    from torch_ntk.monitor import Monitor
    from torch_ntk.monitor.loop import _shared_kernel

    _shared_kernel._WORTH_SHARING = 0.0
    answers = noted_answers()
    options: dict[str, Any] = {"every_n_steps": 1, "metrics": ("drift", "linearization_gap")}
    x = torch.randn(32, 6, generator=torch.Generator().manual_seed(1))
    data = TensorDataset(x, x[:, :3].argmax(1))

    def loader() -> DataLoader[Any]:  # of which Accelerate keeps the sampler's random numbers
        return DataLoader(data, batch_size=4, shuffle=True)

    def network() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(5)
        net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 3))
        return net, torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)

    def loop(monitor: Monitor | None, model: Any, optimizer: Any, batches: Any, back: Any) -> None:
        assert isinstance(getattr(model, "_forward_module", model), DistributedDataParallel)
        for batch in batches:
            if monitor is not None:
                monitor.step(model, optimizer, batch)
            optimizer.zero_grad()
            back(F.cross_entropy(model(batch[0]), batch[1]))
            optimizer.step()
        if monitor is not None:
            monitor.finish(model, optimizer)

    def by_fabric(monitor: Monitor | None) -> nn.Module:
        fabric = Fabric(accelerator="cpu", devices=2, strategy="ddp")
        fabric.launch()
        net, optimizer = network()
        model, optimizer = fabric.setup(net, optimizer)
        loop(monitor, model, optimizer, fabric.setup_dataloaders(loader()), fabric.backward)
        return net

    def by_accelerate(monitor: Monitor | None) -> nn.Module:
        accelerator = Accelerator(cpu=True)
        net, optimizer = network()
        model, optimizer, batches = accelerator.prepare(net, optimizer, loader())
        loop(monitor, model, optimizer, batches, accelerator.backward)
        return net

    def by_transformers(monitor: Any) -> nn.Module:
        torch.manual_seed(5)
        size = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
        net = BertForSequenceClassification(BertConfig(vocab_size=9, intermediate_size=8, **size))
        ids = torch.randint(0, 9, (32, 5), generator=torch.Generator().manual_seed(1))
        texts = [{"input_ids": i, "labels": i[0] % 2} for i in ids]
        watching = [] if monitor is None else [monitor]
        args = TrainingArguments(
            folder,
            max_steps=4,
            per_device_train_batch_size=4,
            use_cpu=True,
            ddp_backend="gloo",
            report_to=[],
            save_steps=2,
            disable_tqdm=True,
        )
        Trainer(net, args, train_dataset=texts, callbacks=watching).train()
        return net

    found = {}
    for train, kind in (
        (by_fabric, Monitor),
        (by_accelerate, Monitor),
        (by_transformers, NTKMonitorCallback),
    ):
        monitor = kind(**options)
        answers.clear()
        plain, watched = train(None).state_dict(), train(monitor).state_dict()
        found[train.__name__] = {
            "same": all(torch.equal(t, watched[n]) for n, t in plain.items()),
            "weights": float(sum(t.double().abs().sum() for t in watched.values())),
            "answers": list(answers),
            "history": {n: c for n, c in monitor.history.items() if n != "ntk/seconds"},
        }
    (Path(folder) / f"{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
