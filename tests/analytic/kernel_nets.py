"""Networks of images whose regions Triton kernels evaluate."""

from __future__ import annotations

from typing import Any

import torch
from small_nets import Plus, conv, dense
from torch import nn

from torch_ntk import Erf, NTKConvTranspose2d, Sin


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


AVERAGES = "averages"
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
            averaged(around(), nn.ReLU(), same(), nn.ReLU()), (3, 2), DOUBLE,
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
    # Windows that leave positions out, overlap, reach beyond the borders, or differ.
    AVERAGES: {
        "two in a row": (
            averaged(same(), nn.ReLU(), nn.AvgPool2d(2), same(), Erf(), nn.AvgPool2d((1, 2))),
            (3, 4), BOTH,
        ),
        "flat, overlapping": (
            flat(
                same(), nn.GELU(), nn.AvgPool2d((2, 1), 1), same(), nn.ReLU(),
                nn.AvgPool2d(2, padding=1), same(), positions=4,
            ),
            (3, 3), BOTH,
        ),
        "flat, many around a position": (
            flat(same(), nn.ReLU(), nn.AvgPool2d((3, 1), 1, (1, 0)), conv(2, 2, 1), positions=6),
            (3, 2), DOUBLE,
        ),
        "of circles": (
            averaged(around(), nn.ReLU(), nn.AdaptiveAvgPool2d(2), around(), nn.Softplus()),
            (3, 3), DOUBLE,
        ),
        "of two branches": (
            flat(
                Plus(nn.Sequential(same(stride=2), nn.AvgPool2d(2)), nn.Sequential(
                    nn.AvgPool2d(2), same(stride=2))),
                nn.ReLU(), positions=1,
            ),
            (4, 4), DOUBLE,
        ),
    },
}  # fmt: skip
