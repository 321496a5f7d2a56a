"""The page of `monitor.py`.

python benchmarks/monitor_report.py      # again, from benchmarks/monitor.json
"""

from __future__ import annotations

import statistics
from typing import Any

from common import DOCS, HERE, read_json

MORE, POINTS, BUDGET = 500 * 10**6, 2, 0.05
"""Bytes above a copy of the model, and points of the budget, that a monitor may take at most."""

ACCOUNT = """\
## Where the time goes

The goals were set for another split of the work than the one that an exact kernel needs. A training
step differentiates one number a sample; a kernel of ten outputs takes ten backward passes. For
ResNet-18, 64 samples and ten outputs, in operations (a step has 210 GFLOP, at 340 GFLOP/s on two
cores of an AMD EPYC):

| part | GFLOP | at a step's speed |
|---|--:|--:|
| backward passes of 640 outputs, without gradients of weights | 710 | 3.4 steps |
| Jacobians and products of all weights | 740 | 3.5 steps |
| forward passes, in two groups of outputs so that memory stays bounded | 140 | 0.7 steps |
| a plain pass to compare with | 210 | 1 step |
| slopes of the linearized network, two passes | 280 | 1.3 steps |

That is 10 steps at the speed of a training step, for 64 samples; all passes are in proportion to
these. A default probe has as many samples, of 64, as are measured in about eight steps, so that
ResNet-18 and ViT are measured on 32. On one thread of this machine, a kernel of 64 samples takes
12.6 to 13.9 steps of ResNet-18: backward passes 5.6 s, of which two fifths are ReLUs, sums and
copies of layouts, Jacobians 4.4 s, products between samples 3.1 s, and plain passes 1.7 s, at a
step of 1.3 s. In float32 some ReLUs of so large a network change sides between any two
evaluations; where plain passes moved by roundings do not explain a difference, the samples
concerned are repeated in float64, which then takes another 6 steps. GPT-2 is measured on the 8
samples of its batch along 8 random directions, which are 8 backward passes; where its memory goes
has not been taken apart. A measurement of the small networks is
mostly Python: an MLP takes 9 ms for the kernel, of which the comparison is 4 ms, and 3 ms for
outputs and slopes. What a user can do: fewer samples, or `output="probed"`; what would help: to
multiply cotangents as they come, layer by layer, so that no groups of outputs are needed.
""".splitlines()


def report(result: dict[str, Any]) -> None:
    """Write the page."""
    (DOCS / "benchmarks" / "monitor.md").write_text(page(result), encoding="utf-8")


def in_words(result: dict[str, Any]) -> list[str]:
    """The table, and a sentence on the share of the time."""
    lines = [
        "| training | parameters | batch | a step | drift and gap: first | later | goal "
        "| all metrics: later | memory | goal |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
        *map(_row, result["rows"]),
    ]
    s = result["share"]
    if s is not None:
        lines += [
            "",
            f"Within the default budget of {BUDGET:.0%}, {s['steps']} steps of {s['step']:.2f} s "
            f"of ResNet-18 have {s['points']} measurements, which take {s['share']:.1%} of the "
            f"time with their figures (logged: {s['logged']:.1%}; at most {POINTS} points from the "
            "budget).",
        ]
    return lines


def _row(row: dict[str, Any]) -> str:
    """A line of the table."""
    step = row["step"]
    first, later, every = (
        f"{found / step:.1f}"
        for found in (
            row["asked"]["first"],
            statistics.median(row["asked"]["later"]),
            statistics.median(row["all"]["later"]),
        )
    )
    goal = "–" if row["goal"] is None else f"{row['goal']:g}"
    is_long = step >= 0.1
    time = f"{step:.2f} s" if is_long else f"{1e3 * step:.1f} ms"
    samples = str(row["batch"]) + ("" if row["probe"] == row["batch"] else f" ({row['probe']})")
    memory, most = (f"{size / 1e6:.0f} MB" for size in (row["more"], row["model"] + MORE))
    cells = (row["name"], f"{row['parameters']:,}", samples, time, first, later, goal, every)
    return f"| {' | '.join((*cells, memory, most))} |"


def page(result: dict[str, Any]) -> str:
    """The page in Markdown."""
    env = result["environment"]
    nets = " ".join(["", "--nets", *result["nets"]]) if result["nets"] else ""
    lines = [
        "# What a monitor costs",
        "",
        f"`python benchmarks/monitor.py{nets}` on {env['cpu']}, {env['threads']} threads; torch",
        f"{env['torch']}, commit {env['commit']}, load of the machine {env['load']:.1f}.",
        "Measurements are in training steps, with the default probe: 64 samples of the batch, or",
        "all of a smaller one (in parentheses where it became smaller). The first one also takes",
        "the reference, and loads what is needed. Beside drift and gap, *all metrics* are the",
        "spectrum, alignment, movement of parameters and running statistics. Memory is the",
        "highest of the process above that of the training alone; the goal is a copy of the model",
        "and 500 MB.",
        "",
        *in_words(result),
        "",
    ]
    return "\n".join([*lines, *ACCOUNT])


if __name__ == "__main__":
    report(read_json(HERE / "monitor.json"))
