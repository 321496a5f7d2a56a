"""`NTKMonitor`: whether training is lazy, in every logger of the Trainer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from torch_ntk._types import ParameterSelection
from torch_ntk.monitor import METRICS, ForwardFn, InputFn, KernelOutput, LossLike, ProbeLike

from ._base import KernelCallback

_NOT_GIVEN = ("self", "__class__")


class NTKMonitor(KernelCallback):
    r"""Watches the Neural Tangent Kernel on a fixed probe during training.

    At each measurement, Θ_t being the kernel on the probe and θ_0, f_0, Θ_0 those of the reference
    (the first step of the run, also after a resume), it logs:

    - `ntk/drift` = ‖Θ_t - Θ_0‖_F / ‖Θ_0‖_F, 0 for lazy training, and `ntk/kernel_distance`, 1 less
      the cosine between the two: how far the kernel has turned, from 0 to 1;
    - `ntk/lambda_min`, `ntk/lambda_max`, `ntk/condition`: the spectrum's ends, which are the
      slowest and the fastest rates at which gradient descent fits the probe, and their ratio;
    - `ntk/effective_rank`: the exponential of the entropy of the spectrum;
    - `ntk/noise_floor`: the size below which an eigenvalue means nothing, also where λ_min is
      larger than 0 and below it; `ntk/numerical_rank`: how many are above it;
    - `ntk/velocity` = ‖Θ_t - Θ_s‖_F / (‖Θ_t‖_F (t - s)) with the measurement before, at step s;
    - `ntk/alignment`: the cosine between Θ_t and the targets' Gram matrix;
    - `ntk/param_drift` = ‖θ_t - θ_0‖ / ‖θ_0‖;
    - `ntk/linearization_gap` = ‖f_t - f_t^lin‖ / ‖f_t - f_0‖ with
      f_t^lin = f_0 + ⟨θ_t - θ_0, ∇f_0⟩;
    - `ntk/buffer_drift`, only for networks with floating-point buffers: how far the running
      statistics, through which f_t moves as well, have gone; and, where they are taken on the probe
      (`recalibrate`), `ntk/statistics_share`: the part of the outputs' movement that they make up;
    - `ntk/seconds`, the wall time of the measurement, and `ntk/overhead`, the share of the time
      since training began (or was resumed) that measurements have taken, this one included;
    - `ntk/batches`, how many training batches have been seen: the second axis beside the logged
      step, which counts optimizer steps and falls behind under gradient accumulation;
    - `ntk/anchor_step`, the step of the reference, once, only if it is not 0, as for a monitor that
      was added when a run was resumed;

    and figures: the kernel ordered by class, the spectrum with its history, the network's outputs
    against those of its linearization; at the end a text with the verdict. What has no value, such
    as the alignment with targets of a single class, is left out with one warning.

    Training with the monitor is bitwise the training without it. Θ_0, f_0 and the linearization
    are taken with the buffers (running statistics) of the reference, Θ_t and f_t with the current
    ones. With
    averaged weights (`StochasticWeightAveraging`, `WeightAveraging`) the trained ones are measured,
    also at the last step.

    Resumed from a checkpoint, the monitor keeps its reference, its probe and the parameters by
    which the kernel is taken; if the same Trainer fits once more, it goes on; in a new Trainer, or
    with another model, it begins anew.

    Args:
        probe: The number of samples to take from the first training batch as it passes, where None
            is up to 64, or fewer where those would take more than half a second and more than
            eight training steps, or half of the budget of the whole run; or the samples: a batch of
            the form of the training's, `x`, `(x, y)`, or of a dataset `(dataset, indices)` or
            `Subset(dataset, indices)`, read once. Samples that
            equal an earlier one are left out. A batch may be a tensor or any nesting of mappings,
            tuples, lists and dataclasses. What of it is input follows from the network's `forward`:
            of a sequence as many entries as that requires, `(x, y)` one and `(x, lengths, y)` two
            for `forward(x, lengths)`; of a mapping the keys that it names, or all if it takes
            `**kwargs`, but no targets (`labels`, `y`, …) without which it works; or the
            mapping as it is, if it takes one argument. Where that cannot be told, the error says
            which `input_fn` to pass.
        validation_probe: Samples of the same forms on which drift, alignment and linearization gap
            are measured as well, logged as `ntk/val_drift`, …; a number takes them from the first
            validation batch, that of the sanity check.
        every_n_steps: Measure at multiples of this; None measures as often as `max_overhead`
            allows, and at ten steps or more of a run of 50 if that takes less than five seconds.
            The first and the last step are always measured.
        at_steps: Measure at exactly these steps, besides the first and the last; instead of
            `every_n_steps`, `schedule` and `max_overhead`.
        anchor_at: The step at which the reference is taken, and before which nothing is measured;
            None is the first one. The running statistics of normalization mean nothing in a fresh
            network, and move kernel and outputs until they have settled.
        schedule: `"linear"`, or `"log"` for about four points per doubling of the step.
        output: The kernel's output reduction: `"mean"`, `"trace"`, `"pseudo"`, `"full"` or
            `"probed"`. None is `"mean"`, and for networks with more than 64 outputs (a vocabulary,
            a map of pixels) `"probed"`: the mean kernel estimated from eight random directions of
            the outputs, the same at every step, in the memory of a few batches.
        kernel: `"gradient"` measures Θ = J Jᵀ, by which gradient descent moves the outputs;
            `"optimizer"` J P Jᵀ, by which the optimizer in use does: `precondition` of
            `torch_ntk.empirical_ntk` with its state at each measurement. That of Adam and its like
            begins with the first step, so that Θ_0 is the kernel of the first measurement after
            it, and what comes before has parameters and linearization only. P moves too, fast in
            the first steps: with `at_steps` drift is measured from a later one.
        metrics: Which of the metrics above to measure, without the prefix, and which of those that
            are measured on request only, `torch_ntk.monitor.OPTIONAL`, as in
            `metrics=(*torch_ntk.monitor.METRICS, "stability")`. `torch_ntk.monitor.MEANINGS` says
            of each what it is; `"stability"` takes the full kernel, and is known for some
            optimizers (`StabilityEdge`); `"critical_sharpness"` takes any optimizer, some ten
            forward passes and a copy of the parameters at every step, and starts with the second
            step that is seen.
        log_figures: Whether to draw figures, at the first and the last point and between them as
            `figure_every` says; with them `ntk.json` is written into the folder of a run of
            TensorBoard, of which `torch-ntk report` makes a page.
        figure_every: Draw at the first point at or after each multiple of so many steps; None
            draws at the 1st, 2nd, 4th, 8th, … point as far as a fifth of `max_overhead` allows.
        tensorboard_layout: Whether to write the layout of TensorBoard's page "Custom scalars", on
            which the curves stand in groups. A run has room for one layout: False leaves it to
            `SummaryWriter.add_custom_scalars` calls of your own.
        theta_0: `"inside"` keeps θ_0 in each checkpoint; `"beside"` writes it once, to a
            safetensors file beside the checkpoints whose hash they know, which spares each of them
            the size of the model and has to go where they go. Where it cannot be written,
            `on_error="warn"` keeps θ_0 inside.
        max_overhead: The share of the running time that measurements may take when
            neither `every_n_steps` nor `at_steps` is given.
        on_error: `"raise"` ends the run if a measurement fails, `"warn"` says so once and goes
            on. A network that has diverged to NaN only ever warns.
        prefix: The first part of the logged names. Several monitors need different ones.
        network: The name of the submodule to measure; None takes the LightningModule's own
            `forward`, or else its only submodule with parameters.
        input_fn: From a training batch to the inputs, in any form that the network takes, or to
            `(inputs, targets)`, for batches in which the two cannot be told apart:
            `input_fn=lambda batch: ((batch[0], batch[1]), None)`.
        forward_fn: `forward_fn(net, batch)` returns the outputs `[N, ...]` in place of the
            network's call, for modules that return something else than one tensor or `.logits`,
            and for other outputs, such as the loss of every sample. It gets samples in the form
            that batches have, mappings with all of their keys, but of `(x, y)` only x. It is called
            with the module that `network` names, and must use no other parameters.
        params: Names of parameters, or a predicate `(name, tensor) -> bool`, by which the kernel
            is taken; by default every parameter that requires grad at the first step.
        batch_size: Samples per block of a measurement; None follows the free memory.
        max_memory: About how many bytes a kernel may take, as an integer or like `"2GB"`; where a
            single sample takes more, this is an error. None is a quarter of what is free, or up to
            half of it where a single sample needs that; a kernel takes less where that costs little
            time, in small blocks, and by groups of outputs.
        dtype: `torch.float32` or `torch.float64`, in which the network is evaluated; None is
            float64 for small networks where the device has it, and float32 for those of more than
            65,536 parameters, or of more than half a megabyte of activations of a sample times
            outputs, which float64 would take up to three times as long. Where eigenvalues are
            taken, products over parameters are added up in float64 in any case: added up in
            float32, λ_min of a kernel is mostly noise (`accumulate` of `empirical_ntk`). The
            linearization gap of outputs in float32 is off by about 1e-6 ‖f_t‖ / ‖f_t - f_0‖.
        method: As in `torch_ntk.empirical_ntk`.
        loss: For the metrics `"stability"` and `"critical_sharpness"`, as in `StabilityEdge`.
        recalibrate: Whether running statistics of batch normalization are taken on the probe at
            every measurement, in place of those of the training, which mean nothing in a fresh
            network and follow with a lag; the network keeps its own.
        coupled: Whether a batch is one input, whose rows of outputs are the samples: a graph, all
            of it in each batch. `forward_fn` chooses the rows, and `input_fn` says what is input:
            `NTKMonitor(coupled=True, input_fn=lambda data: ((data.x, data.edge_index),
            data.y[mask]), forward_fn=lambda net, x: net(*x)[mask])`.

    The state in a checkpoint holds tensors and plain values only and loads under
    `weights_only=True`. It is about the size of the model, because of θ_0 (the optimizer's state
    is not in it); besides θ_0 it has the buffers, the probe, its outputs, Θ_0 and the last Θ_t
    `[N, N]` in float64, and for each measurement N eigenvalues and one number per metric. With
    `theta_0="beside"` it is all this without θ_0.

    Under DDP the first process measures while the others wait for it where gradients are exchanged
    next. A kernel that takes long (`"mean"`, `"trace"` or `"probed"`, a tenth of a second or more)
    is shared: each process takes the part of some of the outputs, and sends it without a collective
    operation; what does not come in time, or from a network that is not bit for bit the same, the
    first process takes itself. The first and the last measurement are its own. Its last values and
    the verdict are sent to the others after the first batch, at the ends of epochs, before
    validations and at the end, where all come; they wait at most for the `timeout` of
    `DDPStrategy`, by default 30 minutes, and a measurement that takes more than a quarter of it
    says so.

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
        probe: ProbeLike | None = None,
        *,
        validation_probe: ProbeLike | None = None,
        every_n_steps: int | None = None,
        at_steps: Iterable[int] | None = None,
        anchor_at: int | None = None,
        schedule: str = "linear",
        output: KernelOutput = None,
        kernel: str = "gradient",
        metrics: Sequence[str] = METRICS,
        log_figures: bool = True,
        figure_every: int | None = None,
        tensorboard_layout: bool = True,
        theta_0: str = "inside",
        max_overhead: float = 0.05,
        on_error: str = "raise",
        prefix: str = "ntk",
        network: str | None = None,
        input_fn: InputFn | None = None,
        forward_fn: ForwardFn | None = None,
        params: ParameterSelection = None,
        batch_size: int | None = None,
        max_memory: int | str | None = None,
        dtype: torch.dtype | None = None,
        method: str = "auto",
        loss: LossLike = "auto",
        recalibrate: bool = True,
        coupled: bool = False,
    ) -> None:
        # All arguments by name, as they came: nothing else is local yet.
        given = {name: value for name, value in locals().items() if name not in _NOT_GIVEN}
        super().__init__(**given)
