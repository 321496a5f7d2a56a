"""TensorBoard's page of grouped curves, and the cadence of the figures."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning_runs import LIGHTNING_SAYS, classifier, data, fit, with_batch_norm
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2

from torch_ntk.callbacks import (
    KernelDrift,
    KernelSpectrum,
    LinearizationGap,
    LossForecast,
    NTKMonitor,
    StabilityEdge,
)
from torch_ntk.monitor import METRICS, OPTIONAL

pytestmark = [
    *[pytest.mark.filterwarnings(text) for text in LIGHTNING_SAYS],
    pytest.mark.filterwarnings("ignore:.*lr times the largest curvature"),
    pytest.mark.filterwarnings("ignore:'infinite_gap' is not measured"),
]


def events(logger: TensorBoardLogger) -> EventAccumulator:
    return EventAccumulator(logger.log_dir, {"images": 0, "scalars": 0, "tensors": 0}).Reload()


def page(seen: EventAccumulator) -> dict[str, dict[str, list[str]]]:
    (event,) = seen.Tensors("custom_scalars__config__")
    proto = layout_pb2.Layout()
    proto.ParseFromString(event.tensor_proto.string_val[0])
    return {
        c.title: {chart.title: list(chart.multiline.tag) for chart in c.chart}
        for c in proto.category
    }


@pytest.mark.filterwarnings("ignore:'critical_sharpness' is not measured")
def test_every_curve_stands_in_one_chart(tmp_path: Path) -> None:
    board = TensorBoardLogger(tmp_path)
    monitor = NTKMonitor(6, every_n_steps=2, metrics=(*METRICS, *OPTIONAL))
    fit(tmp_path, classifier(with_batch_norm), [monitor], logger=board)
    seen = events(board)
    assert list(page(seen)) == ["ntk"]
    patterns = [p for tags in page(seen)["ntk"].values() for p in tags]
    curves = {tag for tag in seen.Tags()["scalars"] if tag.startswith("ntk/")}
    matched: list[str] = []
    for tag in curves:
        hits = [p for p in patterns if re.compile(p).match(tag)]  # as TensorBoard does
        assert len(hits) <= 1, tag
        matched += hits
    alone = {"ntk/seconds", "ntk/batches", "ntk/sharpness"}
    assert {t for t in curves if not any(re.match(p, t) for p in patterns)} == alone
    # Only the limit of infinite width has no curve here.
    unused = set(patterns) - set(matched)
    assert {p for p in unused if "val_" not in p} == {"ntk/infinite_gap$"}


def test_several_callbacks_share_one_layout(tmp_path: Path) -> None:
    board = TensorBoardLogger(tmp_path)
    kinds = (KernelDrift, KernelSpectrum, LinearizationGap, StabilityEdge)
    parts = [kind(6, every_n_steps=5) for kind in kinds]
    other = NTKMonitor(6, every_n_steps=5, prefix="my run", metrics=("drift",))
    fit(tmp_path, classifier(), [*parts, other], logger=[board, CSVLogger(tmp_path)])
    found = page(events(board))
    assert list(found) == ["ntk", "my run"]
    first = next(iter(found["ntk"].values()))
    assert first == ["ntk/drift$", "ntk/kernel_distance$", "ntk/linearization_gap$"]
    assert found["my run"]["share of the time"] == [r"my\ run/overhead$"]
    assert found["ntk"]["share of the time"] == [
        f"ntk/{kind}_overhead$" for kind in ("drift", "spectrum", "linearization", "stability")
    ]


def test_a_forecast_has_a_chart_of_its_own(tmp_path: Path) -> None:
    """And a family of curves is one pattern; the charts stand in the order of the figure."""
    board = TensorBoardLogger(tmp_path)
    callbacks = [
        LossForecast(data(40)[:8], every_n_steps=5),
        NTKMonitor(6, every_n_steps=5, metrics=("module_drift", "param_drift", "nngp_rank")),
    ]
    with pytest.warns(UserWarning, match="trained on"):
        fit(tmp_path, classifier(), callbacks, logger=board)
    found = page(events(board))
    assert found["forecast"] == {
        "loss: as the kernel at the start predicts it, and as it is": [
            "forecast/predicted$",
            "forecast/actual$",
        ],
        "relative movement": ["forecast/param_drift$", "forecast/buffer_drift$"],
        "share of the time": ["forecast/overhead$"],
    }
    assert list(found["ntk"].items())[1:3] == [
        ("rank", ["ntk/nngp_rank$"]),
        ("drift of each module", ["ntk/module_drift/.*$"]),
    ]


def test_the_layout_can_be_left_to_others(tmp_path: Path) -> None:
    board = TensorBoardLogger(tmp_path)
    monitors = [
        NTKMonitor(6, prefix="a", tensorboard_layout=False, metrics=("drift",)),
        KernelSpectrum(6, prefix="b"),
    ]
    fit(tmp_path, classifier(), monitors, logger=board)
    assert list(page(events(board))) == ["b"]
    board = TensorBoardLogger(tmp_path)
    fit(tmp_path, classifier(), [KernelDrift(6, tensorboard_layout=False)], logger=board)
    assert "custom_scalars__config__" not in events(board).Tags()["tensors"]


@pytest.mark.parametrize(
    ("options", "drawn"),
    [
        ({"every_n_steps": 1, "figure_every": 4}, [0, 4, 8, 10]),
        ({"every_n_steps": 3, "figure_every": 4}, [0, 6, 9, 10]),  # of 0, 3, 6, 9, 10
        ({"every_n_steps": 3, "figure_every": 1}, [0, 3, 6, 9, 10]),
        ({"at_steps": [1, 2, 9], "figure_every": 100}, [0, 10]),
        ({"every_n_steps": 3}, [0, 3, 9, 10]),
    ],
)
def test_figures_have_a_cadence_of_their_own(
    options: dict[str, Any], drawn: list[int], tmp_path: Path
) -> None:
    board = TensorBoardLogger(tmp_path)
    fit(tmp_path, classifier(), [KernelDrift(6, **options)], logger=board)
    assert [i.step for i in events(board).Images("ntk/kernel")] == drawn


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("figure_every", 0, ValueError),
        ("figure_every", 2.5, TypeError),
        ("tensorboard_layout", "yes", TypeError),
    ],
)
def test_bad_arguments(name: str, value: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=f"`{name}` must be"):
        NTKMonitor(**{name: value})
