"""`NTKMonitorCallback` in the Trainer of transformers, offline and with small random models."""

from __future__ import annotations

import importlib
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.integrations import TensorBoardCallback

from torch_ntk import empirical_ntk
from torch_ntk.integrations.transformers import NTKMonitorCallback
from torch_ntk.monitor import Monitor, load_state, save_state
from torch_ntk.tensorboard_plugin import find_documents, read_document

SIZE = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}


def bert(dropout: float = 0.1) -> nn.Module:
    torch.manual_seed(3)
    config = BertConfig(
        vocab_size=40,
        intermediate_size=16,
        max_position_embeddings=12,
        num_labels=3,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        **SIZE,
    )
    return BertForSequenceClassification(config)


def samples(n: int = 24) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(7)
    ids = torch.randint(0, 40, (n, 9), generator=generator)
    mask = (torch.arange(9) < torch.randint(4, 10, (n, 1), generator=generator)).long()
    return [
        {"input_ids": i, "attention_mask": m, "labels": (i * m).sum() % 3}
        for i, m in zip(ids, mask, strict=True)
    ]


def trainer(folder: Path, callbacks: list[Any], model: nn.Module | None = None, **more: Any) -> Any:
    given: dict[str, Any] = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 4,
        "max_steps": 8,
        "learning_rate": 1e-2,
        "logging_steps": 2,
        "report_to": [],
        "save_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": True,
        "seed": 11,
    }
    args = TrainingArguments(**{**given, **more})
    model = bert() if model is None else model
    return Trainer(
        model, args, train_dataset=samples(), eval_dataset=samples(4), callbacks=callbacks
    )


def everything(run: Any) -> dict[str, Any]:
    """What a training leaves behind, apart from times and from what the monitor logs."""
    state = run.optimizer.state_dict()["state"]
    return {
        "model": {n: t.clone() for n, t in run.model.state_dict().items()},
        "optimizer": {k: {n: t.clone() for n, t in s.items()} for k, s in state.items()},
        "losses": [(e["step"], e["loss"]) for e in run.state.log_history if "loss" in e],
        "random": (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()),  # noqa: NPY002
        "hooks": len(run.model._forward_pre_hooks),
    }


def assert_equal(a: Any, b: Any) -> None:
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_equal(a[key], b[key])
    elif isinstance(a, Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, tuple):
        for x, y in zip(a, b, strict=True):
            assert_equal(x, y)
    else:
        assert a == b


@pytest.mark.parametrize("more", [{}, {"gradient_accumulation_steps": 2, "bf16": True}])
def test_training_is_the_same(tmp_path: Path, more: dict[str, Any]) -> None:
    found = []
    for monitor in (None, NTKMonitorCallback(every_n_steps=1)):
        run = trainer(tmp_path, [] if monitor is None else [monitor], **more)
        run.train()
        found.append(everything(run))
    assert_equal(found[0], found[1])
    assert monitor is not None
    assert monitor.history["step"] == list(range(9))
    factor = more.get("gradient_accumulation_steps", 1)
    assert monitor.history["ntk/batches"] == [float(factor * s) for s in range(9)]
    assert monitor.verdict.regime != "unknown"


def test_the_page_of_tensorboard_is_beside_its_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "board"))
    monitor = NTKMonitorCallback(every_n_steps=4, metrics=("drift",))
    trainer(tmp_path, [monitor], report_to=["tensorboard"]).train()
    ((_, path),) = find_documents(tmp_path).items()
    assert list(path.parent.glob("events.out.tfevents.*"))
    assert read_document(path, "")["steps"] == [0, 4, 8]


