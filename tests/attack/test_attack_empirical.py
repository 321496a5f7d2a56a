"""A minute of random networks of fixed seeds.

`python -m tests.attack.empirical --minutes 30` goes on for any time.
"""

from __future__ import annotations

import pytest
from attack.empirical import Report, attack
from attack.empirical_grammar import TABLES, built

SEEDS = range(240)
GROUPS = 12


@pytest.mark.slow
@pytest.mark.parametrize("group", range(GROUPS))
def test_seeds(group: int) -> None:
    report = Report()
    for seed in SEEDS[group::GROUPS]:
        attack(seed, report)
    assert not report.failures, f"\n{report}"
    assert report.calls > 3 * report.models
    # Most calls have a value: a library that refuses everything would pass otherwise.
    assert sum(report.refusals.values()) < 0.1 * report.calls, f"\n{report}"


def test_the_grammar_is_what_it_says() -> None:
    """Every operation occurs, and a network is the same each time that it is built."""
    operations = {name for table in TABLES.values() for name in table}
    assert len(operations) >= 60
    words: set[str] = set()
    for seed in range(400):
        net, *_ = built(seed, plain=True)
        words.update(w.partition("[")[0] for w in net.words)
    assert operations <= words, operations - words
    one, other = (built(7, plain=p)[0] for p in (True, False))
    for p, q in zip(one.parameters(), other.parameters(), strict=True):
        assert p.equal(q)
