"""Unlabelled clip in, instance labels out, from motion alone."""

from __future__ import annotations

from collections import Counter

import numpy as np
import torch

from ..common.instances import Instances
from ..common.outline import settle_outlines
from .appearance import colour_bins, count_colours, looks_like
from .carry import carry_on
from .config import MotionLabelsConfig
from .consensus import FrameVotes, agree, link, overlap, seen_from, total_weight
from .motion import FlowReader, find_shots
from .proposals import propose
from .refine import blame_hiding, clean_mask, motion_costs, smooth_labels, votes_from_costs

_SMALLEST_SIDE = 16
_MOST_INSTANCES = 12
_REACH = 5
_SURE_FRAMES = 6
"""An object found in this many frames has half the confidence of one found in very many."""


def label_clip(frames: np.ndarray, config: MotionLabelsConfig) -> list[Instances]:
    """Instances of each frame that move against the background.

    frames: (T, H, W, 3) uint8 RGB of one clip, evenly timed. Returns T Instances with track ids, unique in the clip;
    scores are confidences in [0, 1] that rank labels: the mean IoU with the same object's label in the frames
    around, less for objects found in few frames. Frames without a neighbour in their shot have none.
    Raises ValueError for another shape or dtype.
    """
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8:
        raise ValueError(f"frames must be (T, H, W, 3) uint8, not {frames.shape} {frames.dtype}")
    height, width = frames.shape[1:3]
    if min(height, width) < _SMALLEST_SIDE:
        return [Instances.empty(height, width) for _ in frames]
    reader = FlowReader(frames)
    labels: list[Instances] = []
    next_id = 1
    scale = max(1.0, min(reader.size) / 128)
    for shot in find_shots(frames):
        found, next_id = _label_shot(reader, shot, config, next_id)
        if config.carry:
            found = carry_on(found, reader, shot, most=config.carry, min_area=config.min_area * scale**2)
        if config.settle_outlines:
            found = [settle_outlines(frames[shot[0] + at], part) for at, part in enumerate(found)]
        labels += weigh_by_length(found, min(config.min_track, shot[1] - shot[0] - 1))
    return labels


def _label_shot(
    reader: FlowReader, shot: tuple[int, int], config: MotionLabelsConfig, next_id: int
) -> tuple[list[Instances], int]:
    """Labels of the frames [first, end) of one shot, and the next free track number. Only a window is in memory."""
    first, end = shot
    labels: list[Instances] = []
    window: list[FrameVotes] = []
    for frame in range(first, end + config.window):
        if frame < end:
            past = [other for other in reversed(window) if frame - other.frame <= max(1, config.window)]
            window.append(_vote(reader, frame, shot, past, config, next_id))
            next_id = max([next_id, *(track + 1 for track in window[-1].ids)])
        if frame - config.window >= first:
            labels.append(_settle(reader, frame - config.window, window, config))
        window = [votes for votes in window if votes.frame > frame - max(1, 2 * config.window)]
    return labels, next_id


def _vote(
    reader: FlowReader,
    frame: int,
    shot: tuple[int, int],
    past: list[FrameVotes],
    config: MotionLabelsConfig,
    next_id: int,
) -> FrameVotes:
    scale = max(1.0, min(reader.size) / 128)
    found = propose(
        reader,
        frame,
        shot,
        gaps=config.gaps,
        min_speed=config.min_speed,
        clear_motion=config.clear_motion,
        min_area=config.min_area * scale**2,
        most=_MOST_INSTANCES,
    )
    if found is None:
        return FrameVotes.empty(frame, reader.size)
    costs = motion_costs(reader.frames, frame, found.motions, found.seeds)
    if len(found.motions) == 1:
        costs = blame_hiding(costs, found.seeds)
    votes = votes_from_costs(costs, found.seeds, config.photometric_cap, round(_REACH * scale))
    masks = _masks(votes, config, scale)
    rows = np.zeros(reader.size, np.int16)
    for number, mask in enumerate(masks.values(), 1):
        rows[mask] = number
    ids = link(rows, len(masks), seen_from(reader, frame, past), next_id)
    colours = count_colours(colour_bins(reader.frames[frame]), rows, len(masks), scale)
    return FrameVotes(frame, votes[[0, *masks]], rows, ids, colours)


def _settle(reader: FlowReader, frame: int, window: list[FrameVotes], config: MotionLabelsConfig) -> Instances:
    here = next(votes for votes in window if votes.frame == frame)
    around = [votes for votes in window if 0 < abs(votes.frame - frame) <= config.window]
    seen = seen_from(reader, frame, around)
    votes, ids = agree(here, around, seen)
    bins = colour_bins(reader.frames[frame])
    votes = add_appearance(votes, ids, [here, *around], bins, config.appearance * total_weight(seen))
    masks = _masks(votes, config, max(1.0, min(reader.size) / 128))
    if not masks:
        return Instances.empty(*reader.size)
    tracks = [ids[row - 1] for row in masks]
    # Without neighbours in view nothing speaks for or against a label.
    shares = [
        [overlap(mask, other, track) for other in seen] for mask, track in zip(masks.values(), tracks, strict=True)
    ]
    scores = torch.tensor([float(np.mean(share)) if share else 0.5 for share in shares])
    return Instances.from_masks(torch.from_numpy(np.stack(list(masks.values()))), scores, torch.tensor(tracks))


def add_appearance(
    votes: np.ndarray, ids: list[int], frames: list[FrameVotes], bins: np.ndarray, weight: float
) -> np.ndarray:
    """`votes` (L, H, W) with what colours say of each object, from its labels in the given frames."""
    votes = votes.copy()
    for row, track in enumerate(ids, 1):
        counted = np.sum([part.colours[part.ids.index(track)] for part in frames if track in part.ids], axis=0)
        votes[row] += 2 * weight * (0.5 - looks_like(bins, counted))
    return votes


def _masks(votes: np.ndarray, config: MotionLabelsConfig, scale: float) -> dict[int, np.ndarray]:
    """Row of `votes` (L, H, W) -> its mask (H, W) bool, for the objects of an allowed size."""
    assigned = smooth_labels(votes, config.smoothness)
    masks = {row: clean_mask(assigned == row) for row in range(1, len(votes))}
    low, high = config.min_area * scale**2, config.max_area * assigned.size
    return {row: mask for row, mask in masks.items() if low <= mask.sum() <= high}


def weigh_by_length(labels: list[Instances], min_track: int) -> list[Instances]:
    """Drop the objects seen in fewer than `min_track` frames and lower the confidence of those seen in few."""
    lengths = Counter(track for part in labels if part.track_ids is not None for track in part.track_ids.tolist())
    weighed = []
    for part in labels:
        if part.track_ids is not None and len(part):
            length = torch.tensor([float(lengths[track]) for track in part.track_ids.tolist()])
            part = part.with_scores(part.scores * length / (length + _SURE_FRAMES))[length >= min_track]
        weighed.append(part)
    return weighed
