"""Weights + clips -> pseudo-labels of every frame as COCO and YouTube-VIS JSON, and the report of the whole run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from models.common.instances import Instances
from tasks import tracking
from tasks.clip_labels import ClipLabels, thresholds
from tasks.clips import ClipEntry, ClipInfo, ClipReader, open_clips
from tasks.errors import DataError, NothingLeftError
from tasks.files import atomic_folder, sha256_file, write_json
from tasks.formats.coco import CocoWriter
from tasks.formats.ytvis import YtvisWriter
from tasks.gallery import Gallery, spread
from tasks.linking import TrackLinker
from tasks.params import ExportParams, Params
from tasks.pictures import overlay, scale_for, shrink_to_panel, side_by_side, stack_rows
from tasks.predict import Predictor, predict_frames, read_resolved, shared_cores
from tasks.progress import Progress

Predict = Callable[[Sequence[np.ndarray], float | None], list[Instances]]
Observe = Callable[[int, np.ndarray, Instances], None]
"""Told of each frame in order: its index in its clip, (H, W, 3) uint8 RGB, its instances."""

_PICTURES = 12
_PICTURE_ROWS = 3
_SECONDS_BETWEEN = 0.25
"""Between the two frames of a picture's row: long enough to see what moves, short enough to see who is who."""
_FRAMES_NOTE = (
    "file_name CLIP_ID/000012.jpg is entry frames/000012 (.jpg or .png) of data/clips/CLIP_ID.zip, "
    "whose entries are stored and not compressed"
)


def run(params: Params, workspace: Path) -> None:
    """Write outputs/labels, then outputs/report. Raises MosisError where no clip could be labelled."""
    settings = params.export
    outputs = workspace / "outputs"
    weights, resolved = outputs / "train" / "weights.safetensors", outputs / "train" / "params.resolved.yaml"
    clips = open_clips(workspace / "data" / "clips")
    predictor = Predictor.load(weights, resolved, device=params.train.device)
    trained, _ = read_resolved(resolved)
    provenance = {
        "model_version": sha256_file(weights)[:12],
        "thresholds": thresholds(settings, dataclasses.asdict(getattr(trained.train, trained.train.method))),
    }
    with shared_cores():
        summary = export_labels(predictor, clips, outputs / "labels", settings, provenance)
    write_report_page(workspace, outputs / "report")
    totals = {name: summary[name] for name in ("images", "annotations", "tracks")}
    files = [outputs / "report" / "index.html", outputs / "labels" / "summary.json"]
    tracking.log_results(workspace, totals, files, prefix="export")


def export_labels(
    predictor: Predict, clips: Sequence[ClipEntry], folder: Path, settings: ExportParams, provenance: dict[str, Any]
) -> dict[str, Any]:
    """Label all clips into `folder`, which appears whole or not at all; memory is that of one clip's run lengths.

    Returns what summary.json holds. A clip that cannot be read is set aside; raises NothingLeftError if all are.
    """
    with atomic_folder(folder) as temporary, ExitStack() as stack:
        header = {
            "info": {"description": "Pseudo-labels by MoSIS", "frames": _FRAMES_NOTE, **provenance},
            "licenses": [],
        }
        coco = stack.enter_context(CocoWriter(temporary / "coco.json", header))
        ytvis = stack.enter_context(YtvisWriter(temporary / "ytvis.json", header))
        exporter = Exporter(coco, ytvis, Gallery(temporary / "pictures"), settings, provenance)
        shown = set(spread(len(clips), _PICTURES))
        with Progress("label", sum(clip.frames for clip in clips)) as progress:
            for index, clip in enumerate(clips):
                exporter.add_clip(predictor, clip, progress, show=index in shown)
        if clips and len(exporter.set_aside) == len(clips):
            raise NothingLeftError(f"no clip could be labelled: {exporter.set_aside[0]['reason']}")
        summary = exporter.summarise()
        write_json(temporary / "summary.json", summary)
    return summary


