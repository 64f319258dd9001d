"""The appearance network of section 9.1: one image -> C masks that share every pixel by a softmax."""

from __future__ import annotations

import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from ..mosis.appearance import Neck
from ..mosis.config import NETWORKS
from ..mosis.darknet import Darknet
from .config import Preset

NECK_WIDTHS: dict[Preset, tuple[int, int, int, int]] = {"resnet50": (256, 128, 96, 64), "small": (96, 64, 48, 32)}
"""Channels of the neck at strides 32, 16, 8 and 4."""


class AppearanceNetwork(nn.Module):
    """Backbone, top-down neck to stride 4, one logit a channel and pixel. Image sides must be multiples of 32."""

    def __init__(self, preset: Preset, channels: int) -> None:
        super().__init__()
        self.backbone = Resnet50() if preset == "resnet50" else _small_backbone()
        widths = NECK_WIDTHS[preset]
        self.neck = Neck(self.backbone.channels[::-1], widths, depth=1)
        self.output = nn.Conv2d(widths[-1], channels, 1)

    def forward(self, images: Tensor) -> Tensor:
        """images (B, 3, H, W) RGB in [0, 1] -> mask logits (B, C, H, W) float32, interpolated from stride 4."""
        # The one place where images are normalised: [0, 1] to [-1, 1].
        features = self.neck(self.backbone(2 * images - 1)[::-1])
        logits = self.output(features[-1]).float()
        return F.interpolate(logits, scale_factor=4.0, mode="bilinear", align_corners=False)


class Resnet50(nn.Module):
    """torchvision's ResNet-50, random weights, without its classifier."""

    channels = (256, 512, 1024, 2048)
    """Channels of the features at strides 4, 8, 16 and 32."""

    def __init__(self) -> None:
        super().__init__()
        self.body = torchvision.models.resnet50(weights=None)
        del self.body.fc, self.body.avgpool

    def forward(self, images: Tensor) -> list[Tensor]:
        """images (B, 3, H, W) -> features (B, channels, H / s, W / s) for s = 4, 8, 16, 32."""
        body = self.body
        features = body.maxpool(body.relu(body.bn1(body.conv1(images))))
        stages = []
        for stage in (body.layer1, body.layer2, body.layer3, body.layer4):
            features = stage(features)
            stages.append(features)
        return stages


def _small_backbone() -> Darknet:
    spec = NETWORKS["small"]
    return Darknet(spec.stem, spec.stem_stride, spec.widths, spec.blocks)
