"""Slow and obvious computations, by other means than the library's, to compare it with."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def jacobian_loop(model: nn.Module, x: Tensor, names: list[str] | None = None) -> Tensor:
    """Per-sample Jacobians `[N, O, P]` by one backward pass per sample and output.

    The model is put into eval mode and stays there: pass one that nobody else uses.

    Args:
        model: Any module.
        x: Inputs `[N, ...]`.
        names: The parameters to differentiate by; by default those that require grad.
    """
    model.eval()
    if names is None:
        params = [p for p in model.parameters() if p.requires_grad]
    else:
        by_name = dict(model.named_parameters(remove_duplicate=False))
        params = [by_name[n] for n in names]
        for p in params:
            p.requires_grad_()
    samples = []
    for n in range(x.shape[0]):
        outputs = model(x[n : n + 1].clone()).reshape(-1)
        rows = []
        for output in outputs:
            grads = torch.autograd.grad(output, params, retain_graph=True, allow_unused=True)
            rows.append(
                torch.cat(
                    [
                        (torch.zeros_like(p) if g is None else g.to_dense()).reshape(-1)
                        for p, g in zip(params, grads, strict=True)
                    ]
                )
            )
        samples.append(torch.stack(rows))
    return torch.stack(samples).detach()


def jacobian_with_graph(model: nn.Module, x: Tensor, names: list[str] | None = None) -> Tensor:
    """The same Jacobians, differentiable by all parameters and inputs that require grad."""
    model.eval()
    named = dict(model.named_parameters())
    params = [p for n, p in named.items() if (p.requires_grad if names is None else n in names)]
    samples = []
    for n in range(x.shape[0]):
        rows = []
        for output in model(x[n : n + 1].clone()).reshape(-1):
            grads = torch.autograd.grad(output, params, create_graph=True, allow_unused=True)
            pairs = zip(params, grads, strict=True)
            dense = [torch.zeros_like(p) if g is None else g.to_dense() for p, g in pairs]
            rows.append(torch.cat([g.reshape(-1) for g in dense]))
        samples.append(torch.stack(rows))
    return torch.stack(samples)


def contract_full(j1: Tensor, j2: Tensor) -> Tensor:
    """`Θ[n, m, i, j] = Σ_p J1[n, i, p] J2[m, j, p]`."""
    return torch.einsum("nip,mjp->nmij", j1, j2)


def ntk_loop(model: nn.Module, x1: Tensor, x2: Tensor, names: list[str] | None = None) -> Tensor:
    """The full kernel `[N1, N2, O, O]` from two loops of backward passes."""
    return contract_full(jacobian_loop(model, x1, names), jacobian_loop(model, x2, names))


def reduced(full: Tensor, output: str) -> Tensor:
    """What the five values of `output` mean, written out from the full kernel."""
    o = full.shape[-1]
    if output == "full":
        return full
    if output == "diagonal":
        return torch.einsum("nmii->nmi", full)
    if output == "pseudo":  # the kernel of Σ_i f_i / sqrt(O) is Σ_ij Θ_ij / O
        return full.sum(dim=(2, 3)) / o
    trace = torch.einsum("nmii->nm", full)
    return trace / o if output == "mean" else trace


def relative_error(value: Tensor, expected: Tensor) -> float:
    """The largest deviation, relative to the largest entry, on whatever devices."""
    assert value.shape == expected.shape, f"{tuple(value.shape)} != {tuple(expected.shape)}"
    value, expected = value.double().cpu(), expected.double().cpu()
    return float((value - expected).abs().max() / expected.abs().max())