class Exporter:
    """Numbers everything over all clips and writes clip by clip: a clip that breaks leaves nothing in the files."""

    def __init__(
        self,
        coco: CocoWriter,
        ytvis: YtvisWriter,
        gallery: Gallery,
        settings: ExportParams,
        provenance: dict[str, Any],
        observe: Observe | None = None,
    ) -> None:
        self.coco = coco
        self.ytvis = ytvis
        self.gallery = gallery
        self.settings = settings
        self.provenance = provenance
        self.observe = observe
        self.images = self.annotations = self.tracks = 0
        self.clips: list[dict[str, Any]] = []
        self.set_aside: list[dict[str, str]] = []
        self._next_track = 1

    def add_clip(self, predictor: Predict, clip: ClipEntry, progress: Progress, *, show: bool) -> None:
        linker = TrackLinker(min_iou=self.settings.link_iou, first_id=self._next_track)
        before = progress.done
        try:
            with ClipReader(clip.path) as reader:
                picture = ClipPicture(reader.info) if show else None
                labels = self._label(predictor, reader, linker, picture, progress)
        except DataError as error:
            self.set_aside.append({"clip_id": clip.clip_id, "source": clip.source, "reason": str(error)})
            progress.advance(max(clip.frames - (progress.done - before), 0))
            return
        self._next_track = linker.next_id
        self._write(labels)
        if picture is not None:
            self.gallery.add("labels", picture.draw(), picture.caption, reader.info, picture.middle)

    def _label(
        self,
        predictor: Predict,
        reader: ClipReader,
        linker: TrackLinker,
        picture: ClipPicture | None,
        progress: Progress,
    ) -> ClipLabels:
        labels = ClipLabels(reader.info, self.provenance)
        batch_size, threshold = self.settings.batch_size, self.settings.score_threshold
        frames = predict_frames(predictor, reader, range(len(reader)), batch_size=batch_size, score_threshold=threshold)
        for index, frame, found in frames:
            linked = linker.link(frame, found)
            labels.add_frame(index, linked)
            if self.observe is not None:
                self.observe(index, frame, linked)
            if picture is not None:
                picture.offer(index, frame, linked)
            progress.advance()
        return labels

    def _write(self, labels: ClipLabels) -> None:
        info = labels.info
        first_image, video_id = self.images + 1, len(self.clips) + 1
        for image in labels.images(first_image):
            self.coco.add_image(image)
        for annotation in labels.annotations(self.annotations + 1, first_image):
            self.coco.add_annotation(annotation)
        self.ytvis.add_video(labels.video(video_id))
        tracks = 0
        for track in labels.tracks(video_id, min_frames=self.settings.min_track_frames):
            self.ytvis.add_track(track)
            tracks += 1
        frames = len(info.timestamps_us)
        counts = {"frames": frames, "annotations": len(labels.labels), "tracks": tracks}
        self.clips.append({"clip_id": info.clip_id, "source": info.source, **counts})
        self.images += frames
        self.annotations += len(labels.labels)
        self.tracks += tracks

    def summarise(self) -> dict[str, Any]:
        return {
            "images": self.images,
            "annotations": self.annotations,
            "tracks": self.tracks,
            "clips": self.clips,
            "set_aside": self.set_aside,
            "pictures": self.gallery.entries,
            **self.provenance,
        }


class ClipPicture:
    """Frames from the whole clip, in pairs a quarter of a second apart, with masks in the colours of their tracks."""

    def __init__(self, info: ClipInfo) -> None:
        count = len(info.timestamps_us)
        step = max(1, min(round(_SECONDS_BETWEEN * info.rate_hz), count - 1))
        starts = spread(max(1, count - step), _PICTURE_ROWS)
        self.middle = starts[len(starts) // 2]
        self.caption = "labels, one colour a track, " + ", ".join(
            f"{info.timestamps_us[i] / 1e6:.2f} s" for i in starts
        )
        self._rows = [[index for index in (start, start + step) if index < count] for start in starts]
        self._panels: dict[int, np.ndarray] = {}

    def offer(self, index: int, frame: np.ndarray, linked: Instances) -> None:
        if any(index in row for row in self._rows):
            small, (found,) = shrink_to_panel(frame, [linked], panels=2)
            self._panels[index] = overlay(small, found, scale=scale_for(small.shape[1], panels=2))

    def draw(self) -> np.ndarray:
        return stack_rows([side_by_side([self._panels[index] for index in row]) for row in self._rows])


def write_report_page(workspace: Path, folder: Path) -> None:
    """The report of the run as it lies in the workspace: folder/index.html, whole or not at all."""
    # Imported late: the report needs what only this last step needs, a chart library and templates.
    from tasks.report import write_report

    with atomic_folder(folder) as temporary:
        write_report(workspace, temporary)
