"""Darknet, YOLOv3's backbone: residual blocks between convolutions of stride 2. Darknet-53 is one setting of it."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


class ConvBlock(nn.Sequential):
    """Convolution that keeps the size (at stride 1), batch norm, LeakyReLU 0.1: what all of YOLOv3 is made of."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False),
            nn.BatchNorm2d(outputs),
            nn.LeakyReLU(0.1, inplace=True),
        )


class ResidualBlock(nn.Module):
    """x + 3x3(1x1(x)), the 1x1 halving the channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce = ConvBlock(channels, channels // 2, 1)
        self.expand = ConvBlock(channels // 2, channels, 3)

    def forward(self, features: Tensor) -> Tensor:
        return features + self.expand(self.reduce(features))


class Darknet(nn.Module):
    """Features at strides 4, 8, 16 and 32.

    stem: channels of the first convolution; stem_stride: 1 as in Darknet-53, whose first stage then brings stride 2;
        2 where the stem itself does, and full resolution is left at once.
    widths, blocks: channels and residual blocks of every stage, each of which halves the size: five stages after a
        stem of stride 1, four after one of stride 2.
    """

    def __init__(self, stem: int, stem_stride: int, widths: Sequence[int], blocks: Sequence[int]) -> None:
        super().__init__()
        assert len(widths) == len(blocks) == 6 - stem_stride, "the last stage must end at stride 32"
        self.stem = ConvBlock(3, stem, 3, stem_stride)
        stages = []
        for inputs, outputs, count in zip((stem, *widths), widths, blocks, strict=False):
            residual = (ResidualBlock(outputs) for _ in range(count))
            stages.append(nn.Sequential(ConvBlock(inputs, outputs, 3, stride=2), *residual))
        self.stages = nn.ModuleList(stages)
        self.channels = tuple(widths[-4:])
        """Channels of the features at strides 4, 8, 16 and 32."""

    def forward(self, images: Tensor) -> list[Tensor]:
        """images (B, 3, H, W), sides multiples of 32 -> features (B, channels, H / s, W / s) for s = 4, 8, 16, 32."""
        features, all_features = self.stem(images), []
        for stage in self.stages:
            features = stage(features)
            all_features.append(features)
        return all_features[-4:]
