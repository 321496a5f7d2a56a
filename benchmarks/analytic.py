"""Time the infinite-width kernels against neural-tangents, in one run.

    pip install '.[peers]'      # in an environment of its own
    python benchmarks/analytic.py [--quick]

Every figure comes from a process of its own, ours and the peer's by turns. Prints a table and,
without `--quick`, measures growth as well and writes `benchmarks/analytic.json`, the page
`docs/benchmarks/analytic.md` and its figure. Without neural-tangents only our times are printed.
Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from common import HERE, best, environment, peak_memory, version, worker, write_json

SCRIPT = Path(__file__).resolve()
# Pairs of images per call. The peer's time per pair does not fall with more.
PAIRS = {"gap": {"ours": (8, 8), "peer": (2, 2)}, "flatten": {"ours": (96, 96), "peer": (96, 96)}}
TABLE = [
    {"net": "cntk", "pooling": "gap", "depth": 4, "side": 32, "must": 150},
    {"net": "cntk", "pooling": "gap", "depth": 11, "side": 32, "must": 250},
    {"net": "cntk", "pooling": "flatten", "depth": 4, "side": 32, "must": 15},
    {"net": "cntk", "pooling": "flatten", "depth": 11, "side": 32, "must": 15},
    {"net": "mlp", "depth": 4, "n": 2000, "must": 5},
]


def ours(job: dict[str, Any]) -> dict[str, Any]:
    """Seconds of one job with this package: of a pair of images, or of the whole matrix."""
    from torch_ntk import CNTK, mlp_kernels

    dtype = getattr(torch, job.get("dtype", "float32"))
    generator = torch.Generator().manual_seed(0)
    if job["net"] == "mlp":
        x = torch.randn(job["n"], 784, generator=generator)
        seconds = best(lambda: mlp_kernels(x, depth=job["depth"], sigma_b=0.1, dtype=dtype))
        return {"seconds": seconds}
    n1, n2 = job.get("pairs") or PAIRS[job["pooling"]]["ours"]
    x1 = torch.randn(n1, 3, job["side"], job["side"], generator=generator)
    x2 = torch.randn(n2, 3, job["side"], job["side"], generator=generator)
    kernel = CNTK(job["depth"], pooling=job["pooling"], dtype=dtype)
    before = peak_memory()
    kernel(x1, x2)
    memory = peak_memory() - before
    if job.get("once"):
        return {"memory": memory}
    return {"seconds": best(lambda: kernel(x1, x2)) / (n1 * n2), "memory": memory}


def peer(job: dict[str, Any]) -> dict[str, Any] | None:
    """The same with neural-tangents, compiled by jax."""
    try:
        import jax
        from neural_tangents import stax
    except ImportError:
        return None
    import numpy as np

    rng = np.random.RandomState(0)
    width, root = 1, 2**0.5
    if job["net"] == "mlp":
        layers: list[Any] = []
        for _ in range(job["depth"] - 1):
            layers += [stax.Dense(width, W_std=root, b_std=0.1), stax.Relu()]
        *_, kernel = stax.serial(*layers, stax.Dense(width, W_std=root, b_std=0.1))
        x1 = rng.randn(job["n"], 784).astype("float32")
        function = jax.jit(lambda a: kernel(a, None, ("nngp", "ntk")))
        return {"seconds": best(lambda: jax.block_until_ready(function(x1).ntk))}
    layers = []
    for _ in range(job["depth"] - 1):
        layers += [stax.Conv(width, (3, 3), padding="SAME", W_std=root, b_std=None), stax.Relu()]
    layers.append(stax.GlobalAvgPool() if job["pooling"] == "gap" else stax.Flatten())
    *_, kernel = stax.serial(*layers, stax.Dense(width, W_std=1.0, b_std=None))
    n1, n2 = PAIRS[job["pooling"]]["peer"]
    side = job["side"]
    a, b = (rng.randn(n, side, side, 3).astype("float32") for n in (n1, n2))
    before = peak_memory()
    function = jax.jit(lambda u, v: kernel(u, v, "ntk"))
    jax.block_until_ready(function(a, b))
    memory = peak_memory() - before
    seconds = best(lambda: jax.block_until_ready(function(a, b)))
    return {"seconds": seconds / (n1 * n2), "memory": memory}


def name(job: dict[str, Any]) -> str:
    """A job in words."""
    if job["net"] == "mlp":
        return f"MLP depth {job['depth']}, N={job['n']}, d=784, the matrix"
    kind = "GAP" if job["pooling"] == "gap" else "V"
    return f"CNTK-{kind} depth {job['depth']}, {job['side']}×{job['side']}×3, a pair"


def table() -> list[dict[str, Any]]:
    """Our time and the peer's, by turns."""
    rows = []
    for job in TABLE:
        first = _by_dtype(job)
        theirs = worker(SCRIPT, {"who": "peer", **job})
        again = _by_dtype(job)
        seconds, double = (min(pair) for pair in zip(first, again, strict=True))
        row = {
            **job,
            "name": name(job),
            "ms": 1e3 * seconds,
            "peer_ms": None if theirs is None else 1e3 * theirs["seconds"],
            "ratio": None if theirs is None else theirs["seconds"] / seconds,
            "float64": double / seconds,
        }
        rows.append(row)
        print(line(row), flush=True)
    return rows


