"""YouTube-VIS AP and AR of whole tracks, class-agnostic (Yang et al., ICCV 2019, section 4).

COCO's matching with another IoU: pixels that two tracks share, summed over all frames, over those that either has.
Sizes go by a track's mean area over the frames where it is seen; small below 128^2 pixels, large from 256^2 on, as in
the benchmark's own evaluation. AR10 is the AR of its tables.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pycocotools import mask as coco_mask

from tasks.formats.rle import RLE, mask_areas
from tasks.metrics.coco_engine import MAX_DETECTIONS, Engine, Ranges, Scores, Table, match, summarise
from tasks.metrics.tracks import MaskTrack, check_tracks, sort_tracks

RANGES = Ranges(medium=128.0**2, large=256.0**2)


class YtvisEvaluator:
    """Collects videos one by one and scores them together; keeps their tables of IoU, no mask.

    The order of videos and of the tracks in them changes nothing: where scores are equal, content decides.
    """

    def __init__(self, *, engine: Engine | None = None) -> None:
        self._engine = engine
        self.reset()

    def reset(self) -> None:
        self._videos: dict[int | str, Table] = {}

    @property
    def tracks(self) -> int:
        """Of the truth, over all videos."""
        return sum(len(table.true_areas) for table in self._videos.values())

    def process(
        self,
        video: int | str,
        size: tuple[int, int],
        found: Sequence[MaskTrack],
        truth: Sequence[MaskTrack],
        *,
        frames: int,
    ) -> None:
        """Add a video of `frames` annotated frames of `size` (height, width).

        Raises ValueError where it was given before, DataError where tracks do not fit it.
        """
        if video in self._videos:
            raise ValueError(f"video {video} was given twice")
        check_tracks([*found, *truth], frames, size, where=f"video {video}")
        best, objects = sort_tracks(found)[: MAX_DETECTIONS[-1]], sort_tracks(truth)
        self._videos[video] = Table(
            scores=np.array([track.score for track in best], dtype=np.float64),
            ious=track_ious(best, objects, frames),
            areas=np.array([_mean_area(track) for track in best], dtype=np.float64),
            true_areas=np.array([_mean_area(track) for track in objects], dtype=np.float64),
            crowd=np.array([track.crowd for track in objects], dtype=bool),
        )

    def evaluate(self, *, score_cut: float | None = None) -> Scores:
        """AP, AP50, ... AR100; with a cut, of the tracks that score at least so much."""
        tables = [table.cut(score_cut) for table in self._videos.values()]
        return summarise(match(tables, RANGES, engine=self._engine))


def track_ious(found: Sequence[MaskTrack], truth: Sequence[MaskTrack], frames: int) -> np.ndarray:
    """(N, M) float64: shared pixels over the pixels of either, each summed over the video; 0 of two without a pixel."""
    shared, area, true_area = np.zeros((len(found), len(truth))), np.zeros(len(found)), np.zeros(len(truth))
    for frame in range(frames):
        rows, masks = _seen(found, frame)
        columns, true_masks = _seen(truth, frame)
        areas, true_areas = mask_areas(masks), mask_areas(true_masks)
        area[rows] += areas
        true_area[columns] += true_areas
        if masks and true_masks:
            ious = coco_mask.iou(masks, true_masks, [0] * len(true_masks))
            # From iou = shared / (sum - shared); whole pixels, so that rounding takes the error of the division out.
            sums = areas[:, None] + true_areas[None]
            shared[np.ix_(rows, columns)] += np.rint(ious * sums / (1 + ious))
    union = area[:, None] + true_area[None] - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def _seen(tracks: Sequence[MaskTrack], frame: int) -> tuple[list[int], list[RLE]]:
    """Indices and masks of the tracks that are seen in a frame."""
    seen = [(index, rle) for index, track in enumerate(tracks) if (rle := track.rles[frame]) is not None]
    return [index for index, _ in seen], [rle for _, rle in seen]


def _mean_area(track: MaskTrack) -> float:
    """Over the frames where there is a pixel of it, pixels; 0 where there is none."""
    areas = mask_areas([rle for rle in track.rles if rle is not None])
    return float(areas[areas > 0].mean()) if (areas > 0).any() else 0.0
