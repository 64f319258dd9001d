"""The synthetic source of thesis section 3.9: textured shapes over a moving background, with truth for everything.

Generating needs numpy and cv2 only; `open_synthetic` makes clip archives of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tasks.sources.synthetic.jobs import open_synthetic
from tasks.sources.synthetic.pictures import open_texture
from tasks.sources.synthetic.render import render
from tasks.sources.synthetic.scene import draw_scene, timestamps_us

if TYPE_CHECKING:
    from tasks.params import SyntheticParams

__all__ = ["SyntheticVideo", "generate_video", "open_synthetic"]


@dataclass(frozen=True)
class SyntheticVideo:
    """One generated video with its truth.

    frames: (T, H, W, 3) uint8 RGB. masks: (D, T, H, W) bool, the visible part of each object, D may be 0.
    flow_uv: (T, H, W, 2) float32 pixels, frame t -> t + 1, zeros for the last; None where dense_flow is off.
    timestamps_us: T microseconds.
    """

    frames: np.ndarray
    masks: np.ndarray
    flow_uv: np.ndarray | None
    timestamps_us: list[int]


def generate_video(params: SyntheticParams, index: int) -> SyntheticVideo:
    """Generate video `index` in memory; the same on every machine."""
    scene = draw_scene(params, index, open_texture(params.pictures))
    rendered = list(render(scene, optical_flow=params.dense_flow))
    frames = np.stack([one.image for one in rendered])
    masks = np.stack([one.masks for one in rendered], axis=1)
    flow_uv = np.stack([one.flow_uv for one in rendered if one.flow_uv is not None]) if params.dense_flow else None
    return SyntheticVideo(frames, masks, flow_uv, timestamps_us(params))
