"""The kernels of `empirical.py`, each package in its own way; None where it has no way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psutil
import torch
from empirical_nets import net, stax_net
from torch import Tensor
from torch.func import functional_call, jacrev, jvp, vjp, vmap

WHO = {
    "ours": "torch_ntk",
    "peer": "neural-tangents",
    "tutorial": "torch.func, Jacobians",
    "vectors": "torch.func, NTK-vector products",
    "nngeometry": "nngeometry",
}


def free(job: dict[str, Any]) -> int:
    """Bytes that a job may take where it runs."""
    if is_on_gpu(job):
        return min(int(torch.cuda.mem_get_info()[0]), 64 * 10**9)
    return int(psutil.virtual_memory().available)


def is_on_gpu(job: dict[str, Any]) -> bool:
    """Whether the job runs there."""
    return str(job.get("device", "cpu")) != "cpu"


def ours(job: dict[str, Any]) -> Any:
    """The kernel with this package."""
    from torch_ntk import empirical_ntk

    model, x = net(job)
    return lambda: empirical_ntk(model, x, output=job["output"])


def functional(job: dict[str, Any]) -> tuple[Callable[..., Tensor], dict[str, Tensor], Tensor]:
    """The network as a function of parameters and one sample, its parameters, and its inputs."""
    model, x = net(job)

    def single(p: dict[str, Tensor], sample: Tensor) -> Tensor:
        return functional_call(model, p, (sample.unsqueeze(0),)).squeeze(0)

    return single, {k: v.detach() for k, v in model.named_parameters()}, x


def tutorial(job: dict[str, Any]) -> Any:
    """The tutorial's contraction of Jacobians; None where they do not fit in memory."""
    single, params, x = functional(job)
    numbers = sum(p.numel() for p in params.values()) * job["n"] * job.get("outputs", 10)
    if 1.5 * 4 * numbers > free(job):
        return None
    equation = "Naf,Mbf->NMab" if job["output"] == "full" else "Naf,Maf->NM"

    def run() -> Tensor:
        jac = vmap(jacrev(single), (None, 0))(params, x)
        flat = [j.flatten(2) for j in jac.values()]
        return torch.stack([torch.einsum(equation, j, j) for j in flat]).sum(0)

    return run


def vectors(job: dict[str, Any]) -> Any:
    """The tutorial's NTK-vector products; None where its vectors do not fit in memory."""
    single, params, x = functional(job)
    numbers = sum(p.numel() for p in params.values()) * job["n"] ** 2 * 10
    if job["output"] != "full" or 3 * 4 * numbers > free(job):
        return None
    eye = torch.eye(10, device=x.device)

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
    if is_on_gpu(job):
        return None
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
