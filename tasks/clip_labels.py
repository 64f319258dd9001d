"""The pseudo-labels of one clip: instances frame by frame, and the same by track, as the label files want them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from models.common.instances import Instances
from tasks.clips import ClipInfo
from tasks.errors import DataError
from tasks.formats.coco import CocoAnnotation, CocoImage
from tasks.formats.rle import RLE, encode_masks, mask_areas
from tasks.formats.ytvis import Track, Video
from tasks.params import ExportParams


@dataclass(frozen=True)
class Label:
    """One mask in one frame. bbox: x, y, width, height in pixels. track_id: unique over all clips of an export."""

    frame: int
    track_id: int
    rle: RLE
    bbox: list[float]
    area: float
    score: float


@dataclass
class ClipLabels:
    """provenance: what every annotation carries beside its own score: model_version and thresholds."""

    info: ClipInfo
    provenance: dict[str, Any]
    labels: list[Label] = field(default_factory=list)

    def add_frame(self, frame: int, linked: Instances) -> None:
        """Instances with track ids, in the clip's own pixels."""
        assert linked.track_ids is not None
        for (rle, box, area, score), track_id in zip(measure(linked), linked.track_ids.tolist(), strict=True):
            self.labels.append(Label(frame, track_id, rle, box, area, score))

    def images(self, first_id: int) -> Iterator[CocoImage]:
        """One entry per frame, labelled or not, numbered from `first_id`."""
        for frame, timestamp_us in enumerate(self.info.timestamps_us):
            extra = {
                "clip_id": self.info.clip_id,
                "frame": frame,
                "source": self.info.source,
                "timestamp_us": timestamp_us,
            }
            name = frame_name(self.info.clip_id, frame)
            yield CocoImage(first_id + frame, name, self.info.height, self.info.width, extra)

    def annotations(self, first_id: int, first_image_id: int) -> Iterator[CocoAnnotation]:
        for number, label in enumerate(self.labels, start=first_id):
            extra = {
                "score": label.score,
                "track_id": label.track_id,
                "clip_id": self.info.clip_id,
                "source": self.info.source,
                "timestamp_us": self.info.timestamps_us[label.frame],
                **self.provenance,
            }
            image_id = first_image_id + label.frame
            yield CocoAnnotation(number, image_id, label.rle, label.bbox, label.area, extra=extra)

    def video(self, video_id: int) -> Video:
        extra = {
            "clip_id": self.info.clip_id,
            "source": self.info.source,
            "start_us": self.info.start_us,
            "timestamps_us": list(self.info.timestamps_us),
        }
        names = [frame_name(self.info.clip_id, frame) for frame in range(len(self.info.timestamps_us))]
        return Video(video_id, names, self.info.height, self.info.width, extra)

    def tracks(self, video_id: int, *, min_frames: int) -> Iterator[Track]:
        """Tracks seen in `min_frames` frames or more; the id is the labels' track_id, the score their mean."""
        by_track: dict[int, list[Label]] = {}
        for label in self.labels:
            by_track.setdefault(label.track_id, []).append(label)
        for track_id, labels in sorted(by_track.items()):
            if len(labels) >= min_frames:
                yield self._track(track_id, video_id, labels)

    def _track(self, track_id: int, video_id: int, labels: list[Label]) -> Track:
        by_frame = {label.frame: label for label in labels}
        seen = [by_frame.get(frame) for frame in range(len(self.info.timestamps_us))]
        extra = {
            "height": self.info.height,
            "width": self.info.width,
            "length": len(seen),
            "score": round(sum(label.score for label in labels) / len(labels), 4),
            "scores": [None if label is None else label.score for label in seen],
            "clip_id": self.info.clip_id,
            "source": self.info.source,
            "timestamps_us": list(self.info.timestamps_us),
            **self.provenance,
        }
        return Track(
            id=track_id,
            video_id=video_id,
            segmentations=[None if label is None else label.rle for label in seen],
            bboxes=[None if label is None else label.bbox for label in seen],
            areas=[None if label is None else label.area for label in seen],
            extra=extra,
        )


def measure(found: Instances) -> Iterator[tuple[RLE, list[float], float, float]]:
    """(mask, bbox, area, score) of each instance, as label files hold them: bbox x, y, width, height in pixels."""
    rles = encode_masks(found.masks)
    columns = zip(rles, found.boxes.tolist(), mask_areas(rles).tolist(), found.scores.tolist(), strict=True)
    for rle, (x1, y1, x2, y2), area, score in columns:
        yield rle, [round(value, 2) for value in (x1, y1, x2 - x1, y2 - y1)], area, round(score, 4)


def thresholds(settings: ExportParams, method: Mapping[str, Any]) -> dict[str, float]:
    """What decided over an annotation: of the export, and of the method's settings where it has such."""
    of_method = {name: method[name] for name in ("nms_iou", "mask_threshold") if name in method}
    return {"score": settings.score_threshold, "link_iou": settings.link_iou, **of_method}


def frame_name(clip_id: str, frame: int) -> str:
    """file_name of a frame in label files: entry frames/000012 (.jpg or .png) of data/clips/CLIP_ID.zip."""
    return f"{clip_id}/{frame:06d}.jpg"


def parse_frame_name(file_name: str) -> tuple[str, int]:
    """(clip_id, frame) of such a file_name: `ClipReader(folder / f"{clip_id}.zip").frame(frame)` is the picture."""
    clip_id, _, number = file_name.removesuffix(".jpg").partition("/")
    if not clip_id or not number.isascii() or not number.isdigit():
        raise DataError(f"{file_name[:60]!r} does not name a frame of a clip, as in 0123456789abcdef/000012.jpg")
    return clip_id, int(number)
