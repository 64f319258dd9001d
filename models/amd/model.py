"""AMD: masks from one image, motion from two, judged by how well moving the masks rebuilds a frame."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..common.instances import Instances
from ..common.photometric import absolute_error, dissimilarity
from ..interface import Batch, Segmenter
from ..mosis.fusion import pool_motion, segment_flow
from ..mosis.losses import reconstruct
from ..mosis.motion import MotionNetwork, SegmentMotion
from .appearance import AppearanceNetwork
from .channels import ChannelRecord, choose_channels, find_instances
from .config import AmdConfig


class Amd(Segmenter):
    """Section 9.1, with a choice of channels in place of a person's.

    size: (height, width) in pixels of training frames, multiples of 32; prediction takes any such size.
    """

    def __init__(self, config: AmdConfig, size: tuple[int, int]) -> None:
        super().__init__()
        if size[0] % 32 or size[1] % 32:
            raise ValueError(f"training size {size} must be multiples of 32")
        self.config = config
        self.appearance = AppearanceNetwork(config.preset, config.channels)
        self.motion = MotionNetwork(config.search_range)
        self.segment_motion = SegmentMotion(self.motion.channels)
        self.record = ChannelRecord(config.channels)

    def masks(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) RGB in [0, 1] -> (B, C, H, W) float32 probabilities that sum to 1 over the channels."""
        return self.appearance(images).softmax(1)

    def features(self, frame_a: Tensor, frame_b: Tensor) -> Tensor:
        """Motion features V (B, d, H / s, W / s) of a pair (B, 3, H, W) that is shrunk by s = motion_stride first."""
        stride = self.config.motion_stride
        return self.motion(F.avg_pool2d(frame_a, stride), F.avg_pool2d(frame_b, stride))

    def motions(self, masks: Tensor, features: Tensor) -> Tensor:
        """One motion a channel: masks (B, C, H, W), features (B, d, H / s, W / s) -> (B, C, 2) pixels (u, v)."""
        stride = self.config.motion_stride
        pooled = pool_motion(F.avg_pool2d(masks, stride), features)
        read: Tensor = self.segment_motion(pooled)
        if self.config.readout == "flow":
            read = read + stride * pooled[..., -2:]  # the motion network's own estimate of the flow
        return read

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Photometric loss of the rebuilt frame: scalars "total", "photo", "dense" and the masks' mean "largest_share".

        Reads frame_a and frame_b. In training mode the record of the channels learns, too.
        """
        masks = self.masks(batch.frame_a)
        features = self.features(batch.frame_a, batch.frame_b)
        with torch.autocast(batch.frame_a.device.type, enabled=False):  # sub-pixel motion does not fit half precision
            motions = self.motions(masks, features.float())
            flow_uv = segment_flow(masks, motions)
            photo = self._compare(batch.frame_a, batch.frame_b, flow_uv)
            dense = self._dense(batch, features) if self.config.dense_weight else torch.zeros_like(photo)
        if self.training:
            self.record.update(masks.detach(), motions.detach(), batch.whole)
        share = masks.detach().mean((2, 3)).amax(1).mean()
        total = photo + self.config.dense_weight * dense
        return {"total": total, "photo": photo, "dense": dense, "largest_share": share}

    def _dense(self, batch: Batch, features: Tensor) -> Tensor:
        """The same loss under the motion network's own flow estimate at every pixel that it sees."""
        stride = self.config.motion_stride
        small = F.avg_pool2d(batch.frame_a, stride), F.avg_pool2d(batch.frame_b, stride)
        return self._compare(*small, features[:, -2:].float())

    def _compare(self, frame_a: Tensor, frame_b: Tensor, flow_uv: Tensor) -> Tensor:
        rebuilt, goal = reconstruct(frame_a, frame_b, flow_uv, direction=self.config.warp_direction)
        measure = absolute_error if self.config.photometric == "l1" else dissimilarity
        return measure(rebuilt, goal).mean()

    @torch.no_grad()
    def predict(
        self, images: Tensor, *, score_threshold: float | None = None, output_size: tuple[int, int] | None = None
    ) -> list[Instances]:
        """See `Segmenter.predict`: connected pieces of the channels that moved on their own in training."""
        threshold = self.config.score_threshold if score_threshold is None else score_threshold
        if len(images) == 0:
            return []
        masks = self.masks(images)
        if output_size is not None:
            masks = F.interpolate(masks, size=output_size, mode="bilinear", align_corners=False)
        chosen = self.chosen_channels()
        found = [find_instances(image_masks, chosen, min_area=self.config.min_area) for image_masks in masks]
        return [instances[instances.scores >= threshold] for instances in found]

    def chosen_channels(self) -> Tensor:
        """(C,) bool: the objects' channels, by what training saw of them; none before any training."""
        return choose_channels(
            self.record.coverage,
            self.record.contrast,
            min_coverage=self.config.min_coverage,
            min_contrast=self.config.min_contrast,
        )
