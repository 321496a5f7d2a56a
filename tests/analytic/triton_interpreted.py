"""Kernels in Triton's interpreter beside tensor operations; prints the errors as JSON.

    TRITON_INTERPRET=1 python triton_interpreted.py GROUP

A process of its own: `TRITON_INTERPRET=1` must be there before Triton is imported.
"""

from __future__ import annotations

import json
import sys
import warnings
from typing import Any

import torch
from small_nets import Plus, conv, dense
from torch import nn

from torch_ntk import Erf, Sin, analytic_explain, analytic_kernels
from torch_ntk.analytic.engine import _run


def flat(*layers: nn.Module, positions: int) -> nn.Module:
    return nn.Sequential(*layers, nn.Flatten(), dense(2 * positions, 1))


def averaged(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), dense(2, 1))


def same(**options: Any) -> nn.Module:
    return conv(2, 2, padding=1, **options)


def around(kernel: int | tuple[int, int] = 3, **options: Any) -> nn.Module:
    return conv(2, 2, kernel, **{"padding": 1, **options}, padding_mode="circular")


Case = tuple[nn.Module, tuple[int, int], tuple[torch.dtype, ...]]
DOUBLE, BOTH = (torch.float64,), (torch.float64, torch.float32)
DEEP = [same(), nn.ReLU(), same(), nn.ReLU(), same(sigma_b=0.0), nn.ReLU()]
# The code for the two types differs in types and polynomials only.
NETS: dict[str, dict[str, Case]] = {
    "closed forms": {
        "average": (averaged(same(), nn.ReLU(), same()), (3, 2), DOUBLE),
        "average, erf, even filter": (
            averaged(conv(2, 2, 2), Erf(), same(sigma_b=0.0)), (3, 2), DOUBLE,
        ),
        "average, stride, sum": (
            averaged(same(stride=2), nn.ReLU(), Plus(same())), (4, 3), BOTH,
        ),
        "flat": (flat(*DEEP, positions=30), (5, 6), BOTH),
        "flat, erf": (flat(same(), Erf(), same(), positions=12), (4, 3), DOUBLE),
        "flat, sine": (flat(same(), Sin(), same(), positions=12), (4, 3), DOUBLE),
        "flat, stride, sum": (
            flat(same(stride=(2, 1)), nn.ReLU(), Plus(same()), same(stride=2), nn.GELU(),
                 positions=6),
            (5, 6), DOUBLE,
        ),
    },
    # Smooth ones have few coefficients; those of a kink are all needed, with their remainder.
    "series": {
        "average, softplus": (averaged(same(), nn.Softplus(), same()), (2, 2), DOUBLE),
        "flat, tanh twice": (
            flat(same(), nn.Tanh(), same(stride=2), nn.Tanh(), positions=4), (4, 3), BOTH,
        ),
        "flat, elu, sum": (flat(same(), nn.ELU(), Plus(same()), positions=6), (2, 3), BOTH),
    },
    "borders": {
        "average, circles, stride": (
            averaged(
                around(stride=(2, 1)), nn.ReLU(), around(), nn.ReLU(), around(5, padding=2)
            ),
            (4, 3), DOUBLE,
        ),
        "average, a circle of rows": (
            averaged(around((3, 2), padding=(1, 0)), Erf(), around((3, 1), padding=(1, 0))),
            (3, 3), BOTH,
        ),
        "average, a circle of columns": (
            averaged(around((2, 3), padding=(0, 1)), nn.ReLU(), around((1, 3), padding=(0, 1))),
            (3, 2), DOUBLE,
        ),
        "flat, circles": (
            flat(around(), nn.ReLU(), around(5, padding=2, stride=2), positions=4), (4, 3), DOUBLE,
        ),
        "flat, all at once": (
            flat(
                same(padding_mode="reflect"),
                nn.ReLU(),
                same(stride=2),
                nn.GELU(),
                Plus(conv(2, 2, padding=2, dilation=2, padding_mode="replicate")),
                around((1, 3), padding=(0, 1)),
                positions=9,
            ),
            (5, 6), BOTH,
        ),
    },
}  # fmt: skip


def main() -> None:
    warnings.simplefilter("error")
    _run.unusable = lambda device: ""  # also on the CPU, where the interpreter is
    generator = torch.Generator().manual_seed(0)
    for name, (net, size, dtypes) in NETS[sys.argv[1]].items():
        x1, x2 = torch.randn(2, 1, 2, *size, generator=generator, dtype=torch.float64)
        x2 = torch.cat([2 * x2, x1])  # a copy, which the kernel has exactly
        for dtype in dtypes:
            with torch.no_grad():
                how = analytic_explain(net, x1, x2, dtype=dtype)
                found = analytic_kernels(net, x1, x2, dtype=dtype)
            # There are neither kernels nor loops where derivatives are wanted.
            wanted = analytic_kernels(net, x1.clone().requires_grad_(), x2)
            error = max(
                float(((one - two).abs().max() / two.abs().max()).detach())
                for one, two in zip(found, wanted, strict=True)
            )
            # A vector is for tensor operations: see `_suitable.py`.
            images = [step for step in how.steps if step.positions != (1, 1)]
            in_kernel = all("in a Triton kernel" in step.how for step in images)
            print(json.dumps([name, str(dtype), in_kernel, error]), flush=True)


if __name__ == "__main__":
    main()
