"""The page of `features.py`.

python benchmarks/features_report.py      # again, from benchmarks/features.json
"""

from __future__ import annotations

import statistics
from typing import Any

from common import DOCS, HERE, read_json

MOST, LEAST = 2.5, 0.95


def report(result: dict[str, Any]) -> None:
    """Write the page."""
    (DOCS / "benchmarks" / "features.md").write_text(page(result), encoding="utf-8")


def in_words(result: dict[str, Any]) -> list[str]:
    """The figures, a sentence each."""
    t, dim = result["times"], result["dim"]
    lines = [
        f"Per-sample gradients alone, `vmap(grad)` of {t['size']} samples at once: "
        f"{1e3 * t['gradients']:.0f} ms a sample; those of all ten outputs, `vmap(jacrev)`: "
        f"{1e3 * t['jacobians']:.0f} ms."
    ]
    for way, seconds in zip(result["ways"], t["found"], strict=True):
        unchecked = "" if way.get("check", True) else ", `check=False`"
        goal = f" (at most {MOST:g})" if way == result["ways"][0] else ""
        beside = "jacobians" if way["output"] == "mean" else "gradients"
        lines.append(
            f"`{way['kind']}`, `{way['output']}`{unchecked}, {dim} features: "
            f"{1e3 * seconds:.0f} ms a sample, {seconds / t[beside]:.2f} times that of the "
            f"{beside}{goal}."
        )
    few, many = result["memory"]
    lines.append(
        f"Memory above that of the process, features in a file: {few['more'] / 2**20:.0f} MB for "
        f"{few['n']} samples, {many['more'] / 2**20:.0f} MB for {many['n']}."
    )
    e = result["exactness"]
    once, twice, error = (
        statistics.mean(seed[name] for seed in e["seeds"]) for name in ("once", "twice", "error")
    )
    lines.append(
        f"Of the entries of the kernel of {e['n']} samples, {once:.1%} lie within the stated error "
        f"(which is {error:.1%} of an entry) and {twice:.1%} within twice that (at least "
        f"{LEAST:.0%}), over {len(e['seeds'])} seeds."
    )
    return lines


def page(result: dict[str, Any]) -> str:
    """The page as Markdown."""
    env = result["environment"]
    lines = [
        "# What features cost",
        "",
        f"`python benchmarks/features.py` on {env['cpu']}, {env['threads']} threads, float32;",
        f"torch {env['torch']}, commit {env['commit']}. ResNet-18 for images of 32×32 without",
        "normalization, 11 million parameters. Times are the shortest of some runs in turns,",
        f"beside other work of the machine (its load was {env['load']:.0f} at the start).",
        "Without `check=False` every block is compared with a plain backward pass; `mean`",
        "differentiates all ten outputs, the others one.",
        "",
        *(f"- {line}" for line in in_words(result)),
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    report(read_json(HERE / "features.json"))
