"""One input after the other through a model into open label files: memory and disk are those of one input."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from models.common.instances import Instances
from tasks import picture_codec
from tasks.clip_labels import measure
from tasks.clips import ClipEntry, ClipReader
from tasks.errors import DataError, SourceError, StorageError, explain
from tasks.export import Exporter
from tasks.formats.coco import CocoAnnotation, CocoImage
from tasks.gallery import short_source, spread
from tasks.label_inputs import Inputs, Picture, digest_job, read_picture
from tasks.metrics.label_free import LabelFreeEvaluator
from tasks.model_store import LoadedModel
from tasks.pictures import detection_panels
from tasks.predict import PIXELS_AT_ONCE
from tasks.progress import Progress
from tasks.sources.pictures import PicturesJob
from tasks.sources.video import VideoJob

_Read = tuple[Picture, np.ndarray]


class Labelling:
    """inputs: of each source its name, kind and content, as it was labelled or set aside."""

    PICTURES = 12
    """To look at, over all inputs."""

    def __init__(self, exporter: Exporter, model: LoadedModel, figures: LabelFreeEvaluator) -> None:
        self.exporter = exporter
        self.model = model
        self.figures = figures
        self.inputs: list[dict[str, Any]] = []
        self._seen: dict[str, str] = {}

    def add_all(self, inputs: Inputs, spool: Path) -> None:
        """spool: an empty folder for clips, one input's at a time."""
        most = max(1, self.PICTURES // max(1, len(inputs.videos)))
        shown = set(spread(len(inputs.videos), self.PICTURES))
        for index, job in enumerate(inputs.videos):
            with tempfile.TemporaryDirectory(dir=spool) as folder:
                self._add_video(job, Path(folder), pictures=most if index in shown else 0)
        self._add_pictures(inputs.pictures, spool)

    def add_clips(self, clips: Sequence[ClipEntry], progress: Progress, *, pictures: int) -> None:
        shown = set(spread(len(clips), pictures)) if pictures else set()
        for index, clip in enumerate(clips):
            self.exporter.add_clip(self.model.predict, clip, progress, show=index in shown)

    def _add_video(self, job: VideoJob | PicturesJob, folder: Path, *, pictures: int) -> None:
        entry: dict[str, Any] = {"source": job.source, "kind": "video" if isinstance(job, VideoJob) else "sequence"}
        self.inputs.append(entry)
        try:
            clips = job.run(folder)
            with ClipReader(clips[0].path) as reader:
                entry["sha256"] = digest = reader.info.source_sha256
        except StorageError:
            raise
        except Exception as error:  # noqa: BLE001 - decoders raise whatever they like; the other inputs go on
            self._set_aside(job.source, error)
            entry["sha256"] = digest_job(job, folder)
            return
        if clips[0].note:
            entry["note"] = clips[0].note
        if self._seen.setdefault(digest, job.source) != job.source:
            entry["same_as"] = self._seen[digest]
            return
        with Progress(f"label {short_source(job.source)}", sum(clip.frames for clip in clips)) as progress:
            self.add_clips(clips, progress, pictures=pictures)

    def _add_pictures(self, pictures: Sequence[Picture], spool: Path) -> None:
        shown = {pictures[index].name for index in spread(len(pictures), self.PICTURES)} if pictures else set()
        settings = self.exporter.settings
        with Progress("label pictures", len(pictures)) as progress:
            for batch in _batches(self._read(pictures, spool, progress), settings.batch_size):
                found = self.model.predict([frame for _, frame in batch], settings.score_threshold)
                for (picture, frame), instances in zip(batch, found, strict=True):
                    self._write(picture, frame, instances)
                    if picture.name in shown:
                        panels = detection_panels(frame, instances, None)
                        self.exporter.gallery.put("pictures", panels, caption=f"{picture.name}: picture, labels")

    def _read(self, pictures: Sequence[Picture], spool: Path, progress: Progress) -> Iterator[_Read]:
        """Decoded upright; those that cannot be are set aside."""
        for picture in pictures:
            name = picture.place.shown
            entry: dict[str, Any] = {"source": name, "kind": "picture", "sha256": None}
            self.inputs.append(entry)
            progress.advance()
            try:
                data = read_picture(picture, spool)
                entry["sha256"] = hashlib.sha256(data).hexdigest()
                picture_codec.check_whole(data, where=name)
                frame = picture_codec.decode_rgb(data, where=name, upright=True)
            except (SourceError, DataError) as error:
                self._set_aside(name, error)
                continue
            yield picture, frame

    def _write(self, picture: Picture, frame: np.ndarray, found: Instances) -> None:
        exporter = self.exporter
        exporter.images += 1
        extra = {"source": picture.place.shown}
        height, width = frame.shape[:2]
        exporter.coco.add_image(CocoImage(exporter.images, picture.name, height, width, extra))
        for rle, box, area, score in measure(found):
            exporter.annotations += 1
            own = {**extra, "score": score, **exporter.provenance}
            exporter.coco.add_annotation(
                CocoAnnotation(exporter.annotations, exporter.images, rle, box, area, extra=own)
            )
        self.figures.process(frame, found, follows=False)

    def _set_aside(self, source: str, error: Exception) -> None:
        self.exporter.set_aside.append({"source": source, "reason": explain(error, source)})


def _batches(read: Iterator[_Read], most: int) -> Iterator[list[_Read]]:
    """At most so many at once, and fewer of large ones; one alone may be of any size."""
    batch: list[_Read] = []
    pixels = 0
    for picture, frame in read:
        size = frame.shape[0] * frame.shape[1]
        if batch and (len(batch) == most or pixels + size > PIXELS_AT_ONCE):
            yield batch
            batch, pixels = [], 0
        batch.append((picture, frame))
        pixels += size
    if batch:
        yield batch
