"""What `ntk_features` costs beside per-sample gradients, and how exact it is.

    python benchmarks/features.py [--quick]

The network is ResNet-18 for images of 32×32 without normalization, 11 million parameters, its
gradients are projected to 4,096 features. Times are taken in turns with `torch.func.vmap(grad)`,
which forms gradients and does nothing with them, on as many samples at once as suit it; of all ten
outputs with `vmap(jacrev)`. Memory is that of processes of their own. Prints the figures and,
without `--quick`, writes `benchmarks/features.json` and the page `docs/benchmarks/features.md`; ten
minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import HERE, environment, peak_memory, seconds, worker, write_json
from empirical_nets import net
from features_report import in_words, report
from torch import Tensor
from torch.func import functional_call, grad, jacrev, vmap
from torch.utils.data import Dataset

from torch_ntk import empirical_ntk, features_error, ntk_features

DIM = 4096
WAYS: tuple[dict[str, Any], ...] = (
    {"kind": "sjlt", "output": "pseudo"},
    {"kind": "sjlt", "output": "pseudo", "check": False},
    {"kind": "rademacher", "output": "pseudo"},
    {"kind": "gaussian", "output": "pseudo"},
    {"kind": "sjlt", "output": "mean"},
)


def times(job: dict[str, Any]) -> dict[str, Any]:
    """Seconds per sample of every way, the shortest of some runs in turns."""
    model, x = net({"net": "resnet", "n": job["n"]})
    params = {name: p.detach() for name, p in model.named_parameters()}

    def pseudo(params: dict[str, Tensor], sample: Tensor) -> Tensor:
        out: Tensor = functional_call(model, params, (sample[None],))
        return out.sum() / out.shape[1] ** 0.5

    def gradients(size: int) -> None:
        for some in x.split(size):
            vmap(grad(pseudo), in_dims=(None, 0))(params, some)

    def outputs(params: dict[str, Tensor], sample: Tensor) -> Tensor:
        out: Tensor = functional_call(model, params, (sample[None],))
        return out[0]

    def jacobians() -> None:
        for some in x.split(2):  # ten times as large as gradients
            vmap(jacrev(outputs), in_dims=(None, 0))(params, some)

    sizes = {size: seconds(lambda size=size: gradients(size)) for size in (1, 4, 8, 16)}
    size = min(sizes, key=lambda s: sizes[s])
    runs: list[Callable[[], object]] = [lambda: gradients(size), jacobians]
    runs += [lambda way=way: ntk_features(model, x, DIM, **way) for way in WAYS]
    turns = [[seconds(run) for run in runs] for _ in range(job["turns"])]
    found = [min(each) for each in zip(*turns, strict=True)]
    return {
        "n": job["n"],
        "size": size,
        "gradients": found[0] / len(x),
        "jacobians": found[1] / len(x),
        "found": [t / len(x) for t in found[2:]],
    }


class _Images(Dataset[tuple[Tensor]]):
    """Random images that nobody keeps."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> tuple[Tensor]:
        return (torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(i)),)


def memory(job: dict[str, Any]) -> dict[str, Any]:
    """Bytes above those of the process, with the features in a file."""
    model, _ = net({"net": "resnet", "n": 1})
    before = peak_memory()
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "features.safetensors"
        ntk_features(model, _Images(job["n"]), DIM, output="pseudo", store=store)
    return {"n": job["n"], "more": peak_memory() - before}


def exactness(job: dict[str, Any]) -> dict[str, Any]:
    """Which share of the entries of the kernel is within the stated error, and twice that."""
    model, x = net({"net": "resnet", "n": job["n"]})
    kernel = empirical_ntk(model, x, output="pseudo")
    found = []
    for seed in range(job["seeds"]):
        phi = ntk_features(model, x, DIM, output="pseudo", seed=seed)
        off, error = (phi @ phi.T - kernel).abs(), features_error(phi)
        once, twice = ((off <= k * error).float().mean().item() for k in (1, 2))
        found.append({"once": once, "twice": twice, "error": (error / kernel).mean().item()})
    return {"n": job["n"], "seeds": found}


def main() -> None:
    """Measure, print, and write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few samples, nothing is written")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    args = parser.parse_args()
    script = Path(__file__).resolve()
    if args.job:
        job = json.loads(args.job)
        print(
            json.dumps({"times": times, "memory": memory, "exactness": exactness}[job["what"]](job))
        )
        return
    n, turns, seeds = (4, 1, 1) if args.quick else (16, 3, 8)
    result: dict[str, Any] = {"environment": environment(), "dim": DIM, "ways": WAYS}
    result["times"] = worker(script, {"what": "times", "n": n, "turns": turns})
    result["memory"] = [worker(script, {"what": "memory", "n": k * n}) for k in (2, 16)]
    result["exactness"] = worker(script, {"what": "exactness", "n": n, "seeds": seeds})
    print("\n".join(in_words(result)))
    if not args.quick:
        write_json(HERE / "features.json", result)
        report(result)


if __name__ == "__main__":
    main()
