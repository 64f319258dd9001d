"""The E-step: which instances of each image, with which masks and motions, explain it best.

Expectation-maximisation on the thesis' photometric reconstruction. Here instances are found, in closed form, from
three frames and from what the network proposes for the middle one; the M-step teaches them to the network.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...common.instances import Instances
from ..config import MotionModel
from .candidates import anchor_candidates, choose, join, mask_candidates
from .grid import halve
from .moves import gain, mean_under
from .scene import CELL, look, observe, stabilised_volume
from .segments import Proposed, explain, join_alike, outline, redraw, refit, start
from .volume import CAP

RADIUS = 4
"""Of the cost volume in cells: the fastest motion against the background that is searched for."""
MOST = 8
"""Instances of an image."""
MIN_AREA = 40
"""Pixels of an instance."""
MIN_GAIN = 0.2
"""Share of the background's error that an instance explains."""


@torch.no_grad()
def find_instances(
    frame: Tensor,
    after: Tensor,
    before: Tensor,
    proposed: Proposed | None = None,
    *,
    motion_model: MotionModel = "affine",
) -> list[Instances]:
    """Instances of each of `frame` (B, 3, H, W) RGB in [0, 1]; their scores are gains.

    after, before: the frames after and before, as far from it as each other; H and W are multiples of 4.
    proposed: what the network thinks; without it, they are found from motion alone.
    motion_model: of the instances against the background, whose own motion it does not touch.
    """
    if len(frame) == 0:
        return []
    with torch.autocast(frame.device.type, enabled=False):  # half precision holds neither pixels nor normal equations
        return _find(frame, after, before, proposed, motion_model)


def _find(
    frame: Tensor, after: Tensor, before: Tensor, proposed: Proposed | None, motion_model: MotionModel
) -> list[Instances]:
    scene = observe(frame.float(), after.float(), before.float())
    coarse = look(scene, CELL)
    # As in the volume: else what nothing explains, a flash or a hidden part, seems to gain by any motion.
    coarse = coarse._replace(still=coarse.still.clamp(max=CAP))
    volume = stabilised_volume(scene, coarse, RADIUS)
    parts, small = [anchor_candidates(volume, RADIUS)], None
    if proposed is not None:
        proposed = Proposed(proposed.masks.float(), proposed.objectness.float())
        small = Proposed(halve(proposed.masks), proposed.objectness)
        parts.append(mask_candidates(volume, small.masks > 0.5, 1 + small.objectness, RADIUS))
    candidates = join(parts)
    segments = start(candidates, choose(candidates, coarse.still, MOST), coarse)
    segments = refit(scene, coarse, segments, translate=True, motion_model=motion_model)
    segments, costs = join_alike(coarse, segments, explain(scene, coarse, segments))
    segments = refit(scene, coarse, redraw(coarse, segments, costs, small), motion_model=motion_model)
    fine = look(scene, 1)
    costs = explain(scene, fine, segments)
    masks = outline(fine, segments, costs, proposed)
    gains = gain(mean_under(masks, costs), mean_under(masks, fine.still[segments.image]))
    kept = (masks.flatten(1).sum(1) >= MIN_AREA) & (gains >= MIN_GAIN)
    return unpack(masks[kept], gains[kept], segments.image[kept], len(frame))


def unpack(masks: Tensor, scores: Tensor, image: Tensor, count: int) -> list[Instances]:
    """Instances of each of `count` images from masks (N, H, W) bool, scores (N,), image (N,)."""
    order = torch.argsort(image, stable=True)
    together = Instances.from_masks(masks[order], scores[order])
    counts = torch.bincount(image, minlength=count).tolist()
    fields = [field.split(counts) for field in (together.boxes, together.scores, together.masks)]
    return [Instances(*parts) for parts in zip(*fields, strict=True)]
