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

    Θ_t is the kernel on the probe at step t. θ_0, f_0 and Θ_0 are parameters, outputs and kernel at
    the reference, which is the first step of the run, also after a resume. Each measurement logs:

    - `ntk/drift` = ‖Θ_t - Θ_0‖_F / ‖Θ_0‖_F, which is 0 for lazy training, and
      `ntk/kernel_distance` = 1 - cos(Θ_t, Θ_0), how far the kernel has turned, from 0 to 1;
    - `ntk/lambda_min`, `ntk/lambda_max`, `ntk/condition`: the smallest and the largest eigenvalue,
      which are the slowest and the fastest rate at which gradient descent fits the probe, and their
      ratio;
    - `ntk/effective_rank`: the exponential of the entropy of the spectrum;
    - `ntk/noise_floor`: the size below which an eigenvalue is rounding error, even if λ_min is
      positive; `ntk/numerical_rank`: the number of eigenvalues above it;
    - `ntk/velocity` = ‖Θ_t - Θ_s‖_F / (‖Θ_t‖_F (t - s)), where s is the step of the measurement
      before;
    - `ntk/alignment`: the cosine between Θ_t and the Gram matrix of the targets;
    - `ntk/param_drift` = ‖θ_t - θ_0‖ / ‖θ_0‖;
    - `ntk/linearization_gap` = ‖f_t - f_t^lin‖ / ‖f_t - f_0‖ with
      f_t^lin = f_0 + ⟨θ_t - θ_0, ∇f_0⟩;
    - `ntk/buffer_drift`, only for networks with floating-point buffers: the relative change of
      running statistics, which also changes f_t; and, if they are computed on the probe
      (`recalibrate`), `ntk/statistics_share`: the part of the outputs' movement that is due to
      them;
    - `ntk/seconds`, the wall time of the measurement, and `ntk/overhead`, the share of the time
      since training began (or was resumed) that measurements have taken, this one included;
    - `ntk/batches`, the number of training batches so far. The logged step counts optimizer steps
      instead, of which there are fewer under gradient accumulation;
    - `ntk/anchor_step`, the step of the reference, once and only if it is not 0, as for a monitor
      that was added when a run was resumed.

    It also logs figures (the kernel ordered by class, the spectrum with its history, and the
    outputs of the network against those of its linearization) and, at the end, a text with the
    verdict. A metric that is not defined, such as the alignment with targets of a single class, is
    left out with one warning.

    Training with the monitor is bitwise equal to training without it. Θ_0, f_0 and the
    linearization are computed with the buffers (running statistics) of the reference, Θ_t and f_t
    with the current ones. If weights are averaged (`StochasticWeightAveraging`, `WeightAveraging`),
    the trained weights are measured, also at the last step.

    After a resume from a checkpoint, the monitor has the same reference, probe and parameters by
    which the kernel is computed. It also continues if the same Trainer fits once more. In a new
    Trainer, or with another model, it starts again.

    Args:
        probe: The samples, or the number of samples to take from the first training batch. None
            takes up to 64, but fewer if a measurement of these would take more than half a second
            and more than eight training steps, or half of the budget of the whole run. Samples are
            given as a batch of the form of the training's, as `x`, as `(x, y)`, or from a dataset
            as `(dataset, indices)` or `Subset(dataset, indices)`, which is read once. Samples that
            equal an earlier one are left out. A batch may be a tensor or any nesting of mappings,
            tuples, lists and dataclasses. The network's `forward` determines which parts of it are
            inputs. Of a sequence these are as many entries as `forward` requires: one of `(x, y)`
            for `forward(x)`, and two of `(x, lengths, y)` for `forward(x, lengths)`. Of a mapping
            they are the keys that `forward` names, or all of them if it takes `**kwargs`, without
            targets (`labels`, `y`, …) if it works without these; or the whole mapping if `forward`
            takes one argument. If the inputs cannot be determined, the error says which `input_fn`
            to pass.
        validation_probe: Samples in one of these forms on which drift, alignment and linearization
            gap are measured as well, logged as `ntk/val_drift`, …. If it is a number, they are
            taken from the first validation batch, which is that of the sanity check.
        every_n_steps: Measure at multiples of this number. None measures as often as `max_overhead`
            allows, and at no fewer than ten steps of a run of 50 steps or more if these
            measurements take less than five seconds. The first and the last step are always
            measured.
        at_steps: Measure at exactly these steps, and at the first and the last one. This replaces
            `every_n_steps`, `schedule` and `max_overhead`.
        anchor_at: The step of the reference, before which nothing is measured. None is the first
            step. The running statistics of normalization are arbitrary in a new network, and change
            kernel and outputs until they have settled.
        schedule: `"linear"`, or `"log"` for about four points per doubling of the step.
        output: The kernel's output reduction: `"mean"`, `"trace"`, `"pseudo"`, `"full"` or
            `"probed"`. None is `"mean"` for networks with up to 64 outputs. For more (a vocabulary,
            a map of pixels) it is `"probed"`: the mean kernel estimated from eight random
            directions of the outputs, which are the same at every step, in the memory of a few
            batches.
        kernel: `"gradient"` measures Θ = J Jᵀ, which describes how gradient descent changes the
            outputs. `"optimizer"` measures J P Jᵀ, which describes how the optimizer in use changes
            them; see `precondition` of `torch_ntk.empirical_ntk`. P follows from the optimizer's
            state at each measurement. Adam and similar optimizers have no P before the first step,
            so that Θ_0 is the kernel of the first measurement after it, and measurements before
            have no metrics of the kernel. P changes fast in the first steps; with `anchor_at` or
            `at_steps`, drift is measured from a later step.
        metrics: The names, without the prefix, of the metrics to measure. Besides the metrics above
            these may be the names in `torch_ntk.monitor.OPTIONAL`, as in
            `metrics=(*torch_ntk.monitor.METRICS, "stability")`. `torch_ntk.monitor.MEANINGS`
            explains every metric. `"stability"` needs the full kernel, and is defined for some
            optimizers (`StabilityEdge`). `"critical_sharpness"` is defined for any optimizer, needs
            about ten forward passes and a copy of the parameters at every step, and begins at the
            second step.
        log_figures: Whether to draw figures, at the first and the last point and between them as
            `figure_every` says. Together with them `ntk.json` is written into the folder of a
            TensorBoard run, from which `torch-ntk report` makes a page.
        figure_every: Draw at the first point at or after each multiple of this number of steps.
            None draws at the 1st, 2nd, 4th, 8th, … point, as far as a fifth of `max_overhead`
            allows.
        tensorboard_layout: Whether to write the layout of TensorBoard's page "Custom scalars",
            which groups the curves. A run can have one layout only. Pass False to write one of your
            own with `SummaryWriter.add_custom_scalars`.
        theta_0: `"inside"` stores θ_0 in each checkpoint. `"beside"` writes it once, to a
            safetensors file in the folder of the checkpoints, which are then smaller by the size of
            the model. They contain the hash of the file, and need it next to them when they are
            moved. If it cannot be written and `on_error` is `"warn"`, θ_0 is stored inside.
        max_overhead: The share of the running time that measurements may take if neither
            `every_n_steps` nor `at_steps` is given.
        on_error: If a measurement fails, `"raise"` ends the run, and `"warn"` gives one warning and
            continues. A network that has diverged to NaN causes a warning only, in any case.
        prefix: The first part of the logged names. Several monitors need different prefixes.
        network: The name of the submodule to measure. None measures the LightningModule itself if
            it has a `forward`, or else its only submodule with parameters.
        input_fn: A function of a training batch that returns the inputs, in any form that the
            network accepts, or `(inputs, targets)`. It is needed for batches in which the two
            cannot be distinguished: `input_fn=lambda batch: ((batch[0], batch[1]), None)`.
        forward_fn: A function `forward_fn(net, batch)` that returns the outputs `[N, ...]` and
            replaces the call of the network. It is needed for modules that return something else
            than one tensor or `.logits`, and for other outputs, such as the loss of every sample.
            It gets samples in the form of the training's batches: a mapping with all of its keys,
            but only x of `(x, y)`. Its first argument is the module that `network` names, and it
            must use no other parameters.
        params: The names of the parameters by which the kernel is computed, or a predicate
            `(name, tensor) -> bool`. By default these are all parameters that require grad at the
            first step.
        batch_size: The number of samples per block of a measurement; None chooses it by the free
            memory.
        max_memory: About how many bytes a kernel may take, as an integer or like `"2GB"`. If a
            single sample takes more, this is an error. None is between an eighth and a quarter of
            the free memory, or up to half of it if a single sample needs that. A kernel uses less
            memory, by small blocks and groups of outputs, if that takes little time.
        dtype: The floating type in which the network is evaluated, `torch.float32` or
            `torch.float64`. None is float64 for small networks if the device supports it. Kernels
            are taken in float32 for networks with more than 65,536 parameters, or with more than
            half a megabyte of activations per sample times outputs, for which float64 would take up
            to three times as long. If eigenvalues are computed, sums over parameters are
            accumulated in float64 in any case (`accumulate` of `empirical_ntk`), since in float32
            λ_min of a kernel would be mostly rounding error. Outputs and their linearization are
            in float32 for networks of more than a million parameters, or two megabytes. The gap of
            those has an error of about 1e-6 ‖f_t‖ / ‖f_t - f_0‖, and is left out where that is more
            than 0.03.
        method: The method for kernels, as in `torch_ntk.empirical_ntk`.
        loss: The loss for the metrics `"stability"` and `"critical_sharpness"`, as in
            `StabilityEdge`.
        recalibrate: Whether running statistics of batch normalization are computed on the probe at
            every measurement. The running statistics of the training are arbitrary in a new
            network, and lag behind its parameters later. Those in the network are not changed.
        coupled: Whether a batch is one input, such as a whole graph, and the samples are the rows
            of its outputs. `forward_fn` selects the rows, and `input_fn` the inputs:
            `NTKMonitor(coupled=True, input_fn=lambda data: ((data.x, data.edge_index),
            data.y[mask]), forward_fn=lambda net, x: net(*x)[mask])`.

    The state in a checkpoint consists of tensors and plain values, and can be loaded with
    `weights_only=True`. It has about the size of the model, because of θ_0; the optimizer's state
    is not in it. It also contains the buffers, the probe, its outputs, Θ_0 and the last Θ_t
    `[N, N]` in float64, and for each measurement N eigenvalues and one number per metric. With
    `theta_0="beside"` it does not contain θ_0.

    Under DDP the first process measures, while the others wait for it at the next exchange of
    gradients. A kernel (`"mean"`, `"trace"` or `"probed"`) that takes a tenth of a second or more
    is shared: each process computes the part of some of the outputs, and sends it without a
    collective operation. A part that does not arrive in time, or that comes from a network which is
    not bitwise the same, is computed by the first process. The first and the last measurement are
    not shared. The last values and the verdict are sent to the other processes after the first
    batch, at the ends of epochs, before validations and at the end. The other processes wait at
    most for the `timeout` of `DDPStrategy`, by default 30 minutes. If a measurement takes more than
    a quarter of that, there is a warning.

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
        # All arguments by name: there are no other local variables yet.
        given = {name: value for name, value in locals().items() if name not in _NOT_GIVEN}
        super().__init__(**given)
