"""One classifier of text, trained by the Trainer of transformers and by Lightning's, both watched.

    python examples/train_transformers.py
    python examples/train_transformers.py --epochs 10 --width 256
    python examples/train_transformers.py --quick

A small BERT with random weights learns to tell docstrings of PyTorch from those of Python's
standard library. Both come with the installation: nothing is downloaded, the tokenizer is trained
on the spot. Curves are in TensorBoard: `tensorboard --logdir runs`.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import logging
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch import Trainer as LightningTrainer
from lightning.pytorch.loggers import TensorBoardLogger
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.trainers import WordPieceTrainer
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    PrinterCallback,
    Trainer,
    TrainingArguments,
    set_seed,
)

from torch_ntk.callbacks import NTKMonitor
from torch_ntk.integrations.transformers import NTKMonitorCallback
from torch_ntk.monitor import Results

PYTORCH = (
    "torch torch.nn torch.nn.functional torch.optim torch.optim.lr_scheduler torch.linalg "
    "torch.fft torch.special torch.distributions torch.utils.data torch.autograd torch.nn.init"
)
PYTHON = (
    "os pathlib collections itertools functools json csv re random statistics math datetime "
    "argparse logging asyncio threading subprocess socket email.message http.client urllib.request "
    "xml.etree.ElementTree unittest decimal fractions inspect ast tarfile zipfile shutil tempfile "
    "string textwrap struct pickle sqlite3 ssl queue heapq bisect array enum contextlib calendar "
    "multiprocessing.pool configparser difflib ipaddress locale optparse smtplib ftplib imaplib"
)
TOKENS = 48  # of a text
NAMES = ("drift", "kernel_distance", "linearization_gap", "param_drift", "alignment")


# ------------------------------------------------------------------------------ data
def docstrings(modules: str) -> list[str]:
    """The first paragraphs of the public classes, methods and functions, without the word torch."""
    found: dict[str, None] = {}
    for name in modules.split():
        for thing in _things(importlib.import_module(name)):
            first = (inspect.getdoc(thing) or "").partition("\n\n")[0]
            text = " ".join(re.sub(r"(?i)\b(py)?torch\b", " ", first).split())
            if len(text) > 30:
                found[text] = None
    return list(found)


def _things(module: object) -> Iterator[object]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what is deprecated
        for name, thing in inspect.getmembers(module):
            if name.startswith("_") or not (inspect.isroutine(thing) or inspect.isclass(thing)):
                continue
            yield thing
            if inspect.isclass(thing):
                yield from (m for n, m in vars(thing).items() if n[0] != "_" and callable(m))


def data(limit: int | None) -> tuple[list[dict[str, Tensor]], list[dict[str, Tensor]], int]:
    """Samples for training and validation, as many of each kind, and the size of the vocabulary."""
    kinds = [docstrings(modules) for modules in (PYTHON, PYTORCH)]
    size = min(*(len(texts) for texts in kinds), limit or 10**9)
    generator = torch.Generator().manual_seed(0)
    pairs = [
        (texts[k], label)
        for label, texts in enumerate(kinds)
        for k in torch.randperm(len(texts), generator=generator)[:size].tolist()
    ]
    pairs = [pairs[k] for k in torch.randperm(len(pairs), generator=generator).tolist()]
    held_out = len(pairs) // 5
    tokenizer = Tokenizer(WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = Lowercase(), BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]"]
    trainer = WordPieceTrainer(vocab_size=2000, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator((text for text, _ in pairs[held_out:]), trainer)
    tokenizer.enable_truncation(TOKENS)
    tokenizer.enable_padding(length=TOKENS, pad_id=0, pad_token="[PAD]")
    samples = []
    for text, label in pairs:
        coded = tokenizer.encode("[CLS] " + text)
        ids, mask = torch.tensor(coded.ids), torch.tensor(coded.attention_mask)
        samples.append({"input_ids": ids, "attention_mask": mask, "labels": torch.tensor(label)})
    return samples[held_out:], samples[:held_out], tokenizer.get_vocab_size()


# ------------------------------------------------------------------------------ training
def bert(vocabulary: int, width: int) -> BertForSequenceClassification:
    """Two layers, the same random weights for both trainers."""
    set_seed(1)
    config = BertConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=2 * width,
        max_position_embeddings=TOKENS,
        num_labels=2,
    )
    return BertForSequenceClassification(config)


class Classifier(LightningModule):
    """The network with the Trainer's defaults: AdamW, a rate that falls to 0, clipped gradients."""

    def __init__(self, network: BertForSequenceClassification, lr: float, steps: int) -> None:
        super().__init__()
        self.network, self.lr, self.steps = network, lr, steps

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Logits `[N, 2]`."""
        return self.network(input_ids=input_ids, attention_mask=attention_mask).logits

    def training_step(self, batch: dict[str, Tensor], _: int) -> Tensor:
        """The loss of a batch."""
        loss = self.network(**batch).loss
        self.log("train/loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        """AdamW without weight decay."""
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.lr, weight_decay=0.0)
        fall = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, self.steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": fall, "interval": "step"}}


def by_transformers(network: Any, samples: list[Any], args: argparse.Namespace) -> Results:
    """Trained by `transformers.Trainer`."""
    monitor = NTKMonitorCallback()
    given = TrainingArguments(
        str(args.log_dir / "transformers"),
        num_train_epochs=args.epochs,
        per_device_train_batch_size=args.batch_size,
        learning_rate=args.lr,
        logging_steps=5,
        save_strategy="no",
        report_to="tensorboard",
        use_cpu=not torch.cuda.is_available(),
        disable_tqdm=True,
        log_level="error",
    )
    trainer = Trainer(network, given, train_dataset=samples, callbacks=[monitor])
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return monitor


def by_lightning(network: Any, samples: list[Any], args: argparse.Namespace) -> Results:
    """Trained by Lightning's Trainer."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    for remark in (".*does not have many workers.*", ".*LeafSpec.*"):
        warnings.filterwarnings("ignore", remark)
    monitor = NTKMonitor()
    loader = DataLoader(samples, batch_size=args.batch_size, shuffle=True)
    trainer = LightningTrainer(
        max_epochs=args.epochs,
        gradient_clip_val=1.0,
        logger=TensorBoardLogger(args.log_dir, name="lightning"),
        callbacks=[monitor],
        log_every_n_steps=5,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Classifier(network, args.lr, args.epochs * len(loader)), loader)
    return monitor


