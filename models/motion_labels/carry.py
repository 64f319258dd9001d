"""Objects that motion loses, because they stand still or move with the ground, carried on along the optical flow."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch

from ..common.instances import Instances
from .appearance import colour_bins, count_colours, looks_like
from .motion import FlowReader, pixel_grid

_LEAST_FRAMES = 8
"""Of a track that is carried on: what is seen for less may be nothing."""
_LEAST_SCORE = 0.4
_LIKENESS = 0.6
"""Mean likeness of colours below which something else is seen in the object's place."""
_FREE = 0.7
"""Share of the carried mask that no other label may have taken."""
_START_TRUST = 0.7
_TRUST = 0.95
"""What remains of the confidence at the first carried frame, and then with each further one."""
_COLOUR_FRAMES = 6


@dataclass(frozen=True)
class Track:
    """One object: frame -> its mask (H, W) bool, and frame -> its confidence."""

    masks: dict[int, np.ndarray]
    scores: dict[int, float]

    @property
    def is_sure(self) -> bool:
        return len(self.masks) >= _LEAST_FRAMES and float(np.mean(list(self.scores.values()))) >= _LEAST_SCORE


def split_tracks(labels: list[Instances], first: int) -> dict[int, Track]:
    """Track number -> track, from the labels of consecutive frames, `first` on."""
    tracks: dict[int, Track] = {}
    for frame, part in enumerate(labels, first):
        numbers = [] if part.track_ids is None else part.track_ids.tolist()
        for number, mask, score in zip(numbers, part.masks.numpy(), part.scores.tolist(), strict=True):
            track = tracks.setdefault(number, Track({}, {}))
            track.masks[frame], track.scores[frame] = mask, score
    return tracks


def collect_labels(tracks: dict[int, Track], first: int, count: int, size: tuple[int, int]) -> list[Instances]:
    """The labels of `count` frames, `first` on, from tracks: the inverse of `split_tracks`."""
    labels = []
    for frame in range(first, first + count):
        here = {number: track for number, track in sorted(tracks.items()) if frame in track.masks}
        if not here:
            labels.append(Instances.empty(*size))
            continue
        masks = torch.from_numpy(np.stack([track.masks[frame] for track in here.values()]))
        scores = torch.tensor([track.scores[frame] for track in here.values()])
        labels.append(Instances.from_masks(masks, scores, torch.tensor(list(here))))
    return labels


def carry_on(
    labels: list[Instances], reader: FlowReader, shot: tuple[int, int], *, most: int, min_area: float
) -> list[Instances]:
    """The labels of a shot [first, end) with each sure track carried up to `most` frames beyond its ends and into its
    gaps, the longest first.

    It ends where another label has taken its place, where it leaves the frame, and where colours are no longer the
    object's.
    """
    tracks = split_tracks(labels, shot[0])
    taken = [part.masks.any(0).numpy() for part in labels]
    for number, track in sorted(tracks.items(), key=lambda item: -len(item[1].masks)):
        if not track.is_sure:
            continue
        ends = [(frame, step) for frame in sorted(track.masks) for step in (1, -1) if frame + step not in track.masks]
        for start, step in ends:
            stop = min(shot[1], start + most + 1) if step > 0 else max(shot[0] - 1, start - most - 1)
            free = {frame: ~taken[frame - shot[0]] for frame in range(start + step, stop, step)}
            found = follow(reader, tracks[number], start, free, min_area)
            for frame, mask in found.masks.items():
                taken[frame - shot[0]] = taken[frame - shot[0]] | mask
            tracks[number] = Track({**tracks[number].masks, **found.masks}, {**tracks[number].scores, **found.scores})
    return collect_labels(tracks, shot[0], len(labels), reader.size)


def follow(reader: FlowReader, track: Track, start: int, free: dict[int, np.ndarray], min_area: float) -> Track:
    """The part of `track` that can be carried from frame `start` on.

    free: (H, W) bool pixels without a label of the frames to visit, in this order, each beside the one before.
    """
    counted = track_colours(reader, track, start)
    mask, score = track.masks[start], _START_TRUST * track.scores[start]
    found = Track({}, {})
    before = start
    for frame, room in free.items():
        whole = move_mask(mask, reader.between(frame, before))
        mask = whole & room
        if frame in track.masks or mask.sum() < max(min_area, _FREE * whole.sum()):
            break
        if looks_like(colour_bins(reader.frames[frame]), counted)[mask].mean() < _LIKENESS:
            break
        found.masks[frame], found.scores[frame] = mask, score
        score, before = score * _TRUST, frame
    return found


def track_colours(reader: FlowReader, track: Track, frame: int) -> np.ndarray:
    """(2, BINS) as `count_colours` counts them, over the track's frames nearest to `frame`."""
    nearest = sorted(track.masks, key=lambda other: abs(other - frame))[:_COLOUR_FRAMES]
    scale = max(1.0, min(reader.size) / 128)
    counted = [
        count_colours(colour_bins(reader.frames[other]), track.masks[other].astype(np.int16), 1, scale)[0]
        for other in nearest
    ]
    return np.asarray(np.sum(counted, axis=0))


def move_mask(mask: np.ndarray, flow_uv: np.ndarray) -> np.ndarray:
    """(H, W) bool: `mask` of the frame that `flow_uv` (H, W, 2) points to, on the frame that it starts from."""
    x, y = pixel_grid((mask.shape[0], mask.shape[1]))
    there = (x + flow_uv[..., 0], y + flow_uv[..., 1])
    moved = cv2.remap(mask.astype(np.float32), *there, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=0)
    return np.asarray(moved > 0.5)