def _by_dtype(job: dict[str, Any]) -> tuple[float, float]:
    """Seconds of this package in float32 and in float64."""
    found = [worker(SCRIPT, {"who": "ours", **job, "dtype": d}) for d in ("float32", "float64")]
    single, double = (f["seconds"] for f in found if f is not None)
    return single, double


def line(row: dict[str, Any]) -> str:
    """A row of the table as text."""
    theirs = "    (no peer)" if row["peer_ms"] is None else f"{row['peer_ms']:10.3f} ms"
    ratio = "" if row["ratio"] is None else f"{row['ratio']:7.1f}× (at least {row['must']}×)"
    return (
        f"{row['name']:<42} {row['ms']:9.4f} ms  neural-tangents {theirs} {ratio:<22}"
        f" float64/float32 {row['float64']:.2f}"
    )


def growth() -> dict[str, list[dict[str, Any]]]:
    """How the time grows with depth, with the side of the images, and with their number."""
    image = {"net": "cntk", "pooling": "gap"}
    axes: dict[str, dict[int, dict[str, Any]]] = {
        "depth": {n: {**image, "depth": n, "side": 32} for n in (3, 6, 11, 21)},
        "side": {n: {**image, "depth": 4, "side": n} for n in (8, 16, 32)},
        "samples": {n: {"net": "mlp", "depth": 4, "n": n} for n in (500, 1000, 2000)},
    }
    return {
        axis: [_point(axis, size, job) for size, job in jobs.items()] for axis, jobs in axes.items()
    }


def _point(axis: str, size: int, job: dict[str, Any]) -> dict[str, Any]:
    point: dict[str, Any] = {axis: size}
    for who in ("ours", "peer"):
        found = worker(SCRIPT, {"who": who, **job})
        point[who] = None if found is None else 1e3 * found["seconds"]
    print(point, flush=True)
    return point


def memory() -> dict[str, Any]:
    """What one pair of 32×32 images takes above what the process had, in MB."""
    job = {"net": "cntk", "pooling": "gap", "depth": 11, "side": 32, "pairs": (1, 1)}
    mine = worker(SCRIPT, {"who": "ours", **job, "once": True})
    assert mine is not None
    return {"one 32×32 GAP pair, MB": mine["memory"] / 2**20}


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="only the table; nothing is written")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.job:
        job = json.loads(args.job)
        print(json.dumps((ours if job["who"] == "ours" else peer)(job)))
        return
    if version("neural-tangents") is None:
        print("neural-tangents is not installed here: pip install '.[peers]' to compare with it.")
    result: dict[str, Any] = {"environment": environment(), "rows": table(), "memory": memory()}
    print(result["memory"])
    if args.quick:
        return
    result["growth"] = growth()
    result["cifar10_depth_21_core_hours"] = core_hours(result)
    write_json(HERE / "analytic.json", result)
    from analytic_report import report  # draws: not in the processes that are measured

    report(result)


def core_hours(result: dict[str, Any]) -> dict[str, float | None]:
    """All pairs of CIFAR-10's 60,000 images with CNTK-GAP of depth 21, on this machine's cores."""
    pairs = 60_000 * 60_001 / 2
    point = next(p for p in result["growth"]["depth"] if p["depth"] == 21)
    cores = result["environment"]["threads"]
    return {
        who: None if point[who] is None else pairs * point[who] / 1e3 * cores / 3600
        for who in ("ours", "peer")
    }


if __name__ == "__main__":
    main()
