"""A language model of GPT-2's shape, trained by AdamW and watched from its first step.

    python examples/train_language_model.py
    python examples/train_language_model.py --points 15
    python examples/train_language_model.py --kernel optimizer --layers 12 --width 768
    python examples/train_language_model.py --quick

It learns the source code of Python's standard library, in pieces of 64 tokens that a byte-level
tokenizer makes, which is trained on the spot: nothing is downloaded. A sample has 64 times as many
outputs as there are tokens in the vocabulary, so that the monitor takes their kernel along random
directions of them. The picture shows the loss and the curves of the monitor; the page beside it has
everything else, and `tensorboard --logdir runs` too.
"""

from __future__ import annotations

import argparse
import logging
import sysconfig
import textwrap
import time
from pathlib import Path
from typing import Any

import torch
from _common import COLOURS, save
from matplotlib.figure import Figure
from tokenizers import ByteLevelBPETokenizer
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.tensorboard import SummaryWriter
from tqdm.auto import tqdm
from transformers import GPT2Config, GPT2LMHeadModel

from torch_ntk.monitor import Monitor

NAMES = ("drift", "kernel_distance", "linearization_gap", "param_drift", "lambda_max")


def data(files: int, tokens: int, vocabulary: int) -> tuple[Tensor, int]:
    """Pieces of source code `[N, tokens]`, and the size of the vocabulary."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    texts = [p.read_text(encoding="utf-8") for p in sorted(folder.glob("*.py"))[:files]]
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(texts, vocab_size=vocabulary, show_progress=False)
    coded = torch.tensor([token for text in texts for token in tokenizer.encode(text).ids])
    pieces = coded[: len(coded) // tokens * tokens].view(-1, tokens)
    return pieces, tokenizer.get_vocab_size()


def network(vocabulary: int, args: argparse.Namespace) -> GPT2LMHeadModel:
    """GPT-2 without dropout, of fewer and narrower layers."""
    torch.manual_seed(args.seed)
    config = GPT2Config(
        vocab_size=vocabulary,
        n_positions=args.tokens,
        n_layer=args.layers,
        n_embd=args.width,
        n_head=args.width // 32,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
    )
    return GPT2LMHeadModel(config)


def train(
    model: GPT2LMHeadModel, pieces: Tensor, args: argparse.Namespace, log_dir: Path
) -> tuple[Monitor, list[float]]:
    """The monitor after the training, and the loss of every step, in nats a token."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr)
    rise = torch.optim.lr_scheduler.LinearLR(optimizer, 0.05, total_iters=args.steps // 10)
    generator = torch.Generator().manual_seed(args.seed)
    loader = DataLoader(
        pieces, batch_size=args.batch_size, shuffle=True, drop_last=True, generator=generator
    )
    losses: list[float] = []
    with SummaryWriter(log_dir) as writer:

        def log(scalars: dict[str, float], step: int) -> None:
            for name, value in scalars.items():
                writer.add_scalar(name, value, step)

        every = None if args.points is None else max(1, args.steps // args.points)
        monitor = Monitor(
            folder=log_dir, log=log, kernel=args.kernel, every_n_steps=every, total_steps=args.steps
        )
        bar = tqdm(total=args.steps, desc="training", unit="step")
        while len(losses) < args.steps:
            for ids in loader:
                batch = {"input_ids": ids, "labels": ids}
                monitor.step(model, optimizer, batch)
                optimizer.zero_grad()
                loss = model(**batch).loss
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                rise.step()
                losses.append(loss.item())
                writer.add_scalar("train/loss", losses[-1], len(losses) - 1)
                bar.update()
                if len(losses) == args.steps:
                    break
        bar.close()
        monitor.finish(model, optimizer)
    return monitor, losses


def picture(monitor: Monitor, losses: list[float], verdict: str) -> Figure:
    """The loss, and what the monitor has measured."""
    history = monitor.history
    panels = (
        ("drift and turn of the kernel", ("drift", "kernel_distance")),
        ("movement of the network", ("linearization_gap", "param_drift")),
    )
    figure = Figure(figsize=(12, 3.8), dpi=110, layout="constrained")
    axes = figure.subplots(1, 1 + len(panels))
    axes[0].plot(losses, color=COLOURS[0], lw=1)
    axes[0].set(title="loss, nats a token", xlabel="step")
    for panel, (title, names) in zip(axes[1:], panels, strict=True):
        for name, colour in zip(names, COLOURS, strict=False):
            values = history[f"ntk/{name}"]
            panel.plot(history["step"], values, "o-", ms=3, color=colour, label=name)
        panel.set(title=title, xlabel="step")
        panel.legend(frameon=False)
    for panel in axes:
        panel.grid(alpha=0.25)
    figure.suptitle("\n".join(textwrap.wrap(verdict, 150)), fontsize=10)
    return figure


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Train, print what the monitor says, draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=128, help="a multiple of 32")
    parser.add_argument("--vocabulary", type=int, default=4096)
    parser.add_argument("--tokens", type=int, default=64, help="of a sample")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument(
        "--points", type=int, help="measurements; by default as many as 5%% of the time allow"
    )
    parser.add_argument("--kernel", choices=("gradient", "optimizer"), default="gradient")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log-dir", type=Path, default=Path("runs/language_model"))
    parser.add_argument("--out", type=Path, default=Path("language_model.png"))
    parser.add_argument("--quick", action="store_true", help="30 steps of a tiny network")
    args = parser.parse_args(argv)
    if args.quick:
        args.layers, args.width, args.vocabulary, args.tokens = 2, 64, 512, 32
        args.steps = min(args.steps, 30)
    logging.basicConfig(format="%(message)s")
    logging.getLogger("torch_ntk.monitor").setLevel(logging.INFO)
    pieces, vocabulary = data(5 if args.quick else 80, args.tokens, args.vocabulary)
    model = network(vocabulary, args)
    count = sum(p.numel() for p in model.parameters())
    print(f"{len(pieces):,} pieces of {args.tokens} tokens of a vocabulary of {vocabulary:,}")
    print(f"{args.layers} layers of width {args.width}, {count:,} parameters")
    started = time.perf_counter()
    monitor, losses = train(model, pieces, args, args.log_dir)
    seconds = time.perf_counter() - started
    history, verdict = monitor.history, monitor.verdict
    print(f"loss {losses[0]:.2f} -> {losses[-1]:.2f} in {args.steps} steps, {seconds:.0f} s")
    print(f"{len(history['step'])} measurements, {history['ntk/overhead'][-1]:.1%} of the time")
    last = {name: history[f"ntk/{name}"][-1] for name in NAMES}
    for name, value in last.items():
        print(f"  {name:18} {value:.4g}")
    print(verdict.text)
    page = args.out.with_suffix(".html")
    monitor.report(page, name="language model")
    main = {**last, "loss": losses[-1], "overhead": history["ntk/overhead"][-1]}
    numbers = {"main": main, "history": history, "losses": losses, "verdict": verdict.text}
    save(picture(monitor, losses, str(verdict)), numbers, args.out)
    print(f"The page is {page}")
    return numbers


if __name__ == "__main__":
    main()
