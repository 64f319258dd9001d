"""Label videos and pictures with a trained model: COCO and YouTube-VIS JSON, with what they were made from.

No stage: it works in any folder, on anything, with any model of `tasks.model_store`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from tasks import params as parameters
from tasks.clips import ClipEntry
from tasks.errors import DataError, NothingLeftError, ParamsError
from tasks.export import Exporter
from tasks.files import atomic_folder, read_json, write_json
from tasks.formats.coco import CocoWriter
from tasks.formats.ytvis import YtvisWriter
from tasks.gallery import Gallery
from tasks.label_inputs import Inputs, list_inputs
from tasks.label_writing import Labelling
from tasks.lineage import code_version
from tasks.metrics.label_free import LabelFreeEvaluator
from tasks.model_store import LoadedModel
from tasks.predict import shared_cores
from tasks.progress import Progress
from tasks.sources.places import hide_credentials, is_local

FORMAT = 1
"""Of summary.json."""
OURS = frozenset(("coco.json", "ytvis.json", "summary.json", "pictures"))
_MAX_SUMMARY_BYTES = 2**30
_FRAMES_NOTE = (
    "file_name is the picture's own path below the folder that was named, or, of video, CLIP_ID/000012.jpg: the frame "
    "at timestamp_us of source"
)


@dataclass(frozen=True)
class Labelled:
    """summary: what summary.json holds. unchanged: it was there already, made of the same by the same."""

    summary: dict[str, Any]
    unchanged: bool


def label_sources(
    sources: Sequence[str],
    model: LoadedModel,
    folder: Path,
    *,
    image_rate_hz: float | None = None,
    earlier: Mapping[str, Any] | None = None,
) -> Labelled:
    """Label everything at `sources` into `folder`, which appears whole or not at all.

    sources: paths and fsspec URLs of videos, pictures and folders of either. image_rate_hz: makes each folder of
    pictures a video of that rate; without it they are pictures of their own, which have no tracks.
    Writes coco.json, summary.json, pictures/ and, where there is video, ytvis.json. Nothing is done where `folder`
    holds the labels of the same contents by the same model and settings, or `earlier`, the summary of labels that lie
    elsewhere, is of these.
    Raises SourceError where a source does not exist, ParamsError where `folder` is somebody else's, and
    NothingLeftError where nothing could be labelled; an input that cannot be is set aside with its reason.
    """
    check_target(folder, sources)
    request = _describe(sources, model, image_rate_hz)
    with tempfile.TemporaryDirectory(prefix="mosis-label-") as spool:
        inputs = list_inputs(sources, image_rate_hz)
        known = _read_summary(folder) if earlier is None else earlier
        if known and known.get("request") == request and _contents(known) == inputs.contents(Path(spool)):
            return Labelled(dict(known), unchanged=True)
    return Labelled(_write(inputs, model, folder, request), unchanged=False)


def label_clips(
    clips: Sequence[ClipEntry], model: LoadedModel, folder: Path, *, request: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Label clip archives that lie ready, as `label_sources` labels video; what summary.json holds.

    request: what to record beside the model. Raises NothingLeftError where no clip can be read.
    """
    with atomic_folder(folder) as temporary:
        with ExitStack() as stack, shared_cores():
            labelling = _open(stack, temporary, model)
            with Progress("label", sum(clip.frames for clip in clips)) as progress:
                labelling.add_clips(clips, progress, pictures=Labelling.PICTURES)
            if clips and len(labelling.exporter.set_aside) == len(clips):
                raise NothingLeftError(f"no clip could be labelled: {labelling.exporter.set_aside[0]['reason']}")
        return _finish(temporary, labelling, model, dict(request or {}))


