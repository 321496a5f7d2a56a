"""Random networks of infinite width, with fixed seeds; any number of them by hand.

`python -m tests.attack.analytic --minutes 30`, from the root of the repository.
"""

from __future__ import annotations

import math

import pytest
import torch
from attack import analytic
from attack.analytic_grammar import MODULES
from torch import nn

from torch_ntk import NTKLinear

NETWORKS = 40  # which take more than a minute where no loop has been compiled yet


@pytest.mark.slow
def test_random_networks() -> None:
    """Always the same ones, so that a failure can be repeated by its seed."""
    counts, wrong = analytic.run(iter(range(NETWORKS)), math.inf)
    assert not wrong, wrong
    # What the grammar draws has a limit; if much of it is refused, little is compared.
    assert counts["right"] >= 0.9 * NETWORKS


def test_values_of_other_margins_have_memory_of_their_own() -> None:
    """A network that the attack found: a filter read what another value had left above its rows."""
    assert analytic.attack(8200152) == "right"


def test_the_attack_finds_a_wrong_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """A factor of 1 % in one layer does not pass."""
    seed = next(s for s in range(100) if any(spec[0] == "dense" for spec in analytic.draw(s).specs))
    assert analytic.attack(seed) == "right"
    built = analytic.build

    def altered(specs: list[tuple[object, ...]], axes: int) -> nn.Module:
        net = built(specs, axes)
        layer = next(m for m in net.modules() if isinstance(m, NTKLinear))
        layer.sigma_w *= 1.01
        return net

    monkeypatch.setattr(analytic, "build", altered)
    assert "off by" in analytic.attack(seed)


def test_the_grammar_draws_every_production() -> None:
    """Else a change of the grammar could leave something out without a word."""
    seen: set[str] = set()
    stack = [spec for seed in range(150) for spec in analytic.draw(seed).specs]
    while stack:
        kind, *rest = stack.pop()
        seen.add(kind)
        if kind == "plus":
            stack += rest[0]
        elif kind == "cat":
            stack += [spec for branch in rest[0] for spec in branch]
        elif kind == "conv":
            seen |= {rest[0]["mode"], f"groups {rest[0]['groups']}", f"same {rest[0]['same']}"}
        elif kind == "activation":
            seen.add(rest[0])
    assert seen >= {
        *("dense", "conv", "activation", "scale", "flatten", "adaptive", "pool", "norm", "plus"),
        *("cat", "zeros", "circular", "reflect", "replicate", "groups 2", "same True"),
        *MODULES,
    }
    assert torch.equal(analytic.draw(7).x1, analytic.draw(7).x1)
