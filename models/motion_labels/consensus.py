"""Agreement over time: objects keep their identity from frame to frame, and neighbouring frames vote on outlines."""

from __future__ import annotations

from dataclasses import dataclass, field

import cv2
import numpy as np

from .appearance import BINS
from .motion import FlowReader, pixel_grid

UNKNOWN = -1
_OVERLAP = 0.3
_QUORUM = 0.6
_WEIGHT = 1.5
"""Of what the neighbouring frames say, against a frame's own votes."""


@dataclass(frozen=True)
class FrameVotes:
    """What one frame says by itself.

    frame: its index. votes: (K + 1, H, W) float32, how badly the background (row 0) and each object explain a pixel.
    rows: (H, W) int16, the row that each pixel was given. ids: K track numbers, from 1.
    """

    frame: int
    votes: np.ndarray
    rows: np.ndarray
    ids: list[int] = field(default_factory=list)
    colours: np.ndarray = field(default_factory=lambda: np.zeros((0, 2, BINS), np.float32))

    @classmethod
    def empty(cls, frame: int, size: tuple[int, int]) -> FrameVotes:
        return cls(frame, np.zeros((1, *size), np.float32), np.zeros(size, np.int16))


def seen_from(reader: FlowReader, frame: int, others: list[FrameVotes]) -> list[np.ndarray]:
    """(H, W) int64 track numbers of each of the other frames, brought onto `frame` along the optical flow; 0 is the
    background, UNKNOWN out of view."""
    x, y = pixel_grid(reader.size)
    seen = []
    for other in others:
        flow_uv = reader.chain(frame, other.frame)
        # A closest-pixel look-up: rows are names, which cannot be mixed.
        rows = cv2.remap(
            other.rows,
            x + flow_uv[..., 0],
            y + flow_uv[..., 1],
            cv2.INTER_NEAREST,
            borderMode=cv2.BORDER_CONSTANT,
            borderValue=UNKNOWN,
        )
        seen.append(np.array([0, *other.ids, UNKNOWN])[rows])
    return seen


def link(rows: np.ndarray, count: int, past: list[np.ndarray], next_id: int) -> list[int]:
    """Track numbers of the `count` objects of `rows` (H, W): each the best-overlapping track of the `past` maps of
    track numbers, nearest frame first; new ones from `next_id` on where none overlaps."""
    ids: dict[int, int] = {}
    for tracks in past:
        pairs = []
        for row in (row for row in range(1, count + 1) if row not in ids):
            mask = rows == row
            for track in np.unique(tracks[mask]):
                pairs.append((overlap(mask, tracks, int(track)), row, int(track)))
        for share, row, track in sorted(pairs, reverse=True):
            if share >= _OVERLAP and track > 0 and row not in ids and track not in ids.values():
                ids[row] = track
    fresh = iter(range(next_id, next_id + count))
    return [ids[row] if row in ids else next(fresh) for row in range(1, count + 1)]


def overlap(mask: np.ndarray, tracks: np.ndarray, track: int) -> float:
    """IoU in [0, 1] of `mask` (H, W) bool with a track in a map of track numbers, where that is known."""
    other = tracks == track
    mask = mask & (tracks != UNKNOWN)
    union = int((mask | other).sum())
    return int((mask & other).sum()) / union if union else 0.0


def agree(here: FrameVotes, around: list[FrameVotes], seen: list[np.ndarray]) -> tuple[np.ndarray, list[int]]:
    """One frame's votes (L, H, W) with those of the frames around it added, and the track numbers of rows 1 and up.

    seen: what `seen_from` says of `around`. A track that this frame misses is taken up if most frames before and after
    have it: things that stand still for a moment stay labelled.
    """
    ids = here.ids + _missing(here, around, seen)
    votes = np.concatenate([here.votes, np.repeat(here.votes[:1], len(ids) - len(here.ids), 0)])
    if seen:
        known = np.maximum(np.sum([tracks != UNKNOWN for tracks in seen], axis=0), 1)
        for row, track in enumerate([0, *ids]):
            share = np.sum([tracks == track for tracks in seen], axis=0) / known
            votes[row] += _WEIGHT * (1 - share)
    return votes.astype(np.float32), ids


def total_weight(seen: list[np.ndarray]) -> float:
    """The most that a pixel's votes of `agree` can differ by."""
    return 1 + (_WEIGHT if seen else 0)


def _missing(here: FrameVotes, around: list[FrameVotes], seen: list[np.ndarray]) -> list[int]:
    candidates = {track for other in around for track in other.ids} - set(here.ids)
    missing = []
    for track in sorted(candidates):
        found = [bool((tracks == track).any()) for tracks in seen]
        sides = {other.frame > here.frame for other, there in zip(around, found, strict=True) if there}
        if len(sides) == 2 and np.mean(found) >= _QUORUM:
            missing.append(track)
    return missing
