"""Time finite-width kernels against other packages, with the same nets and sizes, in one run.

    pip install '.[peers]'      # in an environment of its own; nngeometry if you like
    python benchmarks/empirical.py [--quick] [--row N] [--accounts]

Compared are this package, the two ways of the torch.func tutorial on neural tangent kernels
(Jacobian contraction and NTK-vector products), nngeometry where it is installed, and the better
one of neural-tangents' structured derivatives and Jacobian contraction, compiled by jax. Every
figure comes from a process of its own, ours before and after the others, and once more to count
operations and to see which stage takes how long. Prints a table with the ratios and, without
`--quick`, measures growth as well (beside neural-tangents' structured derivatives) and writes
`benchmarks/empirical.json`, the page `docs/benchmarks/empirical.md` and its figure. Run it on an
idle machine.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import psutil
import torch
from common import DOCS, HERE, best, environment, peak_memory, version, worker, write_json
from empirical_account import account, lines
from empirical_nets import NAMES, net, stax_net
from torch import Tensor
from torch.func import functional_call, jacrev, jvp, vjp, vmap

SCRIPT = Path(__file__).resolve()
TABLE: list[dict[str, Any]] = [
    {"net": "mlp", "n": 64, "output": "full", "must": {"peer": 1.5, "tutorial": 300}},
    {"net": "mlp", "n": 256, "output": "full", "must": {"peer": 2}},
    {"net": "mlp", "n": 256, "output": "mean", "must": {"peer": 2}},
    {"net": "cnn", "n": 64, "output": "full", "must": {"peer": 2, "tutorial": 5}},
    {"net": "gap", "n": 32, "output": "full", "must": {"peer": 2, "tutorial": 2}},
    {"net": "gap", "n": 32, "output": "mean", "must": {"peer": 2, "tutorial": 2}},
    {"net": "resnet", "n": 8, "output": "full", "must": {"peer": 1.8, "tutorial": 6}},
    {"net": "cnn", "n": 4, "output": "full", "must": {}},
]
WHO = {
    "ours": "torch_ntk",
    "peer": "neural-tangents",
    "tutorial": "torch.func, Jacobians",
    "vectors": "torch.func, NTK-vector products",
    "nngeometry": "nngeometry",
}


def ours(job: dict[str, Any]) -> Any:
    """The kernel with this package."""
    from torch_ntk import empirical_ntk

    model, x = net(job)
    return lambda: empirical_ntk(model, x, output=job["output"])


def tutorial(job: dict[str, Any]) -> Any:
    """The tutorial's contraction of Jacobians; None where they do not fit in memory."""
    model, x = net(job)
    params = {k: v.detach() for k, v in model.named_parameters()}
    numbers = sum(p.numel() for p in params.values()) * job["n"] * job.get("outputs", 10)
    if 1.5 * 4 * numbers > psutil.virtual_memory().available:
        return None
    equation = "Naf,Mbf->NMab" if job["output"] == "full" else "Naf,Maf->NM"

    def single(p: dict[str, Tensor], sample: Tensor) -> Tensor:
        return functional_call(model, p, (sample.unsqueeze(0),)).squeeze(0)

    def run() -> Tensor:
        jac = vmap(jacrev(single), (None, 0))(params, x)
        flat = [j.flatten(2) for j in jac.values()]
        return torch.stack([torch.einsum(equation, j, j) for j in flat]).sum(0)

    return run


def vectors(job: dict[str, Any]) -> Any:
    """The tutorial's NTK-vector products; None where its vectors do not fit in memory."""
    model, x = net(job)
    params = {k: v.detach() for k, v in model.named_parameters()}
    numbers = sum(p.numel() for p in params.values()) * job["n"] ** 2 * 10
    if job["output"] != "full" or 3 * 4 * numbers > psutil.virtual_memory().available:
        return None
    eye = torch.eye(10)

    def single(p: dict[str, Tensor], sample: Tensor) -> Tensor:
        return functional_call(model, p, (sample.unsqueeze(0),)).squeeze(0)

    def pair(a: Tensor, b: Tensor) -> Tensor:
        pull = vjp(lambda p: single(p, a), params)[1]

        def column(v: Tensor) -> Tensor:
            return jvp(lambda p: single(p, b), (params,), pull(v))[1]

        return vmap(column)(eye)

    return lambda: vmap(vmap(pair, (None, 0)), (0, None))(x, x)


def nngeometry(job: dict[str, Any]) -> Any:
    """The Gram matrix of nngeometry's Jacobians; None where it is not installed."""
    try:
        from nngeometry.gram import GramMatrix
    except ImportError:
        return None
    model, x = net(job)
    # Its layers are modules of a few kinds, each called once, and it has the full kernel only.
    if job["output"] != "full" or job["net"] == "resnet":
        return None
    data = torch.utils.data.TensorDataset(x)
    loader = torch.utils.data.DataLoader(data, batch_size=job["n"])
    return lambda: GramMatrix(model, loader)


def peer(job: dict[str, Any]) -> Any:
    """The kernel with neural-tangents; None where it is not installed."""
    try:
        import jax
        import neural_tangents as nt
    except ImportError:
        return None
    (init, apply, _), shape = stax_net(job)
    key = jax.random.PRNGKey(0)
    _, params = init(key, shape)
    x = jax.random.normal(key, shape)
    kernel = nt.empirical_ntk_fn(
        apply,
        trace_axes=() if job["output"] == "full" else (-1,),
        vmap_axes=0,
        implementation=getattr(nt.NtkImplementation, job["implementation"]),
    )
    compiled = jax.jit(lambda p, a: kernel(a, None, p))
    return lambda: jax.block_until_ready(compiled(params, x))


