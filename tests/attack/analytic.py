"""Random networks of infinite width against a slow recursion.

    python -m tests.attack.analytic --minutes 30      # from the root of the repository
    python -m tests.attack.analytic --seed 12         # one network again, described

Each network (`analytic_grammar.py`) is evaluated in the ways that the engine has: of one set and of
two, in fused loops of either precision, with derivatives wanted (no fused loops), within little
memory, and in blocks of random size, on which no digit may depend. All are compared with
`analytic_oracle.py`.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import math
import random
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from attack.analytic_grammar import Features, Grammar, Spec, build
from attack.analytic_oracle import oracle

from torch_ntk import analytic_explain, analytic_kernels
from torch_ntk.analytic.engine import _blocks

# What rounding may do: an angle of a correlation that is 1 up to rounding is known to 1e-8.
TOLERANCE = 3e-7
# The same in float32, of an angle that is known to 1e-3, through several layers.
SINGLE = 1e-2


@dataclass
class Attack:
    """One network with its inputs.

    Attributes:
        specs: The network.
        x1: The first images.
        x2: The second.
        work: Of a block in fused loops.
        single: Whether float32 is tried as well; it has loops of its own to be compiled.
    """

    specs: list[Spec]
    x1: Tensor
    x2: Tensor
    work: int
    single: bool


def draw(seed: int) -> Attack:
    """The attack of a seed."""
    rng = random.Random(seed)
    axes = rng.choice((0, 1, 2, 2, 2))
    large = axes == 2 and rng.random() < 0.25
    shape = tuple(rng.randint(2, 7 if large else 4) for _ in range(axes))
    if axes == 1:
        shape = (rng.randint(2, 9),)
    channels = rng.choice((1, 2, 3, 20))
    specs = Grammar(rng, numeric=math.prod(shape) <= 12 and rng.random() < 0.2).network(
        Features(channels, shape)
    )
    generator = torch.Generator().manual_seed(seed)
    x1, x2 = (
        torch.randn(n, channels, *shape, generator=generator, dtype=torch.float64) for n in (3, 2)
    )
    if rng.random() < 0.3:
        x2[0] = x1[1]
    if rng.random() < 0.15:
        x1[0] = 0
    return Attack(specs, x1, x2, 1 << rng.randint(6, 14), rng.random() < 0.2)


@contextlib.contextmanager
def blocks_of(work: int) -> Iterator[None]:
    """Within it, blocks of pairs in fused loops are as large as `work` says."""
    before = _blocks._MOST_WORK
    _blocks._MOST_WORK = work
    try:
        yield
    finally:
        _blocks._MOST_WORK = before


def ways(net: nn.Module, a: Attack) -> Iterator[tuple[str, tuple[Tensor, Tensor], bool]]:
    """What it is called, K and Θ, and whether of two sets, for every way through the engine."""
    for two in (True, False):
        other = a.x2 if two else None
        yield "fused", analytic_kernels(net, a.x1, other), two
        if a.single:
            yield "float32", analytic_kernels(net, a.x1, other, dtype=torch.float32), two
        wanting = a.x1.clone().requires_grad_()
        yield "differentiable", analytic_kernels(net, wanting, other), two
        yield "little memory", analytic_kernels(net, a.x1, other, max_memory=1), two
        with blocks_of(a.work):
            yield "fused in blocks", analytic_kernels(net, a.x1, other), two


def attack(seed: int) -> str:
    """`"right"`, `"refused: …"` or what is wrong with the network of a seed."""
    a = draw(seed)
    net = build(a.specs, a.x1.ndim - 2)
    x = torch.cat([a.x1, a.x2])
    try:
        found = list(ways(net, a))
    except ValueError as error:
        if "`model` must be a network with an infinite-width limit" in str(error):
            return f"refused: {error}"
        raise
    k, t = oracle(a.specs, x.numpy(), tuple(a.x1.shape[2:]))
    n = len(a.x1)
    for way, kernels, two in found:
        columns = slice(n, None) if two else slice(0, n)
        for name, mine, wanted in zip(("NNGP", "NTK"), kernels, (k, t), strict=True):
            right = wanted[:n, columns]
            scale = np.abs(wanted).max() + 1e-300
            off = np.abs(mine.detach().numpy() - right).max() / scale
            if not off <= (SINGLE if way == "float32" else TOLERANCE):
                return f"{name}, {way}, {'two sets' if two else 'one set'}: off by {off:.2g}"
    steps = analytic_explain(net, a.x1, a.x2).steps
    # The series of activations without a formula are tensor operations, whose last digit may.
    series = any(s.loop is None and s.operation == "Activation" for s in steps)
    return "right" if series else _alike(found)


def _alike(found: list[tuple[str, tuple[Tensor, Tensor], bool]]) -> str:
    """Fused loops give the numbers of tensor operations, and no digit depends on the blocks."""
    by_way = {(way, two): kernels for way, kernels, two in found}
    for two in (True, False):
        for name, *kernels in zip(
            ("NNGP", "NTK"),
            *(by_way[way, two] for way in ("fused", "fused in blocks")),
            strict=True,
        ):
            if not torch.equal(*kernels):
                return f"{name} depends on the blocks"
            if not two and not torch.equal(kernels[0], kernels[0].T):
                return f"{name} is not symmetric"
    return "right"


def run(seeds: Iterator[int], seconds: float) -> tuple[Counter[str], dict[int, str]]:
    """Counts of outcomes, and what is wrong by seed."""
    counts: Counter[str] = Counter()
    wrong: dict[int, str] = {}
    end = time.monotonic() + seconds
    for seed in seeds:
        if time.monotonic() > end:
            break
        try:
            outcome = attack(seed)
        except Exception:  # whatever it is, it is what the attack looks for
            outcome = traceback.format_exc(limit=-4)
        kind = outcome.split(":")[0] if outcome.startswith(("right", "refused")) else "wrong"
        counts[kind] += 1
        if kind == "wrong":
            wrong[seed] = outcome
    return counts, wrong


def main(arguments: list[str]) -> int:
    """Attack for some time, or describe one network."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--first", type=int, default=None, help="the first seed")
    parser.add_argument("--seed", type=int, default=None, help="this network only")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if given.seed is not None:
        a = draw(given.seed)
        print(a.x1.shape, a.x2.shape, "blocks of", a.work, "entries")
        print(*a.specs, sep="\n")
        print(attack(given.seed))
        return 0
    first = random.SystemRandom().randrange(10**9) if given.first is None else given.first
    counts, wrong = run(itertools.count(first), 60 * given.minutes)
    print(f"seeds from {first}:", dict(counts))
    for seed, outcome in wrong.items():
        print(f"\n--seed {seed}\n{outcome}")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