class Watch(TrainerCallback):
    """Keeps the weights before each step, and the first batch as the model gets it."""

    def __init__(self) -> None:
        self.weights: list[dict[str, Tensor]] = []
        self.batch: dict[str, Tensor] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any, **_: Any) -> None:
        def keep(module: nn.Module, args: Any, named: Any) -> None:
            self.batch = self.batch or {k: v.clone() for k, v in named.items() if v.ndim}

        model.register_forward_pre_hook(keep, with_kwargs=True)

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any, **_: Any) -> None:
        self.weights.append({n: t.clone() for n, t in model.state_dict().items()})


@pytest.mark.parametrize("bf16", [False, True])
def test_the_values_are_right_and_logged_at_their_steps(tmp_path: Path, bf16: bool) -> None:
    """Drift on the first batch from kernels of copies, in the Trainer's log and on TensorBoard."""
    watch, monitor = Watch(), NTKMonitorCallback(at_steps=[3], metrics=("drift", "alignment"))
    run = trainer(tmp_path, [watch, monitor], logging_steps=3, bf16=bf16)
    # First, as `report_to` puts it, and with a folder of its own.
    run.callback_handler.callbacks.insert(0, TensorBoardCallback(SummaryWriter(str(tmp_path))))
    run.train()
    weights = [*watch.weights, run.model.state_dict()]
    batch = {k: v for k, v in watch.batch.items() if k != "labels"}
    kernels = []
    for step in (0, 3, 8):
        model = bert().double()
        model.load_state_dict(weights[step])
        kernels.append(empirical_ntk(model, batch, output="mean", method="jacobian"))
    expected = [((k - kernels[0]).norm() / kernels[0].norm()).item() for k in kernels]
    assert monitor.history["step"] == [0, 3, 8]
    assert monitor.history["ntk/drift"] == pytest.approx(expected, rel=1e-8, abs=1e-12)
    assert min(expected[1:]) > 1e-3
    logged = [(e["step"], e["ntk/drift"]) for e in run.state.log_history if "ntk/drift" in e]
    pairs = zip(monitor.history["step"], monitor.history["ntk/drift"], strict=True)
    assert logged == list(pairs)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    shown = [(e.step, e.value) for e in events.Scalars("train/ntk/drift")]
    assert shown == [(s, pytest.approx(v, rel=1e-6)) for s, v in logged]
    assert [e.step for e in events.Scalars("train/loss")] == [3, 6]
    (said,) = [e["ntk/verdict"] for e in run.state.log_history if "ntk/verdict" in e]
    assert said == monitor.verdict.text
    assert "train/ntk/verdict/text_summary" in events.Tags()["tensors"]


def test_a_resumed_run_goes_on(tmp_path: Path) -> None:
    """The curves are those of the run that was not interrupted; nothing of the file is pickled."""
    whole = NTKMonitorCallback(3, every_n_steps=2)
    run = trainer(tmp_path / "a", [whole], save_strategy="steps", save_steps=4)
    run.train()
    checkpoint = tmp_path / "a" / "checkpoint-4"
    again = NTKMonitorCallback(3, every_n_steps=2)
    rest = trainer(tmp_path / "a", [again])
    rest.train(resume_from_checkpoint=str(checkpoint))
    for name in whole.history.keys() - {"ntk/seconds", "ntk/overhead"}:
        assert np.array_equal(again.history[name], whole.history[name], equal_nan=True), name
    assert again.history["step"] == [0, 2, 4, 6, 8]
    assert_equal(run.model.state_dict(), rest.model.state_dict())
    assert [p.name for p in checkpoint.glob("*ntk*")] == ["ntk_monitor-ntk.safetensors"]
    # From a folder that was moved, told and untold.
    moved = checkpoint.rename(tmp_path / "elsewhere")
    told = NTKMonitorCallback(3, every_n_steps=2, resume_from=moved)
    trainer(tmp_path / "b", [told]).train(resume_from_checkpoint=str(moved))
    assert told.history["ntk/drift"] == whole.history["ntk/drift"]
    untold = NTKMonitorCallback(3, every_n_steps=2)
    with pytest.warns(UserWarning, match="Pass resume_from=|starts at step 4"):
        trainer(tmp_path / "b", [untold]).train(resume_from_checkpoint=str(moved))
    assert untold.history["step"] == [4, 6, 8]


