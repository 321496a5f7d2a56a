"""The page and the figure of `analytic.py`.

python benchmarks/analytic_report.py      # again, from benchmarks/analytic.json
"""

from __future__ import annotations

from typing import Any

from common import DOCS, HERE, read_json
from figures import growth_figure

AXES = {
    "depth": ("depth, CNTK-GAP, 32×32×3", "ms per pair"),
    "side": ("side of the image, CNTK-GAP, depth 4", "ms per pair"),
    "samples": ("samples, MLP of depth 4, d = 784", "ms, the matrix"),
}

# Processor seconds, not times: they were taken one after the other on a machine with other work.
ACCOUNT = """\
## Where the time of an MLP kernel goes

N = 2,000 samples of 784 features, depth 4, float32; processor time of one thread of an AMD EPYC
with AVX-512, the shortest of forty calls, while the machine had other work. Depths of 2, 4 and 8
(30, 34 and 42 ms) tell the activations from the products.

| part | work | processor time |
|---|---|---|
| products of the inputs, half of the matrix | 1.6·10⁹ multiplications and additions | 20.5 ms |
| (MKL, for comparison) | all of the matrix | 57 ms |
| three activations, with layers | 3 · 2·10⁶ entries of two square roots | 4.4 ms |
| lower halves of K and Θ | 16 MB read along columns, 16 MB written | 7.0 ms |
| inputs in tiles, variances, terms, Python | 12 MB read and written, 4,400 calls | 2 ms |

That is 34 ms if the 32 MB of the result lie in memory that the process already had. Where the
operating system has to clear new pages (the first call, or after large tensors were freed), it
takes up to 65 ms more, as for any other tensor of this size.

Products by libraries, half of the matrix in blocks of 128 rows, are no faster: while the machine
was busier, 38 ms by MKL and 31 ms by oneDNN, where the whole call with these loops took 64 ms and
without its products 27 ms. The lower halves cannot take less than 5 ms: 48 MB go through memory.

## Where the time of a convolutional kernel goes

By the same clock, on the same machine with other work, in turns with the code before: CNTK-GAP
takes 1.6 ns per entry and layer in float32 at depth 4, and 1.9 to 2.0 times as long in float64;
CNTK-V takes 2.1 ns for 96 images with 96 others. A layer of CNTK-GAP is about 80 instructions on
registers of 512 bits for 16 entries, 53 of them in the formula of ReLU, and a processor that
executes such a register in two halves needs 70 cycles for them: loops are limited by arithmetic.
The formula has one square root; with the three that it had, and margins cleared one by one, a layer
took a tenth longer. A layer of CNTK-V is 100 instructions, because distances are kept, and a fifth
of its time prepares variances and their roots in every image. The order of pairs, which decides
from which cache these come, does not matter.

## Average pooling inside of a network

20 images of 32×32 in seconds of the processor, one thread, before and after the averages of a
network went through fused loops, one after the other on a machine with other work. *Two pools,
dense head* is like LeNet: two convolutions of 5×5, each with ReLU and 2×2 average pooling, and
three dense layers. Without global average pooling only displacements up to 3 before the first pool
and up to 1 before the second are computed, of 27 and 9.

| network | float32, before | now | float64, before | now |
|---|---|---|---|---|
| two pools, dense head | 2.26 | 0.072 | 3.34 | 0.095 |
| two pools, a third convolution, global average | 3.39 | 1.04 | 5.41 | 1.67 |
| one pool, a convolution, flatten | 4.15 | 0.034 | 5.43 | 0.047 |
| two convolutions, global average, dense head | 0.90 | 0.83 | 1.77 | 1.57 |

Dense layers and activations behind an average are evaluated by tensor operations, a thousandth of
the time of the last network and a hundredth of that of the first. Not in loops are also averages
with more than eight windows around a position along one axis, transposed convolutions, and
reflected or replicated borders where covariances between different positions are needed.
`analytic_explain` names them.

Each entry is added once for every pair of windows that its two positions are in, along either axis.
Two images of 32×32 in float32, a convolution, ReLU, average pooling, a convolution and ReLU, in
seconds of the processor, one thread of an Intel Xeon with AVX-512 that had other work, first with
products of matrices and then with the loop's sums:

| average, windows around a position | global average: products | loop | flatten: products | loop |
|---|---|---|---|---|
| 3×3, step 1: three | 0.41 | 0.19 | 0.27 | 0.016 |
| 5×5, step 1: five | 0.37 | 0.27 | 0.25 | 0.017 |
| 7×7, step 1: seven | 0.30 | 0.36 | 0.24 | 0.023 |
| 7×7, step 2: four | 0.23 | 0.082 | 0.22 | 0.020 |
| 9×9, step 2: five | 0.25 | 0.094 | 0.24 | 0.023 |

## Activations without a closed form

Two convolutions with activations and global average pooling, two images of 32×32 with two others,
by the same clock, per entry and layer. Tensor operations took 3,100 ns for Tanh in float64 (16×16,
three with three), most of them for coefficients, one set for each variance.

| activation | float32 | float64 |
|---|---|---|
| ReLU | 2.1 ns | 3.0 ns |
| GELU | 2.2 ns | 3.3 ns |
| SiLU | 17 ns | 88 ns |
| Tanh | 38 ns | 124 ns |
| ReLU6 (512 coefficients) | 152 ns | 303 ns |
""".splitlines()