def accuracy(network: BertForSequenceClassification, samples: list[dict[str, Tensor]]) -> float:
    """The share of texts that are told right."""
    network.cpu().eval()
    batch = torch.utils.data.default_collate(samples)
    labels = batch.pop("labels")
    with torch.no_grad():
        return float((network(**batch).logits.argmax(1) == labels).float().mean())


def main(argv: list[str] | None = None) -> dict[str, Results]:
    """Train twice and print what the monitors say."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--width", type=int, default=64, help="a multiple of 4")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--log-dir", type=Path, default=Path("runs"))
    parser.add_argument("--quick", action="store_true", help="200 texts, one epoch")
    args = parser.parse_args(argv)
    if args.quick:
        args.epochs = 1
    training, held_out, vocabulary = data(100 if args.quick else None)
    print(f"{len(training)} texts for training, {len(held_out)} held out")
    monitors = {}
    for name, train in (("transformers", by_transformers), ("lightning", by_lightning)):
        network = bert(vocabulary, args.width)
        monitors[name] = monitor = train(network, training, args)
        history = monitor.history
        print(f"\n{name}: {accuracy(network, held_out):.1%} of the held-out texts told right")
        print(f"  {len(history['step'])} measurements in {history['step'][-1]:.0f} steps, ", end="")
        print(f"{history['ntk/overhead'][-1]:.1%} of the time")
        for key in NAMES:
            print(f"  {key:18} {history[f'ntk/{key}'][-1]:.4g}")
        print(f"  {monitor.verdict.text}")
    return monitors


if __name__ == "__main__":
    main()
