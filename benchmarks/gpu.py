"""Check and time kernels on one GPU, in at most eight minutes.

    python benchmarks/gpu.py [--output FILE] [--minutes 8] [--dry-run]

Infinite width: CNTKs for pairs of 32×32 images, with averages in between, a series of an
activation, and circular padding too (by Triton kernels; otherwise the row says "by tensor
operations"), and an MLP, checked against the fused loops of the CPU in float64.
Finite width: an MLP, a convolutional network and ResNet-18, with the check of every call and
without it, beside torch.func's Jacobians, which check them too. Repeated calls replay a CUDA graph;
whether they give what the first one gave is in the row. All in full float32: TF32 is switched off
for both. Every call is timed until the GPU is done.

Prints a table and writes JSON after each row, so that what is there stays if the machine goes. A
row that fails says why and does not end the others; no row begins after the given minutes.
`--dry-run` does all of it on the CPU with tiny sizes, where the times mean nothing.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import HERE, best, environment, write_json
from empirical_nets import NAMES, net
from empirical_ways import tutorial
from torch import Tensor, nn

# Milliseconds that are aimed at on an H100 or H200, and the largest error in the type's rounding.
INFINITE: list[dict[str, Any]] = [
    {"net": "gap", "depth": 21, "side": 32, "pairs": 1, "goal": 0.1},
    {"net": "gap", "depth": 21, "side": 32, "pairs": 16, "goal": 0.1},
    {"net": "flatten", "depth": 21, "side": 32, "pairs": 4096, "goal": None},
    {"net": "pooled", "depth": 6, "side": 32, "pairs": 16, "goal": None},
    {"net": "gap", "depth": 3, "side": 32, "pairs": 16, "activation": "tanh", "goal": None},
    {"net": "gap", "depth": 21, "side": 32, "pairs": 16, "padding": "circular", "goal": None},
    {"net": "mlp", "depth": 4, "n": 2000, "goal": None},
]
FINITE: list[dict[str, Any]] = [
    {"net": "mlp", "n": 64, "goal": 1.0},
    {"net": "gap", "n": 32, "goal": 3.0},
    {"net": "resnet", "n": 8, "goal": 12.0},
]
DRY: dict[str, dict[str, Any]] = {
    "infinite": {"depth": 3, "side": 6, "n": 20},
    "finite": {"n": 2, "width": 16, "outputs": 3},
}
LARGEST_ERROR = 1e-4
PAIRS_OF_CIFAR10 = 60_000 * 60_001 / 2


def waited(run: Callable[[], Any], device: str) -> Callable[[], Any]:
    """The same until the GPU is done."""

    def call() -> Any:
        result = run()
        if device != "cpu":
            torch.cuda.synchronize()
        return result

    return call


def milliseconds(run: Callable[[], Any], device: str) -> float:
    """The shortest of several runs."""
    return 1e3 * best(waited(run, device), repeats=50, most=5.0)


def error(found: Tensor, wanted: Tensor) -> float:
    """The largest difference as a share of the largest entry."""
    found, wanted = found.detach().double().cpu(), wanted.detach().double().cpu()
    return float((found - wanted).abs().max() / wanted.abs().max())


def convolutional(job: dict[str, Any], dtype: torch.dtype) -> tuple[Callable[..., Any], ...]:
    """The kernel of two batches of images, and how it is evaluated."""
    from torch_ntk import CNTK, NTKConv2d, NTKLinear, analytic_explain, analytic_ntk

    if job["net"] != "pooled":
        options = {k: job[k] for k in ("activation", "padding") if k in job}
        cntk = CNTK(job["depth"], pooling=job["net"], dtype=dtype, **options)
        return cntk, cntk.explain
    layers: list[nn.Module] = []
    for n in range(job["depth"]):  # an average after every second convolution
        layers += [NTKConv2d(3, 3, 3, padding=1, sigma_w=2**0.5), nn.ReLU()]
        layers += [nn.AvgPool2d(2)] if n % 2 else []
    net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), NTKLinear(3, 1))
    return (
        lambda a, b: analytic_ntk(net, a, b, dtype=dtype),
        lambda a, b: analytic_explain(net, a, b, dtype=dtype),
    )


def infinite(job: dict[str, Any], device: str) -> dict[str, Any]:
    """One infinite-width kernel on a device: milliseconds a pair, or of the matrix."""
    from torch_ntk import mlp_kernels

    generator = torch.Generator().manual_seed(0)
    if job["net"] == "mlp":
        x = torch.randn(job["n"], 784, generator=generator)

        def kernel(x: Tensor, dtype: torch.dtype) -> Tensor:
            return mlp_kernels(x, depth=job["depth"], sigma_b=0.1, dtype=dtype).ntk

        there = x.to(device)
        wanted = kernel(x, torch.float64)
        found = kernel(there, torch.float32)
        taken = milliseconds(lambda: kernel(there, torch.float32), device)
        return {"ms": taken, "error": error(found, wanted)}
    n = round(job["pairs"] ** 0.5)
    x1, x2 = torch.randn(2, n, 3, job["side"], job["side"], generator=generator)
    # One row is checked: the CPU takes longer for all of them than is there.
    wanted = convolutional(job, torch.float64)[0](x1[:1].double(), x2.double())
    on_device, explain = convolutional(job, torch.float32)
    a, b = x1.to(device), x2.to(device)
    start = time.perf_counter()
    found = waited(lambda: on_device(a, b), device)()
    first = 1e3 * (time.perf_counter() - start)
    taken = milliseconds(lambda: on_device(a, b), device) / n**2
    result = {"ms": taken, "first_ms": first, "error": error(found[:1], wanted)}
    images = [step for step in explain(a, b).steps if step.positions != (1, 1)]
    result["kernel"] = all(step.loop for step in images)
    if job["net"] == "gap" and job["side"] == 32 and job["depth"] == 21:
        result["cifar10_gpu_hours"] = PAIRS_OF_CIFAR10 * taken / 1e3 / 3600
    return result


def finite(job: dict[str, Any], device: str) -> dict[str, Any]:
    """One empirical kernel, with and without its check, beside torch.func's Jacobians."""
    from torch_ntk import empirical_ntk

    job = {**job, "output": "full", "device": device}
    model, x = net(job)

    def ours(check: bool) -> Tensor:
        return empirical_ntk(model, x, output="full", check=check)

    start = time.perf_counter()
    found = waited(lambda: ours(True), device)()
    first = 1e3 * (time.perf_counter() - start)
    result: dict[str, Any] = {
        "ms": milliseconds(lambda: ours(False), device),
        "checked_ms": milliseconds(lambda: ours(True), device),
        "first_ms": first,
    }
    theirs = tutorial(job)
    result["as_first"] = torch.equal(found, ours(True))  # by then by recorded operations
    if theirs is not None:
        result["error"] = error(found, theirs())
        result["torch_func_ms"] = milliseconds(theirs, device)
    return result


