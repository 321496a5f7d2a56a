"""Time finite-width kernels against other packages, with the same nets and sizes, in one run.

    pip install '.[peers]'      # in an environment of its own; nngeometry if you like
    python benchmarks/empirical.py [--quick] [--row N] [--accounts] [--device cuda]

Compared are this package, the two ways of the torch.func tutorial on neural tangent kernels
(Jacobian contraction and NTK-vector products), nngeometry where it is installed, and the better
one of neural-tangents' structured derivatives and Jacobian contraction, compiled by jax. Every
figure comes from a process of its own, ours before and after the others, and once more to count
operations and to see which stage takes how long. Prints a table with the ratios and, without
`--quick`, measures growth as well (beside neural-tangents' structured derivatives) and writes
`benchmarks/empirical.json`, the page `docs/benchmarks/empirical.md` and its figure. Run it on an
idle machine. With `--device cuda` the same kernels and some larger ones are timed on a GPU, in one
process and without neural-tangents, and written to `benchmarks/empirical_gpu.json`.
"""

from __future__ import annotations

import argparse
import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import HERE, best, environment, peak_memory, read_json, version, worker, write_json
from empirical_account import account, lines, operations
from empirical_nets import NAMES
from empirical_ways import MAKERS, WHO, is_on_gpu

SCRIPT = Path(__file__).resolve()
TABLE: list[dict[str, Any]] = [
    {"net": "mlp", "n": 64, "output": "full", "must": {"peer": 1.5, "tutorial": 300}},
    {"net": "mlp", "n": 256, "output": "full", "must": {"peer": 2}},
    {"net": "mlp", "n": 256, "output": "mean", "must": {"peer": 2}},
    {"net": "cnn", "n": 64, "output": "full", "must": {"peer": 2, "tutorial": 5}},
    {"net": "gap", "n": 32, "output": "full", "must": {"peer": 2, "tutorial": 2}},
    {"net": "gap", "n": 32, "output": "mean", "must": {"peer": 2, "tutorial": 2}},
    {"net": "resnet", "n": 8, "output": "full", "must": {"peer": 1.8, "tutorial": 6}},
    {"net": "cnn", "n": 4, "output": "full", "must": {}},
]
ON_GPU: list[dict[str, Any]] = [
    *({k: v for k, v in job.items() if k != "must"} for job in TABLE),
    {"net": "cnn", "n": 256, "output": "full"},
    {"net": "resnet", "n": 64, "output": "full"},
    {"net": "resnet", "n": 64, "output": "mean"},
]


def measure(job: dict[str, Any]) -> dict[str, Any] | None:
    """Seconds of the best run, and its bytes above those before the first; or the account."""
    run = MAKERS[job["who"]](job)
    if run is None:
        return None
    if is_on_gpu(job):
        return on_gpu(run, bool(job.get("account")))
    if job.get("account"):
        return account(run)
    # torch.func loads it when it is first used, 80 MB that no kernel takes.
    importlib.import_module("torch._dynamo")

    before = peak_memory()
    try:
        run()
    except Exception as error:
        # jax has no type of its own for a lack of memory.
        if "RESOURCE_EXHAUSTED" in str(error):
            return None
        raise
    return {"memory": peak_memory() - before, "seconds": best(run)}


def on_gpu(run: Callable[[], Any], is_account: bool) -> dict[str, Any]:
    """The same on a GPU, where work goes on after a call returns."""

    def waited() -> None:
        run()
        torch.cuda.synchronize()

    waited()
    if is_account:
        return operations(waited)
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    waited()
    memory = torch.cuda.max_memory_allocated() - before
    return {"memory": memory, "seconds": best(waited, most=2.0)}


WAYS = ("STRUCTURED_DERIVATIVES", "JACOBIAN_CONTRACTION")
"""The implementations of neural-tangents."""


def done(job: dict[str, Any], what: dict[str, Any]) -> dict[str, Any] | None:
    """A measurement: on a GPU in this process, whose start takes long there, else in its own."""
    if not is_on_gpu(job):
        return worker(SCRIPT, what)
    try:
        return measure(what)
    except torch.OutOfMemoryError:
        return None
    finally:
        torch.cuda.empty_cache()


