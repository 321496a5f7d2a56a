"""Networks of torchvision for the table of cases, made so small that a loop can differentiate them.

The deep ones have their largest weights frozen: what is left holds every kind of layer, and the
Jacobians that a loop makes of it fit in memory.
"""

from __future__ import annotations

from case_models import with_statistics
from torch import nn


def _without_the_largest(model: nn.Module, most: int) -> nn.Module:
    for p in model.parameters():
        p.requires_grad_(p.numel() <= most)
    return model


def resnet() -> nn.Module:
    """ResNet-18."""
    from torchvision.models import resnet18

    return with_statistics(resnet18(num_classes=3))


def mobilenet() -> nn.Module:
    """MobileNetV3 small: depthwise convolutions, squeeze and excitation, hard activations."""
    from torchvision.models import mobilenet_v3_small

    return with_statistics(mobilenet_v3_small(num_classes=2))


def convnext() -> nn.Module:
    """ConvNeXt tiny: layer scales, layer norms over channels, stochastic depth."""
    from torchvision.models import convnext_tiny

    model = convnext_tiny(num_classes=2)
    for name, p in model.named_parameters():
        if name.endswith("layer_scale"):
            nn.init.normal_(p)  # as built, all but nothing passes through a block
    return _without_the_largest(model, 200_000)


def densenet() -> nn.Module:
    """DenseNet-121: concatenations, and batch norms before the convolutions."""
    from torchvision.models import densenet121

    return _without_the_largest(with_statistics(densenet121(num_classes=2)), 60_000)


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