def report(result: dict[str, Any]) -> None:
    """Write the page and its figure."""
    figure = growth_figure(result["growth"], AXES, "neural-tangents")
    figure.savefig(DOCS / "images" / "benchmark-analytic.png", dpi=150)
    (DOCS / "benchmarks" / "analytic.md").write_text(page(result), encoding="utf-8")


def page(result: dict[str, Any]) -> str:
    """The tables as Markdown."""
    env = result["environment"]
    lines = [
        "# Infinite-width kernels: speed",
        "",
        f"`python benchmarks/analytic.py` on {env['cpu']}, {env['threads']} threads, float32, best",
        f"of several; torch {env['torch']}, neural-tangents {env['neural_tangents']} with jax",
        f"{env['jax']}, commit {env['commit']}. Both with their defaults, and the time to compile",
        "does not count; each figure comes from a process of its own.",
        "",
        "| kernel | torch_ntk | neural-tangents | ratio | float64 / float32 |",
        "|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        theirs = "–" if row["peer_ms"] is None else f"{row['peer_ms']:.3g} ms"
        ratio = "–" if row["ratio"] is None else f"{row['ratio']:.1f}×"
        lines.append(
            f"| {row['name']} | {row['ms']:.3g} ms | {theirs} | {ratio} | {row['float64']:.2f} |"
        )
    hours = result["cifar10_depth_21_core_hours"]
    peak = result["memory"]["one 32×32 GAP pair, MB"]
    lines += [
        "",
        f"One 32×32 pair with global average pooling takes {peak:.0f} MB above what the process",
        "has.",
        "",
        "![Growth with depth, image side and samples](../images/benchmark-analytic.png)",
        "",
        "All pairs of the 60,000 images of CIFAR-10 with CNTK-GAP of depth 21, extrapolated from",
        "the time of a pair:",
        f"{hours['ours']:,.0f} core hours"
        + ("" if hours["peer"] is None else f", against {hours['peer']:,.0f} with neural-tangents")
        + ". The lecture's table of challenges",
        "puts CNNs with pooling on CIFAR-10 at O(1000) GPU hours. On a V100, neural-tangents is",
        "reported to take 2.70 ms a pair in float32 (Novak et al., Neural Tangents, 2020), which",
        "is 1,350 GPU hours for the 1.8·10⁹ pairs.",
        "",
        *ACCOUNT,
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    report(read_json(HERE / "analytic.json"))