def compare(
    job: dict[str, Any],
    others: tuple[str, ...] = tuple(WHO)[1:],
    ways: tuple[str, ...] = WAYS,
) -> dict[str, Any]:
    """Times of all, each in a process of its own; the shorter of our two runs."""
    sizes = {k: v for k, v in job.items() if k != "must"}
    found = {"ours": done(job, {"who": "ours", **sizes})}
    for who in others:
        if who == "peer" and not is_on_gpu(job):
            tried = [done(job, {"who": who, "implementation": w, **sizes}) for w in ways]
            ran = [t for t in tried if t is not None]
            found[who] = min(ran, key=lambda t: t["seconds"]) if ran else None
        elif who != "peer":
            found[who] = done(job, {"who": who, **sizes})
    again = done(job, {"who": "ours", **sizes})
    first = found["ours"]
    assert first is not None
    assert again is not None
    found["ours"] = min(first, again, key=lambda t: t["seconds"])
    ratios = {w: f["seconds"] / found["ours"]["seconds"] for w, f in found.items() if f}
    return {**job, "name": NAMES[job["net"]], "found": found, "ratios": ratios}


def accounted(job: dict[str, Any]) -> dict[str, Any] | None:
    """Operations and times of the stages of our kernel."""
    keys = ("net", "n", "output", "device")
    sizes = {k: job[k] for k in keys if k in job}
    return done(job, {"who": "ours", "account": True, **sizes})


def line(row: dict[str, Any]) -> str:
    """A row of the table as text."""
    text = [f"{row['name']:<27} N={row['n']:<4}{row['output']:<5}"]
    for who, found in row["found"].items():
        if found is None:
            continue
        ratio = f" {row['ratios'][who]:.2f}×" if who != "ours" else ""
        must = f" (at least {row['must'][who]}×)" if who in row.get("must", {}) else ""
        memory = f"{found['memory'] / 2**20:.0f} MB"
        text.append(f"  {WHO[who]} {1e3 * found['seconds']:.1f} ms, {memory}{ratio}{must}")
    return "\n".join(text + lines(row["account"]))


def growth() -> dict[str, list[dict[str, Any]]]:
    """How our time and the peer's grow with the samples, the outputs and the width of the MLP."""
    axes = {"n": (16, 32, 64, 128, 256), "outputs": (1, 3, 10, 30), "width": (256, 512, 1024, 2048)}
    series: dict[str, list[dict[str, Any]]] = {}
    for axis, values in axes.items():
        series[axis] = []
        for value in values:
            # Contracting Jacobians takes the peer a hundred times as long for this net.
            job = {"net": "mlp", "n": 64, "output": "full", axis: value}
            row = compare(job, ("peer",), WAYS[:1])
            point = {w: f and 1e3 * f["seconds"] for w, f in row["found"].items()}
            series[axis].append({axis: value, **point})
            print(series[axis][-1], flush=True)
    return series


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="only the table; nothing is written")
    parser.add_argument("--row", type=int, help="only this row of the table; nothing is written")
    parser.add_argument(
        "--accounts", action="store_true", help="only the stages again, beside what is there"
    )
    parser.add_argument(
        "--device", choices=["cpu", "cuda"], default="cpu", help="where the kernels are computed"
    )
    parser.add_argument("--job", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.job:
        print(json.dumps(measure(json.loads(args.job))))
        return
    if args.accounts:
        result = read_json(HERE / "empirical.json")
        for row in result["rows"]:
            row["account"] = accounted(row)
            print(line(row), flush=True)
        finish(result)
        return
    if args.device == "cuda":
        on_a_gpu(args)
        return
    if version("neural-tangents") is None:
        print("neural-tangents is not installed here: pip install '.[peers]' to compare with it.")
    rows = []
    for job in TABLE if args.row is None else [TABLE[args.row]]:
        rows.append(compare(job))
        rows[-1]["account"] = accounted(job)
        print(line(rows[-1]), flush=True)
    if args.quick or args.row is not None:
        return
    result = {"environment": environment(), "rows": rows, "growth": {}}
    write_json(HERE / "empirical.json", result)  # before what may yet fail
    result["growth"] = growth()
    finish(result)


def on_a_gpu(args: argparse.Namespace) -> None:
    """The table there; the page takes it up when it is next written."""
    # What the tutorial computes with: float32, as this package does in any case.
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    torch.backends.cudnn.conv.fp32_precision = "ieee"
    rows = []
    for job in ON_GPU if args.row is None else [ON_GPU[args.row]]:
        rows.append(compare({**job, "device": args.device}))
        rows[-1]["account"] = accounted(rows[-1])
        print(line(rows[-1]), flush=True)
    if not (args.quick or args.row is not None):
        write_json(HERE / "empirical_gpu.json", {"environment": environment(), "rows": rows})


def finish(result: dict[str, Any]) -> None:
    """Write the figures and the page."""
    write_json(HERE / "empirical.json", result)
    from empirical_report import report  # draws: not in the processes that are measured

    report(result)


if __name__ == "__main__":
    main()
