"""The page of `monitor.py`.

python benchmarks/monitor_report.py      # again, from benchmarks/monitor.json
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from common import DOCS, HERE

PROBE, BATCH = 32, 64
MOST_STEPS, MOST_POINTS, SHARE = 8.0, 2.0, 0.05


def report(result: dict[str, Any], docs: Path) -> None:
    """Write `benchmarks/monitor.md` below `docs`."""
    (docs / "benchmarks").mkdir(parents=True, exist_ok=True)
    (docs / "benchmarks" / "monitor.md").write_text(page(result), encoding="utf-8")


def in_words(result: dict[str, Any]) -> list[str]:
    """The figures, a sentence each."""
    f, m = result["firing"], result["memory"]
    lines = [
        f"ResNet-18, batch {BATCH}, probe {PROBE}: a step takes {f['step']:.2f} s, a measurement "
        f"{f['steps_of_later']:.1f} steps (at most {MOST_STEPS:g}), the first one "
        f"{f['steps_of_first']:.1f}."
    ]
    s = result["share"]
    lines.append(
        f"{s['steps']} steps of {s['step']:.2f} s within the default budget of {SHARE:.0%}: "
        f"{s['points']} measurements, {s['share']:.1%} of the time (logged: {s['logged']:.1%}; "
        f"at most {MOST_POINTS:g} points from the budget)."
    )
    lines.append(
        f"Memory: {m['more'] / 2**20:.0f} MB above the {m['without'] / 2**20:.0f} MB of the "
        f"training without a monitor; a copy of the model is {m['model'] / 2**20:.0f} MB, and the "
        f"budget of a kernel {m['budget'] / 2**20:.0f} MB."
    )
    return lines


def page(result: dict[str, Any]) -> str:
    """The page in Markdown."""
    env = result["environment"]
    lines = [
        "# What a monitor costs",
        "",
        f"`python benchmarks/monitor.py` on {env['cpu']}, {env['threads']} threads; torch",
        f"{env['torch']}, commit {env['commit']}. A measurement is everything that `NTKMonitor`",
        "does at a step with its defaults: kernel, spectrum, gap, alignment, movement,",
        "figures, and writing to TensorBoard.",
        "",
        *(f"- {line}" for line in in_words(result)),
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    report(json.loads((HERE / "monitor.json").read_text(encoding="utf-8")), DOCS)
