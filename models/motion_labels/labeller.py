"""Unlabelled clip in, instance labels out, from motion alone."""

from __future__ import annotations

import numpy as np
import torch

from ..common.instances import Instances
from .background import Motion, fit_motion, residual_magnitude
from .config import MotionLabelsConfig
from .motion import FlowReader, find_shots
from .proposals import find_seeds
from .refine import clean_mask, motion_costs, smooth_labels, votes_from_costs

_SMALLEST_SIDE = 16
_MOST_INSTANCES = 12


def label_clip(frames: np.ndarray, config: MotionLabelsConfig) -> list[Instances]:
    """Instances of each frame that move against the background.

    frames: (T, H, W, 3) uint8 RGB of one clip, evenly timed. Returns T Instances; scores are confidences in [0, 1]
    that rank labels. Frames without a usable neighbour (single frames, cuts on both sides) have none.
    Raises ValueError for another shape or dtype.
    """
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8:
        raise ValueError(f"frames must be (T, H, W, 3) uint8, not {frames.shape} {frames.dtype}")
    height, width = frames.shape[1:3]
    labels = [Instances.empty(height, width) for _ in range(len(frames))]
    if min(height, width) < _SMALLEST_SIDE:
        return labels
    reader = FlowReader(frames)
    for first, end in find_shots(reader):
        for frame in range(first, end):
            labels[frame] = _label_frame(reader, frame, (first, end), config)
    return labels


def _label_frame(reader: FlowReader, frame: int, shot: tuple[int, int], config: MotionLabelsConfig) -> Instances:
    height, width = reader.size
    scale = max(1.0, min(height, width) / 128)
    chosen = _choose_motions(reader, frame, shot, config, scale)
    if chosen is None:
        return Instances.empty(height, width)
    gap, motions, magnitude = chosen
    threshold = config.min_speed * scale * gap
    seeds = find_seeds(motions, magnitude, threshold, config.min_area, _MOST_INSTANCES)
    if not len(seeds):
        return Instances.empty(height, width)
    costs = motion_costs(reader.frames, frame, motions, seeds)
    votes = votes_from_costs(costs, seeds, config.photometric_cap, reach=round(5 * scale))
    assigned = smooth_labels(votes, config.smoothness)
    masks, scores = [], []
    for row in range(1, len(votes)):
        mask = clean_mask(assigned == row)
        if config.min_area <= mask.sum() <= config.max_area * mask.size:
            masks.append(mask)
            scores.append(_confidence(costs, row, mask))
    if not masks:
        return Instances.empty(height, width)
    return Instances.from_masks(torch.from_numpy(np.stack(masks)), torch.tensor(scores))


def _choose_motions(
    reader: FlowReader, frame: int, shot: tuple[int, int], config: MotionLabelsConfig, scale: float
) -> tuple[int, list[Motion], np.ndarray] | None:
    best = None
    for gap in config.gaps:
        others = [other for other in (frame - gap, frame + gap) if shot[0] <= other < shot[1]]
        motions = [m for m in (fit_motion(reader, frame, other, scale) for other in others) if m is not None]
        if not motions:
            continue
        magnitude = residual_magnitude(motions)
        best = gap, motions, magnitude
        if np.percentile(magnitude, 97) > config.clear_motion * scale:
            break
    return best


def _confidence(costs: np.ndarray, row: int, mask: np.ndarray) -> float:
    gain = (costs[0] - costs[row])[mask].mean() / (costs[0][mask].mean() + 1e-3)
    return float(np.clip(gain, 0, 1))
