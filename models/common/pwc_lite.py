"""PWC-Lite: a pyramid of features matched by cost volumes, coarse to fine (MoSIS eq. 5, shared by methods).

Correlation, convolutions and warping are all circular (thesis section 9.2), so that the border is no special place.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .circular import CircularConv, double
from .cost_volume import correlate
from .warp import warp


class MotionNetwork(nn.Module):
    """Dense motion features of a frame pair, eq. 5.

    search_range: radius of every cost volume, pixels of its pyramid level.
    widths: channels of the pyramid's levels, strides 2, 4, 8, ...; frame sides must be multiples of the last stride and
        the coarsest level at least `search_range` wide and high.
    channels: d, depth of the features given out.
    """

    def __init__(self, search_range: int = 4, *, widths: Sequence[int] = (16, 24, 32), channels: int = 32) -> None:
        super().__init__()
        self.channels = channels
        inputs = (3, *widths[:-1])
        self.levels = nn.ModuleList(_Level(i, o) for i, o in zip(inputs, widths, strict=True))
        coarsest = len(widths) - 1
        self.matchers = nn.ModuleList(
            _Matcher(width, channels - 2, search_range, from_coarser=index < coarsest)
            for index, width in enumerate(widths)
        )

    def forward(self, frame_a: Tensor, frame_b: Tensor) -> Tensor:
        """frame_a, frame_b: (B, 3, H, W) RGB in [0, 1] -> V_t (B, d, H, W): what moves from a to b, on a's grid."""
        return self._match(self._pyramid(frame_a), self._pyramid(frame_b))

    def both_ways(self, frame_a: Tensor, frame_b: Tensor) -> tuple[Tensor, Tensor]:
        """`self(a, b)` and `self(b, a)`, with each frame's pyramid computed once."""
        both = self._pyramid(torch.cat((frame_a, frame_b)))
        swapped = [torch.cat(level.chunk(2)[::-1]) for level in both]
        forward, backward = self._match(both, swapped).chunk(2)
        return forward, backward

    def _pyramid(self, frame: Tensor) -> list[Tensor]:
        """Features (B, width, H / 2^l, W / 2^l), finest level first."""
        stride = 2 ** len(self.levels)
        if frame.shape[-2] % stride or frame.shape[-1] % stride:
            raise ValueError(f"frame sides {tuple(frame.shape[-2:])} must be multiples of {stride}")
        pyramid, features = [], 2 * frame - 1
        for level in self.levels:
            features = level(features)
            pyramid.append(features)
        return pyramid

    def _match(self, pyramid_a: list[Tensor], pyramid_b: list[Tensor]) -> Tensor:
        coarser = None
        for features_a, features_b, matcher in zip(pyramid_a[::-1], pyramid_b[::-1], self.matchers[::-1], strict=True):
            motion, flow_uv = matcher(features_a, features_b, coarser)
            # The same motion is twice as many pixels of the next level, and of the frame after the last, at stride 2.
            coarser = double(torch.cat((motion, 2 * flow_uv), dim=1))
        assert coarser is not None
        return coarser  # the network's own estimate of the flow stands among the features, last


class DenseMotion(nn.Conv2d):
    """One motion a pixel instead of one a segment, for the supervised check of section 9.2.

    Features (B, d, H, W) -> flow_uv (B, 2, H, W) pixels.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, 2, kernel_size=1)


class _Level(nn.Sequential):
    """One step down the pyramid: half the size."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(*_conv(inputs, outputs, stride=2), *_conv(outputs, outputs))


class _Matcher(nn.Module):
    """Cost volume of one level, decoded into motion features and a flow, from those of the coarser level if any."""

    def __init__(self, width: int, channels: int, search_range: int, *, from_coarser: bool) -> None:
        super().__init__()
        self.search_range = search_range
        costs = (2 * search_range + 1) ** 2
        inputs = costs + width + (channels + 2 if from_coarser else 0)
        self.decoder = nn.Sequential(*_conv(inputs, 2 * channels), *_conv(2 * channels, channels))
        self.flow = CircularConv(channels, 2)

    def forward(self, features_a: Tensor, features_b: Tensor, coarser: Tensor | None) -> tuple[Tensor, Tensor]:
        """Features of two frames at one level -> (motion (B, channels, h, w), flow_uv (B, 2, h, w) level pixels).

        coarser: both of the coarser level, (B, channels + 2, h, w), in pixels of this one.
        """
        if coarser is None:
            motion = self.decoder((self._costs(features_a, features_b), features_a))
            return motion, self.flow(motion)
        flow_uv = coarser[:, -2:]
        costs = self._costs(features_a, warp(features_b, flow_uv, outside="circular").to(features_b.dtype))
        motion = self.decoder((costs, features_a, coarser))
        return motion, flow_uv + self.flow(motion)

    def _costs(self, features_a: Tensor, features_b: Tensor) -> Tensor:
        return correlate(_contrast(features_a), _contrast(features_b), self.search_range)


def _conv(inputs: int, outputs: int, stride: int = 1) -> tuple[nn.Module, nn.Module]:
    return CircularConv(inputs, outputs, stride), nn.LeakyReLU(0.1, inplace=True)


def _contrast(features: Tensor) -> Tensor:
    """Each pixel's departure from the frame's mean, at unit length: (B, C, h, w) -> the same shape.

    Without the mean removed, features of one sign all resemble each other and matching hardly learns; of unit length,
    the true match is a maximum, and costs have one scale at every level.
    """
    return F.normalize(features - features.mean(dim=(2, 3), keepdim=True))
