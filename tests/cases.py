"""One table of models; every engine is held to it.

A row builds a float64 model, always the same one, as a user may hand it over: in train mode,
with running statistics, partly frozen, compiled. To add a case, add a row to `CASES`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
import torch.nn.functional as F
from case import Case as Case
from case_functions import (
    Autoencoder,
    Energy,
    Field,
    Packed,
    RotaryLanguageModel,
    evidence,
    residual,
    with_lengths,
    with_noise,
)
from case_libraries import (
    GraphNetwork,
    bert,
    efficientnet,
    gpt2,
    graph,
    last_tokens,
    llama,
    lora,
    masked_tokens,
    timm_vit,
    tokens,
)
from case_models import (
    CountingNet,
    ExpSquare,
    FunctionalNet,
    ItemNet,
    LSTMCellLoop,
    MaskedAttention,
    OldSquare,
    OwnGenerators,
    Reused,
    StopGradient,
    TiedEmbedding,
    TiedLinears,
    WritesIntoZeros,
    frozen,
    with_statistics,
)
from case_vision import convnext, densenet, mobilenet, resnet, vision_transformer
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from torch_ntk.nn import MLP, NTKConv2d, NTKConvTranspose2d, NTKLinear


def _part_in_eval(model: nn.Sequential, index: int) -> nn.Module:
    model[index].eval()
    return model


class Lambda(nn.Module):
    """A module around a function of its submodules and the input."""

    def __init__(self, function: Callable[..., Tensor], *parts: nn.Module) -> None:
        super().__init__()
        self.function = function
        self.parts = nn.ModuleList(parts)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(*self.parts, x)


def _mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))


def _conv(**options: object) -> nn.Module:
    convolution = nn.Conv2d(2, 4, 3, **options)  # type: ignore[arg-type]
    return nn.Sequential(convolution, nn.ReLU(), nn.Conv2d(4, 3, 2), nn.Flatten(), nn.LazyLinear(3))


def _convolutional(**options: object) -> nn.Module:
    model = _conv(**options)
    model(torch.zeros(1, 2, 6, 6))
    return model


CASES: tuple[Case, ...] = (
    Case("ntk_mlp", lambda: MLP([5, 8, 3], "relu"), (5,)),
    Case(
        "ntk_conv",
        lambda: nn.Sequential(
            NTKConv2d(2, 4, 3, padding=1, groups=2, padding_mode="circular"),
            nn.ReLU(),
            nn.AvgPool2d(2),
            nn.Flatten(),
            NTKLinear(4 * 9, 3, sigma_w=2**0.5),
        ),
        (2, 6, 6),
    ),
    Case(
        "ntk_conv_transpose",
        lambda: nn.Sequential(
            NTKConvTranspose2d(2, 4, 3, stride=2, groups=2),
            nn.ReLU(),
            NTKConvTranspose2d(4, 2, (1, 3), padding=1, output_padding=1, dilation=2, bias=False),
        ),
        (2, 3, 3),
    ),
    Case("mlp", _mlp, (5,)),
    Case(
        "conv_groups_dilation", lambda: _convolutional(groups=2, dilation=2, padding=1), (2, 6, 6)
    ),
    Case(
        "conv_stride_same", lambda: _convolutional(padding="same", padding_mode="zeros"), (2, 6, 6)
    ),
    Case("conv_circular", lambda: _convolutional(padding=1, padding_mode="circular"), (2, 6, 6)),
    Case("conv_reflect", lambda: _convolutional(padding=1, padding_mode="reflect"), (2, 6, 6)),
    Case(
        "conv_transpose_maxpool",
        lambda: nn.Sequential(
            nn.ConvTranspose2d(2, 3, 3, stride=2), nn.PReLU(3), nn.MaxPool2d(3), nn.Conv2d(3, 2, 2)
        ),
        (2, 4, 4),
    ),
    Case(
        "batchnorm1d",
        lambda: with_statistics(
            nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2))
        ),
        (5,),
    ),
    Case(
        "batchnorm2d",
        lambda: with_statistics(
            nn.Sequential(
                nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2)
            )
        ),
        (2, 6, 6),
    ),
    Case(
        "layer_norm",
        lambda: nn.Sequential(nn.Linear(5, 6), nn.LayerNorm(6), nn.GELU(), nn.Linear(6, 2)),
        (5,),
    ),
    Case(
        "group_norm",
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.SiLU(), nn.Conv2d(4, 1, 3)
        ),
        (2, 6, 6),
    ),
    Case(
        "instance_norm",
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3), nn.InstanceNorm2d(4, affine=True), nn.Tanh(), nn.Conv2d(4, 1, 3)
        ),
        (2, 6, 6),
    ),
    Case(
        "dropout",
        lambda: nn.Sequential(
            nn.Linear(5, 8), nn.Dropout(0.5), nn.ReLU(), nn.AlphaDropout(0.3), nn.Linear(8, 2)
        ),
        (5,),
    ),
    Case(
        "part_frozen_in_eval",
        lambda: _part_in_eval(
            nn.Sequential(nn.Linear(5, 6), nn.Dropout(0.5), nn.Dropout(0.5), nn.Linear(6, 2)), 1
        ),
        (5,),
    ),
    Case("tied_embedding", TiedEmbedding, (4,), tokens=7),
    Case(
        "embedding_max_norm",
        lambda: nn.Sequential(nn.Embedding(7, 4, max_norm=1.0), nn.Flatten(), nn.Linear(12, 2)),
        (3,),
        tokens=7,
    ),
    Case(
        "embedding_bag",
        lambda: nn.Sequential(nn.EmbeddingBag(7, 4, mode="mean"), nn.Linear(4, 2)),
        (3,),
        tokens=7,
    ),
    # Of this one torch has the first derivative in reverse mode, and no other.
    Case(
        "embedding_bag_max",
        lambda: nn.Sequential(nn.EmbeddingBag(7, 4, mode="max"), nn.Linear(4, 2)),
        (3,),
        tokens=7,
    ),
    Case("layer_twice", lambda: Reused(2), (5,)),
    Case("layer_three_times", lambda: Reused(3), (5,)),
    Case("tied_weights", TiedLinears, (5,)),
    Case(
        "spectral_norm_hook",
        lambda: nn.Sequential(
            nn.utils.spectral_norm(nn.Linear(5, 6)),
            nn.Tanh(),
            nn.utils.spectral_norm(nn.Linear(6, 2)),
        ),
        (5,),
    ),
    Case(
        "spectral_norm_parametrized",
        lambda: nn.Sequential(
            parametrizations.spectral_norm(nn.Linear(5, 6)), nn.Tanh(), nn.Linear(6, 2)
        ),
        (5,),
    ),
    Case(
        "weight_norm_hook",
        lambda: nn.Sequential(nn.utils.weight_norm(nn.Linear(5, 6)), nn.Tanh(), nn.Linear(6, 2)),
        (5,),
        inexact_on_gpu="weight_norm",
    ),
    Case(
        "weight_norm_parametrized",
        lambda: nn.Sequential(
            parametrizations.weight_norm(nn.Linear(5, 6)), nn.Tanh(), nn.Linear(6, 2)
        ),
        (5,),
        inexact_on_gpu="weight_norm",
    ),
    Case("rnn", lambda: Lambda(lambda r, x: r(x)[0], nn.RNN(3, 4, batch_first=True)), (2, 3)),
    Case(
        "gru",
        lambda: Lambda(
            lambda r, h, x: h(r(x)[0][:, -1]),
            nn.GRU(3, 4, batch_first=True, bidirectional=True),
            nn.Linear(8, 2),
        ),
        (2, 3),
    ),
    Case(
        "lstm",
        lambda: Lambda(
            lambda r, h, x: h(r(x)[0][:, -1]),
            nn.LSTM(3, 4, batch_first=True, num_layers=2, dropout=0.5),
            nn.Linear(4, 2),
        ),
        (2, 3),
    ),
    Case("lstm_cell_loop", LSTMCellLoop, (2, 3)),
    Case(
        "attention",
        lambda: Lambda(
            lambda a, h, x: h(a(x, x, x)[0][:, 0]),
            nn.MultiheadAttention(4, 2, dropout=0.2, batch_first=True),
            nn.Linear(4, 2),
        ),
        (3, 4),
    ),
    Case("attention_mask_of_infinities", MaskedAttention, (3, 4)),
    Case(
        "transformer_encoder",
        lambda: nn.Sequential(
            nn.TransformerEncoderLayer(4, 2, 6, dropout=0.1, batch_first=True),
            nn.Flatten(),
            nn.Linear(12, 2),
        ),
        (3, 4),
    ),
    Case("functional", FunctionalNet, (5,)),
    Case(
        "relu_inplace_first",
        lambda: nn.Sequential(
            nn.ReLU(inplace=True), nn.Linear(5, 4), nn.ReLU(True), nn.Linear(4, 2)
        ),
        (5,),
    ),
    Case("frozen_parameters", lambda: frozen(_mlp(), "0.weight", "2.bias"), (5,)),
    Case(
        "outputs_of_two_dimensions",
        lambda: nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4), nn.Unflatten(1, (2, 2))),
        (5,),
    ),
    Case(
        "scalar_outputs",
        lambda: Lambda(
            lambda f, x: f(x).squeeze(), nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 1))
        ),
        (5,),
    ),
    Case(
        "parameter_of_no_entries", lambda: Lambda(_wide_and_empty, nn.Linear(5, 2), _empty()), (5,)
    ),
    Case(
        "function_of_the_old_kind",
        lambda: Lambda(lambda f, x: OldSquare.apply(f(x)), nn.Linear(5, 3)),
        (5,),
    ),
    Case(
        "function_of_the_new_kind",
        lambda: Lambda(lambda f, x: ExpSquare.apply(f(x)), nn.Linear(5, 3)),
        (5,),
    ),
    Case(
        "residual",
        lambda: Lambda(
            lambda f, g, x: g(x + f(x)), nn.Sequential(nn.Linear(5, 5), nn.ReLU()), _mlp()
        ),
        (5,),
    ),
    Case(
        "gradient_stopped_by_no_grad",
        lambda: StopGradient(detach=False),
        (5,),
    ),
    Case("gradient_stopped_by_detach", lambda: StopGradient(detach=True), (5,)),
    Case("item_on_data", ItemNet, (5,)),
    Case("writes_into_zeros", WritesIntoZeros, (5,)),
    Case("counts_and_remembers", lambda: CountingNet(ticks=False), (5,)),
    Case(
        "counts_in_a_tensor",
        lambda: CountingNet(ticks=True),
        (5,),
    ),
    Case("generators_of_its_own", OwnGenerators, (5,)),
    # vmap's rule for prelu mixes up samples and outputs when there are as many of each.
    Case("as_many_outputs_as_samples", lambda: nn.PReLU(4), (4,)),
    Case(
        "fourier",
        lambda: Lambda(lambda f, x: torch.fft.rfft(f(x)).abs(), nn.Linear(5, 4)),
        (5,),
    ),
    Case("compiled", lambda: torch.compile(_mlp().double(), backend="eager"), (5,)),
    Case(
        "compiled_inside",
        lambda: nn.Sequential(torch.compile(_mlp().double(), backend="eager"), nn.Linear(3, 2)),
        (5,),
    ),
    Case("vision_transformer", vision_transformer, (3, 32, 32)),
    Case("resnet18", resnet, (3, 32, 32), slow=True),
    Case("mobilenet_v3", mobilenet, (3, 32, 32)),
    Case("convnext", convnext, (3, 32, 32)),
    Case("densenet", densenet, (3, 32, 32)),
    # Models as other libraries build them, and outputs and batches of their users.
    Case("gpt2", gpt2, (5,), tokens=11, form=tokens, options={"forward_fn": last_tokens}),
    Case("bert_with_mask", bert, (5,), tokens=11, form=masked_tokens),
    Case("llama", llama, (5,), tokens=11, form=tokens, options={"forward_fn": last_tokens}),
    Case("complex_rotary_embedding", RotaryLanguageModel, (5,), tokens=11),
    Case("low_rank_adapters", lora, (4,), tokens=11, form=masked_tokens),
    Case("timm_vit", timm_vit, (3, 8, 8)),
    Case("timm_efficientnet", efficientnet, (3, 16, 16)),
    Case(
        "graph_convolution",
        lambda: GraphNetwork("GCNConv"),
        (3,),
        form=graph,
        options={"coupled": True},
    ),
    Case(
        "graph_attention",
        lambda: GraphNetwork("GATConv"),
        (3,),
        form=graph,
        options={"coupled": True},
    ),
    Case("physics_informed", Field, (2,), options={"forward_fn": residual}),
    Case("energy_and_forces", Energy, (3, 3)),
    Case("packed_lstm", Packed, (4, 3), form=with_lengths),
    Case("evidence_bound", Autoencoder, (7,), form=with_noise, options={"forward_fn": evidence}),
    Case(
        "batchnorm_in_training",
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(36, 2)
        ),
        (2, 5, 5),
        options={"coupled": True, "training": True},
    ),
)


def _empty() -> nn.Module:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Initializing zero-element")
        layer = nn.Linear(0, 2)
    nn.init.ones_(layer.bias)
    return layer


def _wide_and_empty(f: nn.Module, empty: nn.Module, x: Tensor) -> Tensor:
    return F.softplus(f(x)) * empty(x[:, :0])


def by_name(name: str) -> Case:
    """The row of that name."""
    return next(c for c in CASES if c.name == name)
