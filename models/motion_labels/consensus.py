"""Agreement over time: objects keep their identity from frame to frame, and neighbouring frames vote on outlines."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from .motion import FlowReader, pixel_grid

UNKNOWN = -1


@dataclass
class FrameVotes:
    """What one frame says by itself.

    frame: its index. votes: (K + 1, H, W) float32, row 0 the background's, low is good. ids: K track numbers, from 1.
    labels: (H, W) int16 track numbers, 0 the background.
    """

    frame: int
    votes: np.ndarray
    ids: list[int]
    labels: np.ndarray


def link(assigned: np.ndarray, count: int, past: list[np.ndarray], next_id: int, min_iou: float = 0.3) -> list[int]:
    """Track numbers of the `count` labels of `assigned` (H, W): the best-overlapping track of the `past` label maps,
    nearest frame first and already warped onto this one, or new numbers from `next_id` on."""
    ids = [0] * count
    for labels in past:
        pairs = []
        for row in range(count):
            if ids[row]:
                continue
            mask = assigned == row + 1
            for track in np.unique(labels[mask]):
                if track > 0 and track not in ids:
                    other = labels == track
                    iou = (mask & other).sum() / (mask | other).sum()
                    if iou >= min_iou:
                        pairs.append((float(iou), row, int(track)))
        for _, row, track in sorted(pairs, reverse=True):
            if not ids[row] and track not in ids:
                ids[row] = track
    for row in range(count):
        if not ids[row]:
            ids[row] = next_id
            next_id += 1
    return ids


def warp_labels(labels: np.ndarray, flow_uv: np.ndarray) -> np.ndarray:
    """(H, W) int16 labels of another frame at x + flow_uv(x), nearest pixel; UNKNOWN out of view."""
    x, y = pixel_grid(labels.shape)
    return cv2.remap(
        labels, x + flow_uv[..., 0], y + flow_uv[..., 1], cv2.INTER_NEAREST,
        borderMode=cv2.BORDER_CONSTANT, borderValue=UNKNOWN,
    )


def agree(reader: FlowReader, here: FrameVotes, around: list[FrameVotes], weight: float, quorum: float = 0.6):
    """Votes (L, H, W) and track numbers of the rows after the first, of one frame and its neighbours together."""
    seen = [warp_labels(other.labels, reader.chain(here.frame, other.frame)) for other in around]
    ids = list(here.ids)
    if not seen:
        return here.votes, ids, seen
    known = np.maximum(sum((labels != UNKNOWN).astype(np.float32) for labels in seen), 1)
    before = [i for i, o in enumerate(around) if o.frame < here.frame]
    after = [i for i, o in enumerate(around) if o.frame > here.frame]
    tracks = {int(t) for o in around for t in o.ids}
    for track in sorted(tracks - set(ids)):
        present = [bool((labels == track).any()) for labels in seen]
        if any(present[i] for i in before) and any(present[i] for i in after) and np.mean(present) >= quorum:
            ids.append(track)
    votes = np.concatenate([here.votes, np.repeat(here.votes[:1], len(ids) - len(here.ids), 0)])
    for row, track in enumerate([0, *ids]):
        share = sum((labels == track).astype(np.float32) for labels in seen) / known
        votes[row] += weight * (1 - share)
    return votes, ids, seen
