"""`python -m tests.attack --minutes 30 [--seed S]`, or `--only S` for one network."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from attack import empirical
from attack.empirical_calls import HOOKED, OPTIONS, Report, attack, run


def main() -> int:
    """Print the failures as they come, then the counts; 1 if there were any."""
    parser = argparse.ArgumentParser(prog="python -m tests.attack", description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0, help="of the first network")
    parser.add_argument("--only", type=int, help="the seed of a single network")
    parser.add_argument(
        "--without", default="", help="operations to leave out, separated by commas"
    )
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.without:
        OPTIONS.append(f"--without '{given.without}'")
    for name in filter(None, given.without.split(",")):
        for table in (*empirical.TABLES.values(), empirical.EMBEDDINGS, HOOKED):
            table.pop(name, None)
        if name in empirical.DERIVED:
            empirical.DERIVED.remove(name)
    if given.only is not None:
        report = Report()
        print(empirical.built(given.only, plain=False)[0])
        attack(given.only, report)
    else:
        report = run(given.seed, given.minutes, lambda text: print(text, flush=True))
    print(report)
    return 1 if report.failures else 0


if __name__ == "__main__":
    sys.exit(main())