MAKERS = {
    "ours": ours,
    "tutorial": tutorial,
    "vectors": vectors,
    "nngeometry": nngeometry,
    "peer": peer,
}


def measure(job: dict[str, Any]) -> dict[str, Any] | None:
    """Seconds of the best run, and bytes above what stood before the first; or the account."""
    run = MAKERS[job["who"]](job)
    if run is None:
        return None
    if job.get("account"):
        return account(run)
    before = peak_memory()
    try:
        run()
    except Exception as error:
        # jax has no type of its own for a lack of memory.
        if "RESOURCE_EXHAUSTED" in str(error):
            return None
        raise
    return {"memory": peak_memory() - before, "seconds": best(run)}


WAYS = ("STRUCTURED_DERIVATIVES", "JACOBIAN_CONTRACTION")
"""The implementations of neural-tangents."""


def compare(
    job: dict[str, Any],
    others: tuple[str, ...] = tuple(WHO)[1:],
    ways: tuple[str, ...] = WAYS,
) -> dict[str, Any]:
    """Times of all, each in a process of its own; the shorter of our two runs."""
    sizes = {k: v for k, v in job.items() if k != "must"}
    found = {"ours": worker(SCRIPT, {"who": "ours", **sizes})}
    for who in others:
        if who == "peer":
            tried = [worker(SCRIPT, {"who": who, "implementation": w, **sizes}) for w in ways]
            done = [t for t in tried if t is not None]
            found[who] = min(done, key=lambda t: t["seconds"]) if done else None
        else:
            found[who] = worker(SCRIPT, {"who": who, **sizes})
    again = worker(SCRIPT, {"who": "ours", **sizes})
    first = found["ours"]
    assert first is not None
    assert again is not None
    found["ours"] = min(first, again, key=lambda t: t["seconds"])
    ratios = {w: f["seconds"] / found["ours"]["seconds"] for w, f in found.items() if f}
    return {**job, "name": NAMES[job["net"]], "found": found, "ratios": ratios}


def accounted(job: dict[str, Any]) -> dict[str, Any] | None:
    """Operations and times of the stages of our kernel."""
    keys = ("net", "n", "output")
    return worker(SCRIPT, {"who": "ours", "account": True, **{k: job[k] for k in keys}})


def line(row: dict[str, Any]) -> str:
    """A row of the table as text."""
    text = [f"{row['name']:<27} N={row['n']:<4}{row['output']:<5}"]
    for who, found in row["found"].items():
        if found is None:
            continue
        ratio = f" {row['ratios'][who]:.2f}×" if who != "ours" else ""
        must = f" (at least {row['must'][who]}×)" if who in row.get("must", {}) else ""
        memory = f"{found['memory'] / 2**20:.0f} MB"
        text.append(f"  {WHO[who]} {1e3 * found['seconds']:.1f} ms, {memory}{ratio}{must}")
    return "\n".join(text + lines(row["account"]))


def growth() -> dict[str, list[dict[str, Any]]]:
    """How our time and the peer's grow with the samples, the outputs and the width of the MLP."""
    axes = {"n": (16, 32, 64, 128, 256), "outputs": (1, 3, 10, 30), "width": (256, 512, 1024, 2048)}
    series: dict[str, list[dict[str, Any]]] = {}
    for axis, values in axes.items():
        series[axis] = []
        for value in values:
            # Contracting Jacobians takes the peer a hundred times as long for this net.
            job = {"net": "mlp", "n": 64, "output": "full", axis: value}
            row = compare(job, ("peer",), WAYS[:1])
            point = {w: f and 1e3 * f["seconds"] for w, f in row["found"].items()}
            series[axis].append({axis: value, **point})
            print(series[axis][-1], flush=True)
    return series


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="only the table; nothing is written")
    parser.add_argument("--row", type=int, help="only this row of the table; nothing is written")
    parser.add_argument(
        "--accounts", action="store_true", help="only the stages again, beside what is there"
    )
    parser.add_argument("--job", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.job:
        print(json.dumps(measure(json.loads(args.job))))
        return
    if args.accounts:
        result = json.loads((HERE / "empirical.json").read_text(encoding="utf-8"))
        for row in result["rows"]:
            row["account"] = accounted(row)
            print(line(row), flush=True)
        finish(result)
        return
    if version("neural-tangents") is None:
        print("neural-tangents is not installed here: pip install '.[peers]' to compare with it.")
    rows = []
    for job in TABLE if args.row is None else [TABLE[args.row]]:
        rows.append(compare(job))
        rows[-1]["account"] = accounted(job)
        print(line(rows[-1]), flush=True)
    if args.quick or args.row is not None:
        return
    result = {"environment": environment(), "rows": rows, "growth": {}}
    write_json(HERE / "empirical.json", result)  # before what may yet fail
    result["growth"] = growth()
    finish(result)


def finish(result: dict[str, Any]) -> None:
    """Write the figures and the page."""
    write_json(HERE / "empirical.json", result)
    from empirical_report import report

    report(result, DOCS)


if __name__ == "__main__":
    main()