def check_target(folder: Path, sources: Sequence[str]) -> None:
    """Raises ParamsError where labels in `folder` would replace other files, or be taken for sources the next time."""
    if folder.exists() and not folder.is_dir():
        raise ParamsError(f"{folder} is a file: name a folder for the labels")
    others = {path.name for path in folder.iterdir()} - OURS if folder.is_dir() else set()
    if others:
        raise ParamsError(f"{folder} holds {min(others)!a}, which is no label: name a new folder or an empty one")
    target = folder.resolve()
    for source in sources:
        if not is_local(source):
            continue
        place = Path(source.removeprefix("file://")).resolve()
        if place == target or place.is_relative_to(target) or (place.is_dir() and target.is_relative_to(place)):
            shown = hide_credentials(source)
            raise ParamsError(f"{folder}: one of it and the source {shown} lies in the other: name another folder")


def _describe(sources: Sequence[str], model: LoadedModel, image_rate_hz: float | None) -> dict[str, Any]:
    """All but the contents that decides what the labels are."""
    return {
        "sources": [hide_credentials(source) for source in sources],
        "image_rate_hz": image_rate_hz,
        "model": {name: value for name, value in model.lineage.items() if name != "alias"},
        "export": parameters.to_dict(model.export),
        "mosis": metadata.version("mosis"),
    }


def _read_summary(folder: Path) -> dict[str, Any] | None:
    """That of earlier labels, None where there are none that can be read."""
    return parse_summary(folder / "summary.json") if (folder / "coco.json").is_file() else None


def parse_summary(path: Path) -> dict[str, Any] | None:
    """What a summary.json holds, None where it is none of ours."""
    try:
        document = read_json(path, max_bytes=_MAX_SUMMARY_BYTES)
    except DataError:
        return None
    return document if isinstance(document, dict) and document.get("format") == FORMAT else None


def _contents(summary: Mapping[str, Any]) -> list[Any]:
    inputs = summary.get("inputs")
    entries = inputs if isinstance(inputs, list) else []
    return [[entry.get("source"), entry.get("sha256")] for entry in entries if isinstance(entry, dict)]


def _write(inputs: Inputs, model: LoadedModel, folder: Path, request: dict[str, Any]) -> dict[str, Any]:
    with atomic_folder(folder) as temporary:
        with (
            ExitStack() as stack,
            shared_cores(),
            tempfile.TemporaryDirectory(prefix=".clips-", dir=temporary) as spool,
        ):
            labelling = _open(stack, temporary, model)
            labelling.add_all(inputs, Path(spool))
            if not labelling.exporter.images:
                reasons = [one["reason"] for one in labelling.exporter.set_aside]
                raise NothingLeftError(f"nothing could be labelled: {reasons[0] if reasons else 'no source given'}")
        return _finish(temporary, labelling, model, request)


def _open(stack: ExitStack, folder: Path, model: LoadedModel) -> Labelling:
    info = {"description": "Pseudo-labels by MoSIS", "frames": _FRAMES_NOTE, **model.provenance}
    header: dict[str, Any] = {"info": info, "licenses": []}
    coco = stack.enter_context(CocoWriter(folder / "coco.json", header))
    ytvis = stack.enter_context(YtvisWriter(folder / "ytvis.json", header))
    figures = LabelFreeEvaluator()

    def observe(index: int, frame: np.ndarray, found: Any) -> None:
        figures.process(frame, found, follows=index > 0)

    gallery = Gallery(folder / "pictures")
    exporter = Exporter(coco, ytvis, gallery, model.export, model.provenance, observe)
    return Labelling(exporter, model, figures)


def _finish(folder: Path, labelling: Labelling, model: LoadedModel, request: dict[str, Any]) -> dict[str, Any]:
    """Write summary.json; the label files are closed."""
    if not labelling.exporter.clips:
        (folder / "ytvis.json").unlink()
    summary = {
        **labelling.exporter.summarise(),
        "format": FORMAT,
        "inputs": labelling.inputs,
        "model": dict(model.lineage),
        "label_free": labelling.figures.evaluate(),
        "request": request,
        "code": code_version(),
    }
    write_json(folder / "summary.json", summary)
    return summary
