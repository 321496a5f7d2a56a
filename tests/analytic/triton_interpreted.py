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

from torch_ntk import Erf, NTKConvTranspose2d, Sin, analytic_explain, analytic_kernels
from torch_ntk.analytic.engine import _run


def flat(*layers: nn.Module, positions: int) -> nn.Module:
    return nn.Sequential(*layers, nn.Flatten(), dense(2 * positions, 1))


def averaged(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), dense(2, 1))


def same(**options: Any) -> nn.Module:
    return conv(2, 2, padding=1, **options)


def around(kernel: int | tuple[int, int] = 3, **options: Any) -> nn.Module:
    return conv(2, 2, kernel, **{"padding": 1, **options}, padding_mode="circular")


def transposed() -> nn.Module:
    return NTKConvTranspose2d(2, 2, (3, 2), stride=(1, 2), padding=(0, 1), dtype=torch.float64)


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
    # Values that tensor operations or other regions take, all of them or near displacements only.
    "several regions": {
        "circles, then zeros": (
            averaged(around(padding=1), nn.ReLU(), same(), nn.ReLU()), (3, 2), DOUBLE,
        ),
        "transposed": (
            averaged(same(), nn.ReLU(), transposed(), nn.ReLU(), same()), (2, 2), BOTH,
        ),
        "flat, transposed": (
            flat(same(), nn.ReLU(), transposed(), nn.GELU(), same(), positions=16), (2, 3), DOUBLE,
        ),
        "dropout": (
            flat(same(), Sin(), nn.Dropout(0.3), same(), Sin(), positions=6), (2, 3), DOUBLE,
        ),
        "strides that differ": (
            averaged(
                same(), Erf(),
                Plus(same(stride=2), nn.Sequential(same(), nn.ReLU(), same(stride=2))),
            ),
            (3, 2), BOTH,
        ),
    },
}  # fmt: skip


def main() -> None:
    warnings.simplefilter("error")
    on_a_gpu = _run.unusable
    generator = torch.Generator().manual_seed(0)
    for name, (net, size, dtypes) in NETS[sys.argv[1]].items():
        x1, x2 = torch.randn(2, 1, 2, *size, generator=generator, dtype=torch.float64)
        x2 = torch.cat([2 * x2, x1])  # a copy, which the kernel has exactly
        for dtype in dtypes:
            with torch.no_grad():
                _run.unusable = on_a_gpu
                loops = analytic_explain(net, x1, x2, dtype=dtype, training=True)
                _run.unusable = lambda device: ""  # also on the CPU, where the interpreter is
                kernels = analytic_explain(net, x1, x2, dtype=dtype, training=True)
                found = analytic_kernels(net, x1, x2, dtype=dtype, training=True)
            # There are neither kernels nor loops where derivatives are wanted.
            wanted = analytic_kernels(net, x1.clone().requires_grad_(), x2, training=True)
            error = max(
                float(((one - two).abs().max() / two.abs().max()).detach())
                for one, two in zip(found, wanted, strict=True)
            )
            # Vectors are for tensor operations: see `_suitable.py`.
            both = [
                (one, two)
                for one, two in zip(loops.steps, kernels.steps, strict=True)
                if one.positions != (1, 1)
            ]
            in_kernel = all((one.loop is None) == (two.loop is None) for one, two in both)
            in_kernel &= any("in a Triton kernel" in two.how for _, two in both)
            print(json.dumps([name, str(dtype), in_kernel, error]), flush=True)


if __name__ == "__main__":
    main()