def name(job: dict[str, Any], kind: str) -> str:
    """A job in words."""
    if kind == "finite":
        return f"{NAMES[job['net']]}, N={job['n']}, full"
    if job["net"] == "mlp":
        return f"MLP depth {job['depth']}, N={job['n']}, the matrix"
    kinds = {"gap": "CNTK-GAP", "flatten": "CNTK-V", "pooled": "pools"}
    with_ = "".join(f", {job[k]}" for k in ("activation", "padding") if k in job)
    return f"{kinds[job['net']]} depth {job['depth']}{with_}, {job['pairs']} pair(s), a pair"


def jobs(dry: bool) -> list[tuple[str, dict[str, Any]]]:
    """What is measured, by kind; a dry run has a few tiny ones."""
    both = [("finite", j) for j in FINITE] + [("infinite", j) for j in INFINITE]
    if not dry:
        return both
    small = []
    for kind, job in both:
        if job["net"] == "resnet":
            continue  # it has no small form
        job = {**job, **{k: v for k, v in DRY[kind].items() if kind == "finite" or k in job}}
        if "pairs" in job:
            job["pairs"] = min(4, job["pairs"])
        small.append((kind, job))
    return small


def measured(kind: str, job: dict[str, Any], device: str) -> dict[str, Any]:
    """A row; if something fails, what it was."""
    row = {"kind": kind, "name": name(job, kind), **job}
    try:
        row |= (finite if kind == "finite" else infinite)(job, device)
    except Exception as problem:
        row["failed"] = f"{type(problem).__name__}: {problem}"
    if device != "cpu":
        torch.cuda.empty_cache()
    return row


def line(row: dict[str, Any]) -> str:
    """A row as text."""
    if "failed" in row:
        return f"{row['name']:<47} failed: {row['failed']}"
    parts = [f"{row['name']:<47} {row['ms']:10.4f} ms"]
    if row["goal"] is not None:
        parts.append(f"(goal {row['goal']} ms: {'yes' if row['ms'] <= row['goal'] else 'no'})")
    if not row.get("kernel", True):
        parts.append("by tensor operations")
    if "checked_ms" in row:
        parts.append(f"with the check {row['checked_ms']:.3f} ms")
    if "torch_func_ms" in row:
        parts.append(f"torch.func {row['torch_func_ms']:.3f} ms")
    if "cifar10_gpu_hours" in row:
        parts.append(f"CIFAR-10 {row['cifar10_gpu_hours']:,.0f} GPU-hours")
    if "error" in row:
        right = row["error"] <= LARGEST_ERROR
        parts.append(f"error {row['error']:.1e} {'right' if right else 'WRONG'}")
    return "  ".join(parts)


def main() -> int:
    """Measure, print and write; 1 if a row failed or is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=None, help="JSON; by default gpu.json here")
    parser.add_argument("--minutes", type=float, default=8.0, help="no row begins after these")
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes on the CPU")
    args = parser.parse_args()
    device = "cpu" if args.dry_run else "cuda"
    if not args.dry_run and not torch.cuda.is_available():
        parser.error("there is no GPU that torch can use; --dry-run needs none")
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    begin = time.perf_counter()
    rows: list[dict[str, Any]] = []
    result = {"environment": environment(), "dry_run": args.dry_run, "rows": rows}
    path = args.output
    if path is None and not args.dry_run:
        path = HERE / "gpu.json"
    for kind, job in jobs(args.dry_run):
        if time.perf_counter() - begin > 60 * args.minutes:
            print(f"{name(job, kind):<47} left out: {args.minutes} minutes are over")
            continue
        rows.append(measured(kind, job, device))
        print(line(rows[-1]), flush=True)
        if path is not None:
            write_json(path, result)
    wrong = [r for r in rows if "failed" in r or r.get("error", 0.0) > LARGEST_ERROR]
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
