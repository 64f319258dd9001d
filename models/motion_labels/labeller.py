"""Unlabelled clip in, instance labels out, from motion alone."""

from __future__ import annotations

import numpy as np
import torch

from ..common.instances import Instances
from .background import Motion, fit_motion, residual_magnitude
from .config import MotionLabelsConfig
from .consensus import FrameVotes, agree, link, warp_labels
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
        _label_shot(reader, (first, end), config, labels)
    return labels


FEATS = {}


def features(here, votes, row, track, mask, seen):
    import cv2
    ious = []
    for l in seen:
        o = l == track; m = mask & (l >= 0)
        ious.append((m & o).sum() / max(1, (m | o).sum()))
    own = here.votes[here.ids.index(track) + 1] if track in here.ids else None
    gain = float((here.votes[0] - own)[mask].clip(-1, 1).mean()) if own is not None else 0
    ring = (cv2.dilate(mask.astype(np.uint8), np.ones((7, 7))) > 0) & ~(cv2.dilate(mask.astype(np.uint8), np.ones((3, 3))) > 0)
    rim = float((own - here.votes[0])[ring].clip(-1, 1).mean()) if own is not None else 0
    inner = mask & ~(cv2.erode(mask.astype(np.uint8), np.ones((5, 5))) > 0)
    rimin = float((here.votes[0]-own)[inner].clip(-1, 1).mean()) if own is not None else 0
    h, w = mask.shape
    border = (mask[0].sum() + mask[-1].sum() + mask[:, 0].sum() + mask[:, -1].sum()) / np.sqrt(mask.sum())
    per = mask.sum() / max(1, inner.sum())
    return [np.mean(ious) if ious else 0, min(ious) if ious else 0, gain, rim, rimin, border, np.log(mask.sum()), per, track in here.ids]


WEIGHT = 1.5
MINTRACK = 3


def _label_shot(reader, shot, config, labels):
    window = []
    next_id = 1
    for frame in range(*shot):
        found = _frame_votes(reader, frame, shot, config)
        if found is None:
            here = FrameVotes(frame, np.zeros((1, *reader.size), np.float32), [], np.zeros(reader.size, np.int16))
        else:
            votes, assigned = found
            past = [warp_labels(o.labels, reader.chain(frame, o.frame)) for o in reversed(window[-config.window or len(window):])]
            ids = link(assigned, len(votes) - 1, past, next_id)
            next_id = max([next_id, *[i + 1 for i in ids]])
            here = FrameVotes(frame, votes, ids, np.array([0, *ids], np.int16)[assigned])
        window.append(here)
        if frame - config.window >= shot[0]:
            _finish(reader, window, frame - config.window, config, labels)
        window = window[-(2 * config.window + 1):]
    for frame in range(max(shot[0], shot[1] - config.window), shot[1]):
        _finish(reader, window, frame, config, labels)
    seen = {}
    for frame in range(*shot):
        for track in labels[frame].track_ids.tolist() if len(labels[frame]) else []:
            seen[track] = seen.get(track, 0) + 1
    for frame in range(*shot):
        if len(labels[frame]):
            kept = torch.tensor([seen[t] >= min(MINTRACK, shot[1] - shot[0] - 1) for t in labels[frame].track_ids.tolist()])
            p = labels[frame]
            sc = [FEATS[(frame, t)][0] * seen[t] / (seen[t] + 6) for t in p.track_ids.tolist()]
            labels[frame] = p.with_scores(torch.tensor(sc).float())[kept]


def _finish(reader, window, frame, config, labels):
    here = next(v for v in window if v.frame == frame)
    around = [v for v in window if v.frame != frame and abs(v.frame - frame) <= config.window]
    votes, ids, seen = agree(reader, here, around, WEIGHT)
    assigned = smooth_labels(votes, config.smoothness)
    masks, tracks = [], []
    for row, track in enumerate(ids, 1):
        mask = clean_mask(assigned == row)
        if config.min_area <= mask.sum() <= config.max_area * mask.size:
            masks.append(mask)
            tracks.append(track)
            FEATS[(frame, track)] = features(here, votes, row, track, mask, seen)
    if masks:
        masks = torch.from_numpy(np.stack(masks))
        labels[frame] = Instances.from_masks(masks, torch.full((len(masks),), 0.5), torch.tensor(tracks))


def _frame_votes(reader: FlowReader, frame: int, shot: tuple[int, int], config: MotionLabelsConfig):
    height, width = reader.size
    scale = max(1.0, min(height, width) / 128)
    found = _propose(reader, frame, shot, config, scale)
    if found is None:
        return None
    seeds, levels = found
    votes = 0
    for motions in levels:
        costs = motion_costs(reader.frames, frame, motions, seeds)
        votes = votes + votes_from_costs(costs, seeds, config.photometric_cap, reach=round(5 * scale))
    assigned = smooth_labels(votes, config.smoothness)
    labels = np.zeros(reader.size, np.int64)
    kept = []
    for row in range(1, len(votes)):
        mask = clean_mask(assigned == row)
        if config.min_area <= mask.sum() <= config.max_area * mask.size:
            kept.append(row)
            labels[mask] = len(kept)
    return votes[[0, *kept]], labels


EXTRA = 0


def _propose(reader, frame, shot, config, scale):
    seeds = np.zeros((0, *reader.size), bool)
    levels = []
    clear = False
    extra = 0
    for gap in config.gaps:
        others = [other for other in (frame - gap, frame + gap) if shot[0] <= other < shot[1]]
        motions = [m for m in (fit_motion(reader, frame, other, scale) for other in others) if m is not None]
        if not motions:
            continue
        magnitude = residual_magnitude(motions)
        if clear:
            extra += 1
        new = find_seeds(motions, magnitude, config.min_speed * scale * gap, config.min_area, _MOST_INSTANCES)
        taken = seeds.any(0)
        new = np.stack([s for s in new if (s & taken).sum() < 0.3 * s.sum()] or [np.zeros(reader.size, bool)])
        new = new[new.any((1, 2))]
        if len(new):
            seeds = np.concatenate([seeds, new & ~taken])
            levels.append(motions)
        clear = clear or any(np.median(magnitude[s]) > config.clear_motion * scale for s in new)
        if clear and extra >= EXTRA:
            break
    if not len(seeds):
        return None
    return seeds, levels


def _confidence(costs: np.ndarray, row: int, mask: np.ndarray) -> float:
    gain = (costs[0] - costs[row])[mask].mean() / (costs[0][mask].mean() + 1e-3)
    return float(np.clip(gain, 0, 1))
