"""Networks of torchvision for the table of cases, with every kind of layer but few of each."""

from __future__ import annotations

from case_models import with_statistics
from torch import nn


def resnet() -> nn.Module:
    """ResNet-18 with its largest weights frozen, so that a loop's Jacobians fit in memory."""
    from torchvision.models import resnet18

    model = with_statistics(resnet18(num_classes=3))
    for p in model.parameters():
        p.requires_grad_(p.numel() <= 150_000)
    return model


def mobilenet() -> nn.Module:
    """MobileNetV3: depthwise convolutions, squeeze and excitation, hard activations."""
    from torchvision.models.mobilenetv3 import InvertedResidualConfig, MobileNetV3

    def block(*settings: int | bool | str) -> InvertedResidualConfig:
        return InvertedResidualConfig(*settings, width_mult=1.0)

    blocks = [
        block(16, 3, 16, 16, True, "RE", 2, 1),
        block(16, 3, 24, 24, False, "RE", 2, 1),
        block(24, 5, 32, 24, True, "HS", 1, 1),  # with the residual sum
    ]
    return with_statistics(MobileNetV3(blocks, last_channel=32, num_classes=2))


def convnext() -> nn.Module:
    """ConvNeXt: layer scales, layer norms over channels, stochastic depth."""
    from torchvision.models.convnext import CNBlockConfig, ConvNeXt

    blocks = [CNBlockConfig(8, 16, 1), CNBlockConfig(16, None, 2)]
    model = ConvNeXt(blocks, stochastic_depth_prob=0.2, num_classes=2)
    for name, p in model.named_parameters():
        if name.endswith("layer_scale"):
            nn.init.normal_(p)  # as built, all but nothing passes through a block
    return model


def densenet() -> nn.Module:
    """DenseNet: concatenations, and batch norms before the convolutions."""
    from torchvision.models import DenseNet

    options = {"growth_rate": 4, "block_config": (2, 2), "num_init_features": 8, "bn_size": 2}
    return with_statistics(DenseNet(**options, num_classes=2))


def vision_transformer() -> nn.Module:
    """A class token, position embeddings, attention and layer norms."""
    from torchvision.models import VisionTransformer

    model = VisionTransformer(
        image_size=32,
        patch_size=8,
        num_layers=2,
        num_heads=2,
        hidden_dim=32,
        mlp_dim=48,
        dropout=0.1,
        attention_dropout=0.1,
        num_classes=3,
    )
    nn.init.normal_(model.class_token)
    nn.init.normal_(model.heads.head.weight)  # as built it is zero, and the kernel all but zero
    return model
