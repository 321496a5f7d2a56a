"""The page of `monitor.py`.

python benchmarks/monitor_report.py      # again, from benchmarks/monitor.json
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from common import DOCS, HERE

MORE, POINTS, BUDGET = 500 * 10**6, 2, 0.05
"""Bytes above a copy of the model, and points of the budget, that a monitor may take at most."""


def report(result: dict[str, Any], docs: Path) -> None:
    """Write `benchmarks/monitor.md` below `docs`."""
    (docs / "benchmarks").mkdir(parents=True, exist_ok=True)
    (docs / "benchmarks" / "monitor.md").write_text(page(result), encoding="utf-8")


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
    return "\n".join(lines)


if __name__ == "__main__":
    report(json.loads((HERE / "monitor.json").read_text(encoding="utf-8")), DOCS)
