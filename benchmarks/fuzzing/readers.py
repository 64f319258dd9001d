"""The public way into every reader, which takes all of what is there and says what came of it."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from benchmarks.fuzzing import specimens
from tasks.clips import MANIFEST, ClipEntry, ClipReader, open_clips, write_manifest
from tasks.errors import MosisError, StorageError
from tasks.formats.coco import CocoFile, read_coco, write_coco
from tasks.formats.fields import CATEGORIES
from tasks.formats.ytvis import YtvisFile, read_ytvis, write_ytvis
from tasks.params import DavisParams, IngestParams, NuscenesParams, YoutubeVisParams, load
from tasks.sources import open_source

_JOBS = 40
"""At most so many of one input run: a damaged list may name very many."""
F = TypeVar("F", CocoFile, YtvisFile)


@dataclass
class Outcome:
    """read: clips, files or records taken. reasons: why the others were not. shown: every other text for a person."""

    read: int = 0
    reasons: list[str] = field(default_factory=list)
    shown: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Reader:
    """Picklable. make: fills an empty folder with folders, each of which is one good input. read(folder, target): takes
    one of them, writing below the empty `target` alone.

    kind: no link or name leads out of a dataset, but one's own files may be links; a single file may be a pipe.
    """

    make: Callable[[Path], None]
    read: Callable[[Path, Path], Outcome]
    kind: Literal["dataset", "files", "file"] = "file"


def ingest(url: str, params: IngestParams, target: Path) -> Outcome:
    """As the ingest stage does: every job in a folder of its own, then the manifest, then each clip read whole."""
    outcome = Outcome()
    entries: dict[str, ClipEntry] = {}
    for number, job in enumerate(open_source(url, params)[:_JOBS]):
        outcome.shown.append(job.source)
        folder = target / f"job-{number}"
        folder.mkdir()
        try:
            made = pickle.loads(pickle.dumps(job)).run(folder)  # noqa: S301 - our own; it runs in another process
        except StorageError:
            raise  # it would end the stage: no damaged file may look like a broken disk
        except MosisError as error:
            outcome.reasons.append(str(error))
        else:
            _check(sorted(path.name for path in folder.iterdir()), sorted({entry.path.name for entry in made}))
            for entry in made:
                entries[entry.clip_id] = replace(entry, path=entry.path.rename(target / entry.path.name))
        shutil.rmtree(folder)
    write_manifest(target, entries.values())
    _check(open_clips(target), sorted(entries.values(), key=lambda entry: entry.clip_id))
    for entry in entries.values():
        outcome.shown += [entry.source, entry.note or ""]
        read_clip(entry.path)
    outcome.read = len(entries)
    return outcome


def _check(found: Any, expected: Any) -> None:
    if found != expected:
        raise AssertionError(f"{found} is not {expected}")


def read_clip(path: Path) -> None:
    """Every frame with its truth and optical flow."""
    with ClipReader(path) as clip:
        for index in range(min(len(clip), 100)):
            clip.frame(index)
            clip.truth(index)
            clip.flow(index)


def read_video(folder: Path, target: Path) -> Outcome:
    return ingest(str(folder), IngestParams(max_seconds=5.0), target)


def read_pictures(folder: Path, target: Path) -> Outcome:
    return ingest(str(folder), IngestParams(image_rate_hz=24.0), target)


def read_youtube_vis(folder: Path, target: Path) -> Outcome:
    return ingest(f"youtube_vis:{folder}", IngestParams(youtube_vis=YoutubeVisParams(min_rate_hz=0.1)), target)


def read_youtube_vis_all(folder: Path, target: Path) -> Outcome:
    settings = YoutubeVisParams(splits=("train",), frames="all", videos=(63,))
    return ingest(f"youtube_vis:{folder}", IngestParams(youtube_vis=settings), target)


def read_nuscenes(folder: Path, target: Path) -> Outcome:
    return ingest(f"nuscenes:{folder}", IngestParams(nuscenes=NuscenesParams(min_rate_hz=0.1)), target)


def read_davis(folder: Path, target: Path) -> Outcome:
    groups = folder / "groups.json"
    settings = DavisParams(min_rate_hz=0.1, motion_groups=str(groups) if groups.exists() else None)
    return ingest(f"davis:{folder}", IngestParams(davis=settings), target)


def read_folders(folder: Path, target: Path) -> Outcome:
    """The layouts that are read like DAVIS; a rate is stated, as not all have one."""
    return ingest(f"davis:{folder}", IngestParams(davis=DavisParams(rate_hz=24.0, min_rate_hz=0.1)), target)


def read_clips(folder: Path, target: Path) -> Outcome:
    return _read_each([path for path in folder.iterdir() if path.name != MANIFEST], read_clip)


def _read_each(paths: Iterable[Path], *readers: Callable[[Path], None]) -> Outcome:
    """Each file by each reader."""
    outcome = Outcome()
    for path in paths:
        for reader in readers:
            try:
                reader(path)
                outcome.read += 1
            except MosisError as error:
                outcome.reasons.append(str(error))
    if not outcome.read and not outcome.reasons:
        outcome.reasons.append("no file is left")
    return outcome


def read_manifest(folder: Path, target: Path) -> Outcome:
    """Its rows are what a stage goes on with: they must hold what they claim to hold."""
    entries = open_clips(folder)
    write_manifest(target, entries)
    for entry in entries:
        _check(entry.path.parent, folder)
        shutil.copyfile(entry.path, target / entry.path.name)
    _check([replace(one, path=folder / one.path.name) for one in open_clips(target)], entries)
    return Outcome(read=1)


def read_labels(folder: Path, target: Path) -> Outcome:
    """What is read can be written, and reads as the same again."""

    def read_coco_again(path: Path) -> None:
        content = read_coco(path)
        write_coco(target / "again.json", content)
        _check(read_coco(target / "again.json"), _with_categories(content))

    def read_ytvis_again(path: Path) -> None:
        content = read_ytvis(path)
        write_ytvis(target / "again.json", content)
        _check(read_ytvis(target / "again.json"), _with_categories(content))

    return _read_each(folder.iterdir(), read_coco_again, read_ytvis_again)


def _with_categories(content: F) -> F:
    """As it is written where it has none."""
    return replace(content, header={"categories": CATEGORIES, **content.header})


def read_params(folder: Path, target: Path) -> Outcome:
    load(folder / "params.yaml")
    return Outcome(read=1)


READERS = {
    "clips": Reader(specimens.make_clips, read_clips),
    "davis": Reader(specimens.make_davis, read_davis, "dataset"),
    "folders": Reader(specimens.make_folders, read_folders, "dataset"),
    "labels": Reader(specimens.make_labels, read_labels),
    "manifest": Reader(specimens.make_manifest, read_manifest),
    "nuimages": Reader(specimens.make_nuimages, read_nuscenes, "dataset"),
    "nuscenes": Reader(specimens.make_nuscenes, read_nuscenes, "dataset"),
    "params": Reader(specimens.make_params, read_params),
    "pictures": Reader(specimens.make_pictures, read_pictures, "files"),
    "video": Reader(specimens.make_video, read_video, "files"),
    "youtube_vis": Reader(specimens.make_youtube_vis, read_youtube_vis, "dataset"),
    "youtube_vis_all": Reader(specimens.make_youtube_vis, read_youtube_vis_all, "dataset"),
}
"""By name, in the order in which seeds take turns."""
