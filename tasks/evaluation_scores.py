"""The scores that a split's truth offers: of images always, of tracks and of masks through time where it has them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from models.common.instances import Instances
from tasks.clips import ClipEntry
from tasks.formats.rle import RLE
from tasks.linking import TrackLinker
from tasks.metrics.best_match import BestMatchEvaluator
from tasks.metrics.coco import CocoEvaluator, Curve, Encoded
from tasks.metrics.davis import DavisEvaluator
from tasks.metrics.tracks import MaskTrack
from tasks.metrics.ytvis import YtvisEvaluator

LINK_IOU = 0.3
"""Smallest overlap, after warping, that continues a track of detections: export.link_iou's default."""


class TruthScores:
    """Hand it the frames that have truth, clip by clip; holds one clip's run lengths and a few numbers of the others.

    COCO's scores are of all frames; best match is of clips whose truth is not exhaustive; YouTube-VIS' and DAVIS' are
    of clips of which every annotated frame was looked at. Definitions are in docs/metrics.md.
    """

    def __init__(self, score_cut: float) -> None:
        self.coco = CocoEvaluator()
        self._cut = score_cut
        self._best = BestMatchEvaluator()
        self._tracks = YtvisEvaluator()
        self._single = DavisEvaluator("single")
        self._unsupervised = DavisEvaluator("unsupervised")
        self._videos = 0
        self._sources: dict[str, str] = {}
        self._clip: _ClipTracks | None = None
        self._entry: ClipEntry | None = None

    def begin_clip(self, entry: ClipEntry, frames: int) -> None:
        """frames: how many of its annotated ones will come. What is left of a clip that broke is dropped."""
        self._entry = entry
        self._clip = _ClipTracks() if 1 < frames == entry.annotated_frames else None

    def add_frame(
        self,
        image_id: int,
        frame: np.ndarray,
        found: Instances,
        truth: Instances,
        rles: list[RLE],
        true_rles: list[RLE],
        *,
        void: RLE | None = None,
    ) -> None:
        """frame: (H, W, 3) uint8 RGB; found and truth in its pixels, with their masks encoded. void: pixels that the
        truth says nothing of; DAVIS' scores leave them out, the others know no such thing.
        """
        assert self._entry is not None
        self.coco.process(image_id, found, truth, prediction_rles=rles, truth_rles=true_rles)
        if not self._entry.exhaustive:
            self._best.process(_encode(found, rles), _encode(truth, true_rles), score_cut=self._cut)
        if self._clip is not None:
            self._clip.add_frame(frame, found, truth, rles, true_rles, void)

    def finish_clip(self) -> None:
        """Score what goes over the whole clip."""
        if self._clip is None or self._entry is None:
            return
        name, size, frames = self._entry.clip_id, (self._entry.height, self._entry.width), self._clip.frames
        found, truth = self._clip.found.tracks(frames), self._clip.truth.tracks(frames)
        self._tracks.process(name, size, found, truth, frames=frames)
        confident, void = self._clip.confident(found, self._cut), self._clip.void
        self._unsupervised.process(name, size, found, truth, void, frames=frames)
        self._single.process(name, size, confident, truth, void, frames=frames)
        self._videos += 1
        self._sources[name] = self._entry.source
        self._clip = None

    def curves(self) -> list[Curve]:
        return self.coco.curves()

    def summarise(self) -> dict[str, Any]:
        """What metrics.json holds of it; a family that the truth does not offer is None."""
        scores, at_cut = self.coco.evaluate(), self.coco.evaluate(score_cut=self._cut)
        return {
            "images": self.coco.images,
            "instances": self.coco.instances,
            "mask": scores["mask"],
            "box": scores["box"],
            "mask_at_cut": at_cut["mask"],
            "box_at_cut": at_cut["box"],
            "cut": self._cut,
            "best_match": {"objects": self._best.objects, **self._best.evaluate()} if self._best.objects else None,
            "tracks": self._summarise_tracks(),
            "davis": self._summarise_davis(),
        }

    def _summarise_tracks(self) -> dict[str, Any] | None:
        if not self._tracks.tracks:
            return None
        return {"videos": self._videos, "tracks": self._tracks.tracks, **self._tracks.evaluate()}

    def _summarise_davis(self) -> dict[str, Any] | None:
        if not self._tracks.tracks:
            return None
        return {
            "single": self._single.evaluate(),
            "unsupervised": self._unsupervised.evaluate(),
            "sequences": {
                name: {"source": self._sources[name], **figures}
                for name, figures in self._unsupervised.per_sequence().items()
            },
        }


@dataclass
class _Tracks:
    """Masks and scores by identity and frame."""

    rles: dict[int, dict[int, RLE]] = field(default_factory=dict)
    scores: dict[int, dict[int, float]] = field(default_factory=dict)

    def add(self, frame: int, instances: Instances, rles: Sequence[RLE]) -> None:
        assert instances.track_ids is not None
        for identity, rle, score in zip(instances.track_ids.tolist(), rles, instances.scores.tolist(), strict=True):
            self.rles.setdefault(identity, {})[frame] = rle
            self.scores.setdefault(identity, {})[frame] = score

    def tracks(self, frames: int) -> list[MaskTrack]:
        """A track's score is the mean of its detections'."""
        return [
            MaskTrack([seen.get(frame) for frame in range(frames)], math.fsum(s.values()) / len(s))
            for seen, s in zip(self.rles.values(), self.scores.values(), strict=True)
        ]


class _ClipTracks:
    """One clip's truth, and its detections linked into tracks over the frames that have truth."""

    def __init__(self) -> None:
        self.frames = 0
        self.found, self.truth = _Tracks(), _Tracks()
        self.void: list[RLE | None] = []
        self._linker = TrackLinker(min_iou=LINK_IOU)

    def add_frame(
        self,
        frame: np.ndarray,
        found: Instances,
        truth: Instances,
        rles: Sequence[RLE],
        true_rles: Sequence[RLE],
        void: RLE | None,
    ) -> None:
        self.found.add(self.frames, self._linker.link(frame, found), rles)
        self.truth.add(self.frames, truth, true_rles)
        self.void.append(void)
        self.frames += 1

    def confident(self, tracks: Sequence[MaskTrack], cut: float) -> list[MaskTrack]:
        """The tracks without the detections below the cut: what a person would be shown of each frame."""
        return [
            MaskTrack([rle if scores.get(frame, 0.0) >= cut else None for frame, rle in enumerate(track.rles)])
            for track, scores in zip(tracks, self.found.scores.values(), strict=True)
        ]


def _encode(instances: Instances, rles: list[RLE]) -> Encoded:
    return Encoded(instances.boxes.double().cpu().numpy(), instances.scores.double().cpu().numpy(), rles)
