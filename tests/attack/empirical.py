"""Calls of the library on random networks, each compared with a loop over a plain twin.

    python -m tests.attack.empirical --minutes 30      # from the root of the repository
    python -m tests.attack.empirical --only 12         # one network again

Networks are drawn from the tables of `empirical_grammar.py`. The loop is in `empirical_oracle.py`.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import re
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from attack.empirical_builder import DERIVED
from attack.empirical_grammar import EMBEDDINGS, TABLES, VOCABULARY, built
from attack.empirical_oracle import Jacobians, joined, loop
from oracles import contract_full, reduced
from torch import Tensor, nn
from traces import snapshot

from torch_ntk import (
    NTKOperator,
    empirical_nngp,
    empirical_ntk,
    linearize,
    ntk_features,
    verify,
)
from torch_ntk.features._dense import DenseProjection
from torch_ntk.features._projection import ProjectionSettings
from torch_ntk.features._sjlt import SparseProjection

CALLS_PER_MODEL = 5
OUTPUTS = ("full", "trace", "mean", "diagonal", "pseudo")
METHODS = ("auto", "auto", "structured", "jacobian", "vector_product")
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-2}
HOOKED = {"hooks": 0.12}
"""How often networks have hooks; empty if they are left out."""
OPTIONS: list[str] = []
"""What a command line needs besides the seed to draw the same network."""
CONTEXTS: dict[str, Callable[[], Any]] = {
    "": contextlib.nullcontext,
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
}


@dataclass
class Failure:
    """One call that was wrong: what reproduces it, what was called, and what came."""

    seed: int
    call: str
    what: str
    words: list[str]

    def __str__(self) -> str:
        head = " ".join(["python -m tests.attack.empirical", f"--only {self.seed}", *OPTIONS])
        return f"{head}  # {self.call}: {self.what}\n    {' → '.join(self.words)}"


@dataclass
class Report:
    """Counts of a run."""

    models: int = 0
    calls: int = 0
    refusals: Counter[str] = field(default_factory=Counter)
    first: dict[str, int] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    seen: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)

    def refused(self, text: str, seed: int) -> None:
        """Count a refusal by its text without names and numbers, so that needless ones show."""
        short = re.sub(r"'[^']*'|\(.*?\)|-?\d[\d.e+-]*", "…", text.splitlines()[0])[:260]
        self.refusals[short] += 1
        self.first.setdefault(short, seed)

    def __str__(self) -> str:
        lines = [f"{self.models} models, {self.calls} calls, {len(self.failures)} failures"]
        lines += [
            f"{n:6} refused (--only {self.first[text]}): {text}"
            for text, n in self.refusals.most_common()
        ]
        rates = {w: (self.failed[w] / n, n) for w, n in self.seen.items() if self.failed[w]}
        worst = sorted(rates.items(), key=lambda item: -item[1][0])[:15]
        lines += [f"  {100 * r:4.0f} % of {n:4} models with {w}" for w, (r, n) in worst]
        shortest = sorted(self.failures, key=lambda f: len(f.words))
        return "\n".join([*lines, *map(str, shortest)])


class Attack:
    """A network, its twin for the loop, and random calls."""

    def __init__(self, seed: int, report: Report, dtype: torch.dtype | None = None) -> None:
        self.seed, self.report, self.draw = seed, report, random.Random(seed + 10**6)
        self.net, self.takes, self.couples = built(seed, plain=False)
        self.twin, *_ = built(seed, plain=True)
        self.dtype = dtype or (torch.float32 if self.draw.random() < 0.15 else torch.float64)
        self.net.to(self.dtype)
        self.statistics: dict[str, Tensor] = {}
        self.words = list(self.net.words)
        if self.draw.random() < HOOKED.get("hooks", 0.0):
            self._hook()
        if self.draw.random() < 0.3:
            self.net.eval()
        if self.draw.random() < 0.3:  # as in the middle of training
            for p in self.net.parameters():
                p.grad = torch.ones_like(p)

    def _hook(self) -> None:
        """Keeps statistics of what comes by while gradients are enabled."""

        def collect(module: nn.Module, args: Any, out: Any) -> None:
            if torch.is_grad_enabled() and isinstance(out, Tensor):
                key = str(len(self.statistics) % 3)
                moment = out.detach().flatten().square().sum()
                self.statistics[key] = self.statistics.get(key, 0) + moment

        for module in self.net.children():
            module.register_forward_hook(collect)
        self.words.append("hooks")

    def samples(self, n: int) -> Tensor:
        g = torch.Generator().manual_seed(self.draw.randrange(10**9))
        if self.takes[0] < 0:
            x = torch.randint(VOCABULARY, (n, -self.takes[0]), generator=g)
            if self.draw.random() < 0.3:  # a row several times, the padding among them
                x[:, 1:] = x[:, :1] if self.draw.random() < 0.5 else 0
        else:
            x = torch.randn(n, *self.takes, generator=g, dtype=torch.float64).to(self.dtype)
        kind = self.draw.random()
        if kind < 0.15:
            x[0] = 0
        elif kind < 0.3:
            x[-1] = x[0]
        elif kind < 0.37:
            x[:] = x[:1].clone()
        elif kind < 0.47 and self.takes[0] > 0:
            x[: max(1, n - 1)] = x[: max(1, n - 1)].abs()
        return x

    def mutate(self) -> str:
        """Something that a user does to a network between two calls."""
        kind = self.draw.choice(["", "scale", "zero", "flags", "gate", "step"])
        params = list(self.net.parameters())
        with torch.no_grad():
            if kind == "scale" and params:
                self.draw.choice(params).mul_(1.5)
            elif kind == "zero" and params:
                self.draw.choice(params).zero_()
            elif kind == "step":
                for p in params:
                    p.add_(0.05 * torch.ones_like(p))
            elif kind == "gate":
                self.net.gate.fill_(1.0 - self.net.gate)
            elif kind == "flags":
                self.net.train(not self.net.training)
        return kind

    def run(self) -> None:
        self.report.models += 1
        kinds = {re.sub(r"\[.*", "", w) for w in self.words}
        self.report.seen.update(kinds)
        before = len(self.report.failures)
        for k in range(CALLS_PER_MODEL):
            done = self.mutate() if k else ""
            with torch.no_grad():
                for mine, other in (
                    *zip(self.net.parameters(), self.twin.parameters(), strict=True),
                    *zip(self.net.buffers(), self.twin.buffers(), strict=True),
                ):
                    other.copy_(mine)
            self._call(f"call {k}{f' after {done}' if done else ''}")
        if len(self.report.failures) > before:
            self.report.failed.update(kinds)

    def _call(self, where: str) -> None:
        draw = self.draw
        n = draw.choice([1, 2, 3, 4])
        if draw.random() < 0.5:
            with torch.no_grad():
                n = min(6, self.twin.eval()(self._wide(self.samples(1))).numel())
        x1 = self.samples(n)
        x2 = self.samples(draw.choice([1, 2, 3])) if draw.random() < 0.4 else None
        f1, j1 = loop(self.twin, self._wide(x1))
        f2, j2 = (f1, j1) if x2 is None else loop(self.twin, self._wide(x2))
        if not j1:
            return
        kinds = {"ntk": 12, "operator": 2, "linearize": 2, "features": 2, "nngp": 1, "verify": 0.4}
        kind = draw.choices(list(kinds), list(kinds.values()))
        call, compare = getattr(self, f"_{kind[0]}")(x1, x2, f1, f2, j1, j2)
        context = draw.choice(list(CONTEXTS)) if draw.random() < 0.4 else ""
        label = f"{where}, {call}, N={n}{'' if x2 is None else f'/{len(x2)}'} {context}".strip()
        finite = all(bool(t.isfinite().all()) for t in (f1, f2, *j1.values(), *j2.values()))
        coupled = self.couples and self._is_coupled(x1, f1)
        if kind[0] == "linearize" and self.couples and bool(self.net.gate):
            return  # that of a batch is a function as well
        self._compare(label, compare, CONTEXTS[context], (x1, x2), finite, coupled)

    def _wide(self, x: Tensor) -> Tensor:
        return x.double() if x.is_floating_point() else x

    def _is_coupled(self, x: Tensor, f: Tensor) -> bool:
        with torch.no_grad():
            together = self.twin.eval()(self._wide(x)).reshape(f.shape)
        return bool((together - f).abs().max() > 1e-6 * f.abs().max())

    def _compare(
        self,
        label: str,
        compare: Callable[[], Iterator[tuple[str, Tensor, Tensor]]],
        context: Callable[[], Any],
        inputs: tuple[Tensor, Tensor | None],
        finite: bool,
        coupled: bool,
    ) -> None:
        report = self.report
        report.calls += 1
        tensors = [x for x in inputs if x is not None]
        state, kept = snapshot(self.net, *tensors), dict(self.statistics)
        wrong = ""
        try:
            with warnings.catch_warnings(), context():
                warnings.simplefilter("ignore")
                for part, found, expected in compare():
                    wrong = wrong or self._difference(part, found, expected)
            if not wrong and (coupled or not finite):
                wrong = "coupled samples were accepted" if coupled else "NaN was accepted"
        except (ValueError, TypeError) as refused:
            if str(refused).startswith("`"):
                report.refused(str(refused), self.seed)
                if finite and "finite" in str(refused):
                    wrong = f"the loop has no NaN: {refused}"[:200]
            else:
                wrong = _told(refused)
        except Exception as error:
            if "derivative for aten::" in str(error):  # torch lacks it; a linearized network stays
                report.refused("torch has no second derivative of it", self.seed)
            else:
                wrong = _told(error)
        after = snapshot(self.net, *tensors)
        changed = [k for k in {**state, **after} if state.get(k) != after.get(k)]
        if changed:
            wrong = f"{wrong} left a trace in {changed[:3]}".strip()
            torch.compiler.set_stance("default")
        if self.statistics.keys() != kept.keys() or any(
            self.statistics[k] is not kept[k] for k in kept
        ):
            wrong = f"{wrong} hooks of the user have run".strip()
            self.statistics.clear()
        if wrong:
            report.failures.append(Failure(self.seed, label, wrong, self.words))

    def _difference(self, part: str, found: Tensor, expected: Tensor) -> str:
        if found.shape != expected.shape:
            return f"{part} shape {tuple(found.shape)} for {tuple(expected.shape)}"
        scale = float(expected.abs().max()) if expected.numel() else 0.0
        off = float((found.detach().double() - expected).abs().max()) if expected.numel() else 0.0
        bound = TOLERANCE[self.dtype] * scale + 1e-12
        if self.dtype == torch.float32:
            bound += 1e-5
        return "" if off <= bound else f"{part} off by {off / max(scale, 1e-300):.1e}"

    # ------------------------------------------------------------ the functions of the library
    def _ntk(
        self, x1: Tensor, x2: Tensor | None, f1: Tensor, f2: Tensor, j1: Jacobians, j2: Jacobians
    ) -> tuple[str, Callable[[], Iterator[tuple[str, Tensor, Tensor]]]]:
        draw = self.draw
        output, method = draw.choice(OUTPUTS), draw.choice(METHODS)
        given: dict[str, Any] = {"output": output, "method": method}
        names = list(j1)
        if draw.random() < 0.25:
            names = sorted(draw.sample(names, draw.randint(1, len(names))), key=names.index)
            given["params"] = list(names)
        if draw.random() < 0.3:
            given["batch_size"] = draw.choice([1, 2, 3])
        by = draw.choice([None, None, None, "parameter", "module"])
        groups: dict[str, list[str]] = {}
        for n in names:
            key = n if by == "parameter" else n.rpartition(".")[0] if by == "module" else ""
            groups.setdefault(key, []).append(n)

        def compare() -> Iterator[tuple[str, Tensor, Tensor]]:
            found = empirical_ntk(self.net, x1, x2, by=by, **given)
            parts = found if isinstance(found, dict) else {"": found}
            if parts.keys() != groups.keys():
                raise AssertionError(f"parts {list(parts)} for {list(groups)}")
            for key, group in groups.items():
                full = contract_full(joined(j1, group), joined(j2, group))
                yield key, parts[key], reduced(full, output)
            if x2 is None and any(
                not torch.equal(k.transpose(0, 1), k if k.ndim < 4 else k.transpose(2, 3))
                for k in parts.values()
            ):
                raise AssertionError("not symmetric")

        return f"empirical_ntk(by={by}, {given})", compare

    def _operator(
        self, x1: Tensor, x2: Any, f1: Tensor, f2: Tensor, j1: Jacobians, j2: Jacobians
    ) -> tuple[str, Callable[[], Iterator[tuple[str, Tensor, Tensor]]]]:
        output = self.draw.choice(["full", "trace", "mean", "pseudo"])
        left = joined(j1, list(j1))
        right = left if x2 is None else joined(j2, list(j2))
        (n1, o, _), n2 = left.shape, len(right)

        def compare() -> Iterator[tuple[str, Tensor, Tensor]]:
            dense = reduced(contract_full(left, right), output)
            if output == "full":
                dense = dense.permute(0, 2, 1, 3).reshape(n1 * o, n2 * o)
            theta = NTKOperator(self.net, x1, x2, output=output)  # type: ignore[arg-type]
            yield "", theta @ torch.eye(dense.shape[1], dtype=self.dtype), dense
            yield ".T", theta.T @ torch.eye(dense.shape[0], dtype=self.dtype), dense.T
            if output == "full":
                unit = torch.eye(n1 * o, dtype=self.dtype)
                yield ".jacobian.T", theta.jacobian.T @ unit, left.reshape(n1 * o, -1).T

        return f"NTKOperator(x2={x2 is not None}, output={output!r})", compare

    def _features(
        self, x1: Tensor, x2: Any, f1: Tensor, f2: Tensor, j1: Jacobians, j2: Jacobians
    ) -> tuple[str, Callable[[], Iterator[tuple[str, Tensor, Tensor]]]]:
        given = {
            "kind": self.draw.choice(["sjlt", "rademacher", "gaussian"]),
            "output": self.draw.choice(["mean", "pseudo", "full"]),
            "batch_size": self.draw.choice([None, 2]),
        }
        dim, o, shapes = (
            self.draw.choice([1, 4, 9]),
            f1.shape[1],
            dict(self.twin.named_parameters()),
        )

        def projected(name: str, j: Tensor) -> Tensor:
            joint = o if given["output"] == "mean" else 1
            settings = ProjectionSettings(dim, 0, joint, torch.device("cpu"))
            where: Any = (name, shapes[name].shape, settings)
            if given["kind"] == "sjlt":
                return SparseProjection(*where).of_jacobian(j)
            normal = given["kind"] == "gaussian"
            return DenseProjection(*where, normal=normal, kept=False).of_jacobian(j)

        def compare() -> Iterator[tuple[str, Tensor, Tensor]]:
            found = ntk_features(self.net, x1, dim, **given)  # type: ignore[call-overload]
            pseudo = given["output"] == "pseudo"
            own = {n: j.sum(1, keepdim=True) / o**0.5 if pseudo else j for n, j in j1.items()}
            expected = torch.stack([projected(n, j) for n, j in own.items()]).sum(0)
            if given["output"] == "mean":
                expected = expected / o**0.5
            yield "", found, expected if given["output"] == "full" else expected[:, 0]

        return f"ntk_features({dim}, {given})", compare

    def _nngp(
        self, x1: Tensor, x2: Tensor | None, f1: Tensor, f2: Tensor, j1: Jacobians, j2: Jacobians
    ) -> tuple[str, Callable[[], Iterator[tuple[str, Tensor, Tensor]]]]:
        def compare() -> Iterator[tuple[str, Tensor, Tensor]]:
            yield "", empirical_nngp(self.net, x1, x2), f1 @ f2.t() / f1.shape[1]

        return "empirical_nngp", compare

    def _linearize(
        self, x1: Tensor, x2: Any, f1: Tensor, f2: Tensor, j1: Jacobians, j2: Jacobians
    ) -> tuple[str, Callable[[], Iterator[tuple[str, Tensor, Tensor]]]]:
        j = joined(j1, list(j1))
        g = torch.Generator().manual_seed(self.seed)
        d = 0.3 * torch.randn(j.shape[2], generator=g, dtype=torch.float64)
        u = torch.randn(f1.shape, generator=g, dtype=torch.float64)

        def compare() -> Iterator[tuple[str, Tensor, Tensor]]:
            lin = linearize(self.net)
            params = [p for p in lin.parameters() if p.requires_grad]
            parts = d.split([p.numel() for p in params])
            with torch.no_grad():
                for p, part in zip(params, parts, strict=True):
                    p.add_(part.reshape(p.shape))
            with torch.inference_mode(False), torch.enable_grad():
                out = lin(x1.clone()).reshape(f1.shape)
                moved = torch.einsum("nip,p->ni", j, d)
                yield "values", out.double() - f1, moved
                grads = torch.autograd.grad(out, params, u.to(out.dtype), allow_unused=True)
            flat = [
                (torch.zeros_like(p) if v is None else v.to_dense()).reshape(-1)
                for v, p in zip(grads, params, strict=True)
            ]
            yield "gradients", torch.cat(flat), torch.einsum("nip,ni->p", j, u)

        return "linearize", compare

    def _verify(
        self, x1: Tensor, x2: Any, f1: Tensor, f2: Tensor, j1: Jacobians, j2: Jacobians
    ) -> tuple[str, Callable[[], Iterator[tuple[str, Tensor, Tensor]]]]:
        def compare() -> Iterator[tuple[str, Tensor, Tensor]]:
            found = verify(self.net, x1, samples=2)
            wrong = [c for c in found.checks if not c.is_right and not c.refusal]
            if self.dtype == torch.float64 and any(c.dtype == torch.float64 for c in wrong):
                raise AssertionError(f"verify says wrong: {[(c.method, c.error) for c in wrong]}")
            refusals = [c.refusal for c in found.checks if c.refusal]
            if len(refusals) == len(found.checks):
                raise ValueError(refusals[0])
            yield "", torch.zeros(1), torch.zeros(1, dtype=torch.float64)

        return "verify", compare


def _told(error: BaseException) -> str:
    """The kind of an error, its first line, and where in the library it came from."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "torch_ntk" in f.filename]
    where = "".join(f" at {f.filename.rpartition('torch_ntk/')[2]}:{f.lineno}" for f in frames[-1:])
    first = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {first[:140]}{where}"


def attack(seed: int, report: Report) -> None:
    """All calls on the network of one seed."""
    Attack(seed, report).run()


def run(first: int, minutes: float, show: Callable[[str], object]) -> Report:
    """Networks of consecutive seeds until the time is over."""
    report, seed, end = Report(), first, time.monotonic() + 60 * minutes
    while time.monotonic() < end:
        before = len(report.failures)
        attack(seed, report)
        for failure in report.failures[before:]:
            show(str(failure))
        seed += 1
    return report


def main() -> int:
    """Print the failures as they come, then the counts; 1 if there were any."""
    parser = argparse.ArgumentParser(description=__doc__)
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
        for table in (*TABLES.values(), EMBEDDINGS, HOOKED):
            table.pop(name, None)
        if name in DERIVED:
            DERIVED.remove(name)
    if given.only is not None:
        report = Report()
        print(built(given.only, plain=False)[0])
        attack(given.only, report)
    else:
        report = run(given.seed, given.minutes, lambda text: print(text, flush=True))
    print(report)
    return 1 if report.failures else 0


if __name__ == "__main__":
    sys.exit(main())