@pytest.mark.filterwarnings("error")
def test_where_the_state_cannot_be_written(tmp_path: Path) -> None:
    """Without optimizer nobody resumes; a folder that is not there ends no run that may go on."""
    given = {"save_strategy": "steps", "save_steps": 2, "max_steps": 2}
    monitor = NTKMonitorCallback(3, metrics=("drift",))
    trainer(tmp_path, [monitor], save_only_model=True, **given).train()
    assert (tmp_path / "checkpoint-2" / "model.safetensors").is_file()
    assert not list(tmp_path.rglob("*ntk*"))

    class Elsewhere(Trainer):
        def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
            """Keeps nothing."""

    for on_error, expected in (("raise", pytest.raises), ("warn", pytest.warns)):
        own = NTKMonitorCallback(3, metrics=("drift",), on_error=on_error)
        run = trainer(tmp_path / "b", [own], **given)
        kind = FileNotFoundError if on_error == "raise" else UserWarning
        with expected(kind, match="there is no folder"):
            Elsewhere(run.model, run.args, train_dataset=samples(), callbacks=[own]).train()
    assert own.history["step"] == [0, 2]


def test_an_encoder_with_a_decoder() -> None:
    """The decoder reads the labels, shifted by one and behind the start token."""
    torch.manual_seed(1)
    size = {"d_model": 8, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    config = T5Config(vocab_size=12, decoder_start_token_id=0, **size)
    model = T5ForConditionalGeneration(config).double()
    ids, labels = torch.randint(1, 12, (4, 7)), torch.randint(1, 12, (4, 3))
    shifted = torch.cat([torch.zeros(4, 1, dtype=torch.long), labels[:, :-1]], 1)
    kernel = empirical_ntk(
        model,
        {"input_ids": ids, "decoder_input_ids": shifted},
        output="trace",
        method="jacobian",
    )
    monitor = Monitor(4, output="trace", metrics=("lambda_max", "lambda_min"))
    monitor.step(model, batch={"input_ids": ids, "labels": labels})
    eigenvalues = torch.linalg.eigvalsh(kernel)
    assert monitor.history["ntk/lambda_max"] == [pytest.approx(eigenvalues[-1].item(), rel=1e-9)]
    assert monitor.history["ntk/lambda_min"] == [pytest.approx(eigenvalues[0].item(), rel=1e-9)]


class StopAt(TrainerCallback):
    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_training_stop = state.global_step >= 6


def test_the_last_step_is_measured_before_the_best_model_is_loaded(tmp_path: Path) -> None:
    """Stopped by an evaluation, of which no event of a step knows."""
    watch, monitor = Watch(), NTKMonitorCallback(at_steps=[0], metrics=("param_drift",))
    run = trainer(
        tmp_path,
        [watch, StopAt(), monitor],
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="steps",
        save_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model="eval_step",
        greater_is_better=False,
        max_steps=20,
    )
    run.compute_metrics = lambda _: {"step": run.state.global_step}
    ends: list[dict[str, Tensor]] = []

    class End(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, model: Any, **_: Any) -> None:
            ends.append({n: p.detach().clone() for n, p in model.named_parameters()})

    run.add_callback(End())
    run.train()
    assert run.state.best_global_step == 2
    assert monitor.history["step"] == [0, 6]
    start = watch.weights[0]
    moved = sum((p - start[n]).double().square().sum() for n, p in ends[-1].items()).sqrt()
    size = sum(start[n].double().square().sum() for n in ends[-1]).sqrt()
    assert monitor.history["ntk/param_drift"][-1] == pytest.approx((moved / size).item(), rel=1e-5)


class Inside(Trainer):
    """Computes the loss without calling the model itself."""

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        pooled = model.bert(inputs["input_ids"], inputs["attention_mask"])[1]
        return nn.functional.cross_entropy(model.classifier(pooled), inputs["labels"])


def test_batches_that_do_not_pass(tmp_path: Path) -> None:
    batch = torch.utils.data.default_collate(samples(4))
    for monitor, ends in (
        (NTKMonitorCallback(), "raise"),
        (NTKMonitorCallback(on_error="warn"), "warn"),
        (NTKMonitorCallback(batch, metrics=("drift",)), "work"),
    ):
        run = trainer(tmp_path, [monitor], max_steps=3)
        own = Inside(run.model, run.args, train_dataset=samples(), callbacks=[monitor])
        if ends == "raise":
            with pytest.raises(ValueError, match="Pass NTKMonitorCallback"):
                own.train()
        elif ends == "warn":
            with pytest.warns(UserWarning, match="No measurement at step 1: `probe` must be"):
                own.train()
            assert own.state.global_step == 3
        else:
            own.train()
            assert monitor.history["step"][0] == 0
            assert monitor.history["step"][-1] == 3
        assert not run.model._forward_pre_hooks


def test_a_second_training_begins_anew(tmp_path: Path) -> None:
    monitor = NTKMonitorCallback(at_steps=[0], metrics=("param_drift",))
    run = trainer(tmp_path, [monitor], max_steps=2)
    run.train()
    assert monitor._session.schedule.length == 2
    first = monitor.history["ntk/param_drift"]
    run.train()
    assert monitor.history["step"] == [0, 2]
    assert monitor.history["ntk/param_drift"][0] == 0.0
    assert monitor.history["ntk/param_drift"] != first


def test_a_compiled_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    more = {"torch_compile": True, "torch_compile_backend": "eager", "max_steps": 2}
    found = []
    for monitor in (None, NTKMonitorCallback(at_steps=[1], metrics=("drift",))):
        torch.compiler.reset()
        run = trainer(tmp_path, [] if monitor is None else [monitor], **more)
        run.train()
        found.append(everything(run))
    assert_equal(found[0], found[1])
    assert monitor is not None
    assert monitor.history["step"] == [0, 1, 2]


def test_what_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="`resume_from` must be"):
        NTKMonitorCallback(resume_from=3)  # type: ignore[arg-type]
    args = TrainingArguments(str(tmp_path), use_cpu=True)
    args.fsdp = True
    with pytest.raises(ValueError, match="`args` must be without fsdp"):
        NTKMonitorCallback().on_train_begin(args, None, None)  # type: ignore[arg-type]


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch_ntk.integrations.transformers")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"pip install torch_ntk\[transformers\]"):
        importlib.import_module("torch_ntk.integrations.transformers")


def test_a_state_in_a_file(tmp_path: Path) -> None:
    base = torch.arange(6.0).view(2, 3)
    nan = float("nan")
    state = {
        "a": [base, base[:, 1], base.t()],
        "b": (1, 2.5, None, True, "x", [], {}),
        3: {"c": torch.tensor([True]), "d": (nan,)},
    }
    file = tmp_path / "state.safetensors"
    save_state(state, file)
    again = load_state(file)
    assert all(torch.equal(x, y) for x, y in zip(again["a"], state["a"], strict=True))  # type: ignore[index]
    assert again["b"] == state["b"]
    assert torch.equal(again[3]["c"], torch.tensor([True]))
    assert isinstance(again[3]["d"], tuple)
    assert again[3]["d"][0] != again[3]["d"][0]
    assert [p.name for p in tmp_path.iterdir()] == ["state.safetensors"]
    for wrong in (b"", file.read_bytes()[:-1]):
        file.write_bytes(wrong)
        with pytest.raises(ValueError, match="a file with the state of a monitor"):
            load_state(file)
    monitor = Monitor(8)
    save_state(monitor.state_dict(), str(file))
    Monitor(8).load_state_dict(load_state(str(file)))
