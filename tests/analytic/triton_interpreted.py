"""Kernels in Triton's interpreter beside tensor operations; prints the errors as JSON.

A process of its own: `TRITON_INTERPRET=1` must be there before Triton is imported.
"""

from __future__ import annotations

import json
import warnings

import torch
from small_nets import Plus, conv, dense
from torch import nn

from torch_ntk import Erf, Sin, analytic_explain, analytic_kernels
from torch_ntk.analytic.engine import _run


def flat(*layers: nn.Module, positions: int) -> nn.Module:
    return nn.Sequential(*layers, nn.Flatten(), dense(2 * positions, 1))


def averaged(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), dense(2, 1))


def same(**options: object) -> nn.Module:
    return conv(2, 2, padding=1, **options)


DEEP = [same(), nn.ReLU(), same(), nn.ReLU(), same(sigma_b=0.0), nn.ReLU()]
NETS: dict[str, tuple[nn.Module, tuple[int, int]]] = {
    "average": (averaged(same(), nn.ReLU(), same()), (3, 2)),
    "average, erf, even filter": (averaged(conv(2, 2, 2), Erf(), same(sigma_b=0.0)), (3, 2)),
    "average, stride, sum": (averaged(same(stride=2), nn.ReLU(), Plus(same())), (4, 3)),
    "flat": (flat(*DEEP, positions=30), (5, 6)),
    "flat, erf": (flat(same(), Erf(), same(), positions=12), (4, 3)),
    "flat, sine": (flat(same(), Sin(), same(), positions=12), (4, 3)),
    "flat, stride, sum": (
        flat(same(stride=(2, 1)), nn.ReLU(), Plus(same()), same(stride=2), nn.GELU(), positions=6),
        (5, 6),
    ),
}
IN_BOTH = ("average, stride, sum", "flat")  # the code differs in types and polynomials only


def main() -> None:
    warnings.simplefilter("error")
    _run.unusable = lambda device: ""  # also on the CPU, where the interpreter is
    generator = torch.Generator().manual_seed(0)
    for name, (net, size) in NETS.items():
        x1, x2 = torch.randn(2, 1, 2, *size, generator=generator, dtype=torch.float64)
        x2 = torch.cat([x2, x1])  # a copy, which the kernel has exactly
        for dtype in (torch.float64, torch.float32):
            if dtype == torch.float32 and name not in IN_BOTH:
                continue
            with torch.no_grad():
                how = str(analytic_explain(net, x1, x2, dtype=dtype))
                found = analytic_kernels(net, x1, x2, dtype=dtype)
            # There are neither kernels nor loops where derivatives are wanted.
            wanted = analytic_kernels(net, x1.clone().requires_grad_(), x2)
            error = max(
                float(((one - two).abs().max() / two.abs().max()).detach())
                for one, two in zip(found, wanted, strict=True)
            )
            print(json.dumps([name, str(dtype), "in a Triton kernel" in how, error]), flush=True)


if __name__ == "__main__":
    main()
