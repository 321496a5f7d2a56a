"""`NTKMonitor`: whether training is lazy, in every logger of the Trainer."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from torch_ntk._types import Output, ParameterSelection
from torch_ntk.monitor import DEFAULT_PROBE, METRICS, InputFn, ProbeLike

from ._base import KernelCallback
from ._network import ForwardFn


class NTKMonitor(KernelCallback):
    r"""Watches the Neural Tangent Kernel on a fixed probe during training.

    At each measurement, Θ_t being the kernel on the probe and θ_0, f_0, Θ_0 what was at the anchor
    (the first step of the run, also after a resume), it logs:

    - `ntk/drift` = ‖Θ_t - Θ_0‖_F / ‖Θ_0‖_F, 0 for lazy training;
    - `ntk/lambda_min`, `ntk/lambda_max`, `ntk/condition`: the spectrum's ends, which are the
      slowest and the fastest rates at which gradient descent fits the probe, and their ratio;
    - `ntk/effective_rank`: the exponential of the entropy of the spectrum;
    - `ntk/alignment`: the cosine between Θ_t and the targets' Gram matrix;
    - `ntk/param_drift` = ‖θ_t - θ_0‖ / ‖θ_0‖;
    - `ntk/linearization_gap` = ‖f_t - f_t^lin‖ / ‖f_t - f_0‖ with
      f_t^lin = f_0 + ⟨θ_t - θ_0, ∇f_0⟩;
    - `ntk/buffer_drift`, only for networks with floating-point buffers: how far the running
      statistics, through which f_t moves as well, have gone;
    - `ntk/seconds`, the wall time of the measurement;
    - `ntk/anchor_step`, once, only if the anchor is not at step 0, as for a monitor that was added
      when a run was resumed;

    and figures: the kernel ordered by class, the spectrum with its history, the network's outputs
    against those of its linearization; at the end a text with the verdict. What has no value, such
    as the alignment with targets of a single class, is left out with one warning.

    Training with the monitor is bitwise the training without it. Θ_0, f_0 and the linearization
    stand on the buffers (running statistics) of the anchor, Θ_t and f_t on the current ones. With
    averaged weights (`StochasticWeightAveraging`, `WeightAveraging`) the trained ones are measured,
    also at the last step.

    Resumed from a checkpoint, the monitor keeps its anchor, its probe and the parameters by which
    the kernel is taken; if the same Trainer fits once more, it goes on; in a new Trainer, or with
    another model, it begins anew.

    Args:
        probe: The number of samples to take from the first training batch as it passes, by
            default up to 64, or the samples: `x` or `(x, y)`.
        every_n_steps: Measure at multiples of this; None measures as often as `max_overhead`
            allows. The first and the last step are always measured.
        schedule: `"linear"`, or `"log"` for about four points per doubling of the step.
        output: The kernel's output reduction: `"mean"`, `"trace"`, `"pseudo"` or `"full"`.
        metrics: Which of the metrics above to measure, without the prefix.
        log_figures: Whether to draw figures, at the 1st, 2nd, 4th, 8th, … and the last point.
        max_overhead: The share of the running time that measurements may take when
            `every_n_steps` is None.
        on_error: `"raise"` ends the run if a measurement fails, `"warn"` says so once and goes
            on. A network that has diverged to NaN only ever warns.
        prefix: The first part of the logged names. Several monitors need different ones.
        network: The name of the submodule to measure; None takes the LightningModule's own
            `forward`, or else its only submodule with parameters.
        input_fn: From a training batch to `x` or `(x, y)`, for batches of an unusual form, and
            for those in which targets cannot be told from masks or second views.
        forward_fn: From the network and `x` to the outputs `[N, O]`, for modules that return
            something else than one tensor, or take more than `x`:
            `forward_fn=lambda net, x: net(input_ids=x)["logits"]`. It is called with the module
            that `network` names, and must use no other parameters.
        params: Names of parameters, or a predicate `(name, tensor) -> bool`, by which the kernel
            is taken; by default every parameter that requires grad at the first step.
        batch_size: Samples per block of a measurement; None follows the free memory.
        dtype: `torch.float32` or `torch.float64` for the measurement; None is float64 where the
            device has it, because λ_min of a kernel computed in float32 is mostly noise.
        method: As in `torch_ntk.empirical_ntk`.

    The state in a checkpoint holds tensors and plain values only and loads under
    `weights_only=True`. It is about the size of the model, because of θ_0.

    Raises:
        TypeError, ValueError: An argument is wrong.

    References:
        Jacot et al. 2018 (the kernel), Lee et al. 2019 (the linearization), Chizat, Oyallon, Bach,
        "On lazy training in differentiable programming" (2019).

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[NTKMonitor()])  # doctest: +SKIP
    """

    def __init__(
        self,
        probe: ProbeLike = DEFAULT_PROBE,
        *,
        every_n_steps: int | None = None,
        schedule: str = "linear",
        output: Output = "mean",
        metrics: Sequence[str] = METRICS,
        log_figures: bool = True,
        max_overhead: float = 0.05,
        on_error: str = "raise",
        prefix: str = "ntk",
        network: str | None = None,
        input_fn: InputFn | None = None,
        forward_fn: ForwardFn | None = None,
        params: ParameterSelection = None,
        batch_size: int | None = None,
        dtype: torch.dtype | None = None,
        method: str = "auto",
    ) -> None:
        super().__init__(
            probe,
            metrics=metrics,
            every_n_steps=every_n_steps,
            schedule=schedule,
            output=output,
            log_figures=log_figures,
            max_overhead=max_overhead,
            on_error=on_error,
            prefix=prefix,
            network=network,
            input_fn=input_fn,
            forward_fn=forward_fn,
            params=params,
            batch_size=batch_size,
            dtype=dtype,
            method=method,
        )
