"""The measured part of `docs/scale.md`.

python benchmarks/scale_report.py      # again, from benchmarks/scale.json
"""

from __future__ import annotations

from typing import Any

from common import DOCS, HERE, read_json

BEGIN, END = "<!-- measured -->", "<!-- end of what is measured -->"
# The rows of benchmarks/analytic.json, and the lecture's GPU-hours for CIFAR-10.
KINDS = (
    ("fully connected", "MLP depth 4, N=2000, d=784, the matrix", "O(0.1)"),
    ("CNN", "CNTK-V depth 11, 32×32×3, a pair", "O(1)"),
    ("CNN with pooling", "CNTK-GAP depth 11, 32×32×3, a pair", "O(1000)"),
)
SAMPLES = (10_000, 60_000, 1_000_000)
_DAY = 24.0
_MLP = 2000 * 2001 / 2  # entries that are computed of that matrix


def report(result: dict[str, Any]) -> None:
    """Replace what stands between the marks in `docs/scale.md`."""
    path = DOCS / "scale.md"
    before, _, rest = path.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    path.write_text(before + page(result) + after, encoding="utf-8")


def costs(analytic: dict[str, Any]) -> dict[str, Any]:
    """Core-seconds of an entry by kind of network, in float32 and float64, from `analytic.json`."""
    rows = {row["name"]: row for row in analytic["rows"]}
    threads = analytic["environment"]["threads"]
    found = {}
    for kind, name, _ in KINDS:
        row = rows[name]
        each = row["ms"] / 1000 * threads / (_MLP if "matrix" in name else 1.0)
        found[kind] = {"float32": each, "float64": each * row.get("float64", 2.0)}
    return {"environment": analytic["environment"], "seconds": found}


def in_words(result: dict[str, Any]) -> list[str]:
    """The figures of this benchmark, a sentence each."""
    lines = _of_store(result) + _of_memory(result)
    for s in result["simulated"]:
        lines.append(
            f"{s['workers']} simulated workers, tiles of {s['tile']:g} s: efficiency "
            f"{s['efficiency']:.0%}."
        )
    lines.append(f"Scheduler: {result['rate']['rate']:.0f} tiles a second at most.")
    return lines


def _of_store(result: dict[str, Any]) -> list[str]:
    """What the store and a second worker cost; nothing if the machine was too busy to tell."""
    lines = []
    if o := result.get("overhead"):
        each = o["bare"] / o["tiles"]
        lines.append(
            f"Tiles of {each:.2f} s: in a store {o['here'] / o['bare'] - 1:+.1%} over the same "
            f"calls in a loop, on one worker {o['worker'] / o['bare'] - 1:+.1%} (at most 10 %)."
        )
    if o := result.get("single"):
        lines.append(
            f"The same on one thread, {o['bare'] / o['tiles']:.2f} s each, where no threads wait "
            f"for each other: in a store {o['here'] / o['bare'] - 1:+.1%}, on one worker "
            f"{o['worker'] / o['bare'] - 1:+.1%} (at most 10 %)."
        )
    if f := result.get("fixed"):
        lines.append(
            f"A job on one worker beside its tiles ({f['tiles']} small ones, their own time taken "
            f"away): the first in a new worker, which loads code, {f['first'] - f['bare']:.2f} s; "
            f"another one {f['other'] - f['bare']:.2f} s; one whose tiles are all there "
            f"{f['again']:.2f} s."
        )
    if w := result.get("workers"):
        lines.append(
            f"{w['workers'][1]} workers of one thread: {w['seconds'][0] / w['seconds'][1]:.2f} "
            "times as fast as one (at least 1.8)."
        )
    return lines


def _of_memory(result: dict[str, Any]) -> list[str]:
    lines = []
    for m in result["memory"]:
        lines.append(
            f"Fully connected kernel of {m['n']:,} samples, float64, tiles of {m['tile']}: peak "
            f"memory of the process {m['peak'] / 2**30:.2f} GiB, {m['bytes'] / 2**30:.2f} GiB on "
            f"disk, {m['seconds']:.0f} s, {m['read']:.1f} s to verify."
        )
    return lines


def page(result: dict[str, Any]) -> str:
    """The marks and what is written between them."""
    env, of = result["environment"], result["costs"]["environment"]
    seconds = result["costs"]["seconds"]
    lines = [
        BEGIN,
        "",
        "### An entry",
        "",
        f"Core-seconds of one entry, from `benchmarks/analytic.json` ({of['cpu']}, "
        f"{of['threads']} threads, commit {of['commit']}): images of 32×32×3, depth 11 (fully "
        "connected: depth 4, 784 inputs).",
        "",
        "| | float32 | float64 |",
        "|---|---|---|",
        *(
            f"| {kind} | {_small(each['float32'])} | {_small(each['float64'])} |"
            for kind, each in seconds.items()
        ),
        "",
        "### All of them",
        "",
        "N(N+1)/2 entries, in float32, stored in float32. Workers are cores that work a day.",
        "",
        "| samples | network | core-hours | cores for a day | disk | lecture, GPU-hours |",
        "|---|---|---|---|---|---|",
    ]
    for n in SAMPLES:
        for kind, _, hours in KINDS:
            needed = seconds[kind]["float32"] * n * (n + 1) / 2 / 3600
            told = hours if n == SAMPLES[0] else ""
            lines.append(
                f"| {n:,} | {kind} | {_number(needed)} | {_cores(needed / _DAY)} | "
                f"{_bytes(n * n / 2 * 4)} | {told} |"
            )
    lines += [
        "",
        "### The store, the workers",
        "",
        f"`python benchmarks/scale.py` on {env['cpu']}, {env['cores']} cores, commit "
        f"{env['commit']} (load {env['load']:.1f} at the start):",
        "",
        *(f"- {line}" for line in _of_store(result) + _of_memory(result)),
        "",
        "### A simulated cluster",
        "",
        "Dask's scheduler, and workers in one process with it, whose tiles sleep:",
        "",
        "| workers | tiles | seconds of a tile | elapsed, s | efficiency |",
        "|---|---|---|---|---|",
        *(
            f"| {s['workers']} | {s['tiles']:,} | {s['tile']:g} | {s['elapsed']:.1f} | "
            f"{s['efficiency']:.0%} |"
            for s in result["simulated"]
        ),
        "",
        f"Empty tiles pass at {result['rate']['rate']:.0f} a second, scheduler and all "
        f"{result['rate']['workers']} workers on the {env['cores']} cores of this machine.",
        "",
        END,
    ]
    return "\n".join(lines)


def _small(seconds: float) -> str:
    for unit, factor in (("s", 1.0), ("ms", 1e3), ("µs", 1e6), ("ns", 1e9)):
        if seconds * factor >= 1:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds * 1e9:.2g} ns"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def _cores(value: float) -> str:
    return _number(value) if value >= 1 else "1"


def _bytes(size: float) -> str:
    for unit in ("MB", "GB"):
        size_in = size / {"MB": 1e6, "GB": 1e9}[unit]
        if size_in < 1000:
            return f"{size_in:.3g} {unit}"
    return f"{size / 1e12:.3g} TB"


if __name__ == "__main__":
    report(read_json(HERE / "scale.json"))
