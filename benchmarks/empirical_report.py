"""The page and the figure of `empirical.py`.

python benchmarks/empirical_report.py      # again, from benchmarks/empirical.json
"""

from __future__ import annotations

from typing import Any

from common import DOCS, HERE, read_json
from empirical_account import STAGES
from empirical_ways import WHO
from figures import growth_figure

ON_GPU = HERE / "empirical_gpu.json"
AXES = {
    "n": ("samples, O = 10, width 1024", "ms, full kernel of the MLP"),
    "outputs": ("outputs, N = 64, width 1024", ""),
    "width": ("width, N = 64, O = 10", ""),
}
TIMES = (10, 20, 50, 100, 200, 500)


def report(result: dict[str, Any]) -> None:
    """Write the page and its figure."""
    figure = growth_figure(result["growth"], AXES, WHO["peer"], TIMES)
    figure.savefig(DOCS / "images" / "benchmark-empirical.png", dpi=150)
    (DOCS / "benchmarks" / "empirical.md").write_text(page(result), encoding="utf-8")


def page(result: dict[str, Any]) -> str:
    """The tables as Markdown."""
    env = result["environment"]
    lines = [
        "# Finite-width kernels: speed and memory",
        "",
        f"`python benchmarks/empirical.py` on {env['cpu']}, {env['threads']} threads, float32,",
        f"best of several; torch {env['torch']}, neural-tangents {env['neural_tangents']} with jax",
        f"{env['jax']}, commit {env['commit']}. Each figure comes from a process of its own; the",
        "time to compile does not count, nor the first call. Times of this package are those of",
        "repeated calls, which execute recorded operations, and with the comparison with a plain",
        "pass. Memory is the peak of a process above that before the kernel. For neural-tangents",
        "both are those of the better one of structured derivatives and Jacobian contraction.",
        "A dash means that it does not fit in memory, is not installed, or lacks this output.",
        "× is how many times as long as this package another one takes; ≥ marks the goal.",
        "",
        "| kernel | " + " | ".join(WHO.values()) + " |",
        "|---" * (len(WHO) + 1) + "|",
    ]
    for row in result["rows"]:
        cells = [_cell(row, who) for who in WHO]
        lines.append(f"| {_title(row)} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "![Growth with samples, outputs and width](../images/benchmark-empirical.png)",
        "",
        "## Where our time goes",
        "",
        "Operations are those that are executed, a multiplication and an addition being two; times",
        "are those inside of the operations of a stage, in the fastest of ten watched runs. The",
        "rest is what the fastest of ten others takes beyond that: Python, memory that is freed,",
        "noise.",
        "All come from a process of their own and do not add up to the times above.",
        "The floor is what all operations together would take at the speed of the fastest product",
        "of two matrices of 2048² that the same process could make. The CNN of 32 channels, whose",
        "goal beside the Jacobians of torch.func is the farthest, stays far from the floor: a",
        "convolution with so few channels does little for each number of a cotangent, so that what",
        "only reads and writes them (the derivative of the ReLU, the batch that torch makes of an",
        "input whose values no derivative needs) takes more than half as long, by torch.profiler,",
        "as the convolutions themselves.",
        "",
        "| kernel | " + " | ".join(STAGES.values()) + " | all | floor |",
        "|---" * (len(STAGES) + 3) + "|",
    ]
    for row in result["rows"]:
        lines.append(f"| {_title(row)} | " + " | ".join(_account(row)) + " |")
    if ON_GPU.exists():
        lines += _on_gpu(read_json(ON_GPU))
    return "\n".join([*lines, ""])


def _on_gpu(result: dict[str, Any]) -> list[str]:
    """The section on kernels on a GPU."""
    env = result["environment"]
    who = [w for w in WHO if w not in ("peer", "nngeometry")]
    lines = [
        "",
        "## On a GPU",
        "",
        f"`python benchmarks/empirical.py --device cuda` on {env['gpu']}, torch {env['torch']},",
        f"float32 without TF32, commit {env['commit']}; all in one process, memory as torch",
        "allocates it. A call of this package takes 7 to 9 ms of Python before and between the",
        "launches: where a kernel is small, contracting Jacobians in one transformation of",
        "torch.func is done sooner; where it is not, that takes up to a hundred times as long and",
        "up to hundreds of times the memory. The floor is what all operations would take at the",
        "speed of a product of two matrices of 8192².",
        "",
        "| kernel | " + " | ".join(WHO[w] for w in who) + " | operations | floor |",
        "|---" * (len(who) + 3) + "|",
    ]
    for row in result["rows"]:
        account = row["account"]
        floor = _time(account["gflop"] / account["gemm"])
        operations = (
            f"{account['gflop']:.3g}" if account["gflop"] < 1e3 else f"{account['gflop']:.0f}"
        )
        cells = [*(_cell(row, w) for w in who), f"{operations} GFLOP", floor]
        lines.append(f"| {_title(row)} | " + " | ".join(cells) + " |")
    return lines


def _title(row: dict[str, Any]) -> str:
    return f"{row['name']}, N={row['n']}, {row['output']}"


def _account(row: dict[str, Any]) -> list[str]:
    found = row["account"]
    cells = []
    for stage in STAGES:
        each = found["stages"].get(stage)
        if each is None:
            cells.append("–")
            continue
        counted = each["gflop"] > 0.02
        speed = f" at {1e3 * each['gflop'] / each['ms']:.0f} GFLOP/s" if counted else ""
        cells.append(f"{_time(each['ms'] / 1e3)}{speed}")
    cells.append(f"{found['gflop']:.3g} GFLOP in {_time(found['ms'] / 1e3)}")
    cells.append(f"{_time(found['gflop'] / found['gemm'])} at {found['gemm']:.0f} GFLOP/s")
    return cells


def _cell(row: dict[str, Any], who: str) -> str:
    found = row["found"].get(who)
    if found is None:
        return "–"
    ratio = "" if who == "ours" else f", {_ratio(row['ratios'][who])}×"
    if who in row.get("must", {}):
        ratio += f" (≥ {row['must'][who]}×)"
    return f"{_time(found['seconds'])}{ratio}, {found['memory'] / 2**20:.0f} MB"


def _ratio(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _time(seconds: float) -> str:
    """Three digits, and no power of ten."""
    if seconds >= 1:
        return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.1f} s"
    return f"{1e3 * seconds:.0f} ms" if seconds >= 0.1 else f"{1e3 * seconds:.1f} ms"


if __name__ == "__main__":
    report(read_json(HERE / "empirical.json"))
