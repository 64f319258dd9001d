"""PWC-Lite as an estimator of dense optical flow, trained on true flow or on frame pairs alone."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from ..common.circular import CircularConv
from ..common.pwc_lite import DenseMotion, MotionNetwork
from ..common.warp import warp
from ..interface import Batch, OpticalFlowEstimator
from .config import PwcLiteConfig
from .losses import (
    census_error,
    edge_aware_smoothness,
    find_visible,
    photometric_error,
    robust_error,
    squared_error,
    trust_visible,
)
from .sizes import estimate_resized


class PwcLite(OpticalFlowEstimator):
    """The motion network of MoSIS eq. 5 with one vector read out at every pixel (thesis section 9.2)."""

    def __init__(self, config: PwcLiteConfig) -> None:
        super().__init__()
        self.config = config
        self.needs = "optical_flow" if config.objective == "supervised" else "pairs"
        self.motion = MotionNetwork(config.search_range)
        channels = self.motion.channels
        self.readout: nn.Module = DenseMotion(channels) if config.readout == "linear" else _Refiner(channels)

    def estimate(self, frames_a: Tensor, frames_b: Tensor) -> Tensor:
        """Frames of any size; they are matched at the next one that the pyramid can halve."""
        stride = 2 ** len(self.motion.levels)
        return estimate_resized(
            self._estimate, frames_a, frames_b, multiple=stride, least=stride * self.config.search_range
        ).float()

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        batch = crop_batch(batch, self.config.crop)
        return self._supervised(batch) if self.config.objective == "supervised" else self._unsupervised(batch)

    def _estimate(self, frames_a: Tensor, frames_b: Tensor) -> Tensor:
        return self._read(self.motion(frames_a, frames_b), frames_a, frames_b)

    def _read(self, features: Tensor, frames_a: Tensor, frames_b: Tensor) -> Tensor:
        """Features (B, d, H, W) -> flow_uv (B, 2, H, W) float32 pixels."""
        if isinstance(self.readout, _Refiner):
            return self.readout(features, frames_a, frames_b).float()
        return self.readout(features).float()

    def _supervised(self, batch: Batch) -> dict[str, Tensor]:
        assert batch.optical_flow is not None, "the supervised objective needs true optical flow"
        features = self.motion(batch.frame_a, batch.frame_b)
        flow_uv = self._read(features, batch.frame_a, batch.frame_b)
        penalise = squared_error if self.config.penalty == "squared" else robust_error
        flow = penalise(flow_uv, batch.optical_flow)
        coarse = penalise(features[:, -2:].float(), batch.optical_flow)
        mse = squared_error(flow_uv.detach(), batch.optical_flow)
        return {"flow": flow, "coarse": coarse, "mse": mse, "total": flow + self.config.coarse_weight * coarse}

    def _unsupervised(self, batch: Batch) -> dict[str, Tensor]:
        frames_a, frames_b = batch.frame_a, batch.frame_b
        there, back = (
            self._read(features, *frames)
            for features, frames in zip(
                self.motion.both_ways(frames_a, frames_b), ((frames_a, frames_b), (frames_b, frames_a)), strict=True
            )
        )
        terms = [self._explain(*one) for one in ((frames_a, frames_b, there, back), (frames_b, frames_a, back, there))]
        photometric, smoothness, visible = ((a + b) / 2 for a, b in zip(*terms, strict=True))
        total = photometric + self.config.smoothness * smoothness
        return {"photometric": photometric, "smoothness": smoothness, "visible": visible, "total": total}

    def _explain(self, frame: Tensor, other: Tensor, flow_uv: Tensor, back_uv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(photometric error, smoothness, share of visible pixels) of the motion from `frame` to `other`."""
        visible = trust_visible(find_visible(flow_uv, back_uv))
        if not self.config.occlusion:
            visible = torch.ones_like(visible)
        compare = census_error if self.config.photometric == "census" else photometric_error
        error = compare(frame, warp(other, flow_uv), visible)
        smoothness = edge_aware_smoothness(flow_uv, frame, sharpness=self.config.edge_sharpness)
        return error, smoothness, visible.float().mean()


def crop_batch(batch: Batch, side: int) -> Batch:
    """The same window of both frames and the motion, side x side pixels at a place drawn from torch's generator.

    Sides of the window are multiples of 8; a smaller frame stays whole along that side, and with side 0 along both.
    """
    height, width = batch.frame_a.shape[-2:]
    rows, columns = (min(length, side // 8 * 8) if side else length for length in (height, width))
    top, left = (int(torch.randint(free + 1, ())) for free in (height - rows, width - columns))
    window = (..., slice(top, top + rows), slice(left, left + columns))
    flow_uv = batch.optical_flow[window] if batch.optical_flow is not None else None
    return replace(batch, frame_a=batch.frame_a[window], frame_b=batch.frame_b[window], optical_flow=flow_uv)


class _Refiner(nn.Module):
    """A correction of the network's own estimate at full resolution, from the features, the frame and the residual that
    the estimate leaves: the pyramid ends at stride 2 and cannot follow an object's edge.
    """

    def __init__(self, channels: int, hidden: int = 24) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            CircularConv(channels + 6, hidden), nn.LeakyReLU(0.1, inplace=True),
            CircularConv(hidden, hidden), nn.LeakyReLU(0.1, inplace=True),
            CircularConv(hidden, 2),
        )  # fmt: skip

    def forward(self, features: Tensor, frames_a: Tensor, frames_b: Tensor) -> Tensor:
        flow_uv = features[:, -2:]
        residual = warp(frames_b, flow_uv.detach(), outside="circular") - frames_a
        return flow_uv + self.layers((features, frames_a, residual))
