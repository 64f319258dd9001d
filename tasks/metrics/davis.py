"""DAVIS: region similarity J, boundary accuracy F, and J&F, for one foreground or for objects found unsupervised.

Perazzi et al., CVPR 2016 (section 5: J, F; mean, recall, decay) and Caelles et al., arXiv:1905.00737 (DAVIS 2019, the
unsupervised challenge on DAVIS 2017), with the conventions of the official evaluation, named where they decide.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from pycocotools import mask as coco_mask
from scipy.optimize import linear_sum_assignment

from tasks.formats.rle import RLE
from tasks.metrics.boundaries import compare_masks
from tasks.metrics.tracks import MaskTrack, check_tracks, sort_tracks

MAX_PROPOSALS = 20
"""Tracks of a sequence that the unsupervised challenge allows."""

Task = Literal["single", "unsupervised"]
Measure = Literal["J", "F", "J&F"]
DavisScores = dict[Measure, dict[str, float | None]]


@dataclass(frozen=True)
class _Sequence:
    """J and F of each object in each frame that counts: (M, T) in [0, 1]."""

    region: np.ndarray
    boundary: np.ndarray


class DavisEvaluator:
    """Collects sequences one by one and scores them together; keeps two numbers of each object and frame.

    task "single", DAVIS 2016: everything found against all objects, both united, and a sequence's first and last frame
    do not count (nor do those of a sequence of two or less: it is left out). "unsupervised", DAVIS 2017: all frames
    count; of the tracks found the MAX_PROPOSALS of greatest score are looked at, a pixel in several goes to the one of
    greatest score, as in an indexed picture, and Hungarian matching pairs tracks with objects over the whole sequence
    for the greatest J&F. An object left without a track is compared with nothing found.
    """

    def __init__(self, task: Task) -> None:
        self.task = task
        self.reset()

    def reset(self) -> None:
        self._sequences: dict[str, _Sequence] = {}

    def process(
        self,
        name: str,
        size: tuple[int, int],
        found: Sequence[MaskTrack],
        truth: Sequence[MaskTrack],
        void: Sequence[RLE | None] | None = None,
        *,
        frames: int,
    ) -> None:
        """Add a sequence of `frames` annotated frames of `size` (height, width).

        void: per frame the pixels (255 in DAVIS' pictures) that count for nobody. Raises ValueError where the name was
        given before, DataError where tracks do not fit the sequence.
        """
        if name in self._sequences:
            raise ValueError(f"sequence {name} was given twice")
        void = [None] * frames if void is None else void
        check_tracks([*found, *truth, MaskTrack(void)], frames, size, where=f"sequence {name}")
        if self.task == "single":
            # As the official evaluation of DAVIS 2016 does.
            self._sequences[name] = _score_united(size, found, truth, void, range(1, frames - 1))
        else:
            self._sequences[name] = _score_matched(size, found, truth, void, range(frames))

    def evaluate(self) -> DavisScores:
        """{"J": {"mean", "recall", "decay"}, "F": ..., "J&F": ...}, means over objects; None where there are none.

        A single foreground is one object a sequence. Recall: share of frames above .5. Decay: see `summarise_frames`.
        J&F: the means of the two.
        """
        scored = [one for _, one in sorted(self._sequences.items()) if one.region.size]
        region = _mean_over_objects([values for one in scored for values in one.region])
        boundary = _mean_over_objects([values for one in scored for values in one.boundary])
        both = {
            key: None if (j := region[key]) is None or (f := boundary[key]) is None else (j + f) / 2 for key in region
        }
        return {"J": region, "F": boundary, "J&F": both}

    def per_sequence(self) -> dict[str, dict[str, float]]:
        """{sequence: {"J", "F"}}: mean over its objects and frames; sequences with nothing to score are left out."""
        return {
            name: {"J": float(one.region.mean()), "F": float(one.boundary.mean())}
            for name, one in sorted(self._sequences.items())
            if one.region.size
        }


def summarise_frames(values: np.ndarray) -> tuple[float, float, float]:
    """Mean, recall and decay of (T,) values, T >= 1.

    Decay: mean of the first quarter of the frames less mean of the last. As in the official evaluation the quarters
    are cut at five frames, evenly spaced from first to last and rounded, and share the frames they are cut at.
    """
    cuts = np.round(np.linspace(1, len(values), 5) + 1e-10).astype(int) - 1
    decay = values[: cuts[1] + 1].mean() - values[cuts[3] :].mean()
    return float(values.mean()), float((values > 0.5).mean()), float(decay)


def _mean_over_objects(objects: list[np.ndarray]) -> dict[str, float | None]:
    keys = ("mean", "recall", "decay")
    if not objects:
        return dict.fromkeys(keys)
    means = np.mean([summarise_frames(values) for values in objects], axis=0)
    return dict(zip(keys, means.tolist(), strict=True))


def _score_united(
    size: tuple[int, int],
    found: Sequence[MaskTrack],
    truth: Sequence[MaskTrack],
    void: Sequence[RLE | None],
    frames: range,
) -> _Sequence:
    region, boundary = np.zeros((2, 1, len(frames)))
    for column, frame in enumerate(frames):
        united, expected = (np.asarray(_decode(tracks, frame, size).any(0))[None] for tracks in (found, truth))
        j, f = compare_masks(united, expected, _decode_one(void[frame], size))
        region[0, column], boundary[0, column] = j[0, 0], f[0, 0]
    return _Sequence(region, boundary)


def _score_matched(
    size: tuple[int, int],
    found: Sequence[MaskTrack],
    truth: Sequence[MaskTrack],
    void: Sequence[RLE | None],
    frames: range,
) -> _Sequence:
    tracks = sort_tracks(found)[:MAX_PROPOSALS]
    objects = sort_tracks(truth)
    # An object may go without a track only where there are too few: the official evaluation pads with empty ones.
    spare = max(0, len(objects) - len(tracks))
    region, boundary = np.zeros((2, len(tracks) + spare, len(objects), len(frames)))
    for column, frame in enumerate(frames):
        masks = _part(_decode(tracks, frame, size))
        masks = np.concatenate([masks, np.zeros((spare, *size), bool)])
        expected, ignored = _decode(objects, frame, size), _decode_one(void[frame], size)
        region[..., column], boundary[..., column] = compare_masks(masks, expected, ignored)
    if not frames or not objects:
        return _Sequence(*np.zeros((2, 0, len(frames))))
    rows, columns = linear_sum_assignment(region.mean(2) + boundary.mean(2), maximize=True)
    return _Sequence(region[rows, columns], boundary[rows, columns])


def _part(masks: np.ndarray) -> np.ndarray:
    """(N, H, W) bool, best first -> the same without what a better one has."""
    taken = np.zeros(masks.shape[1:], bool)
    for mask in masks:
        mask &= ~taken
        taken |= mask
    return masks


def _decode(tracks: Sequence[MaskTrack], frame: int, size: tuple[int, int]) -> np.ndarray:
    """(N, H, W) bool."""
    masks = np.zeros((len(tracks), *size), bool)
    for mask, track in zip(masks, tracks, strict=True):
        rle = track.rles[frame]
        if rle is not None:
            mask[:] = coco_mask.decode(rle)
    return masks


def _decode_one(rle: RLE | None, size: tuple[int, int]) -> np.ndarray | None:
    return None if rle is None else _decode([MaskTrack([rle])], 0, size)[0]
