"""One video from the inbox into the library: ingest, label, version. flows/new_video.py says when."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tasks import library
from tasks import params as parameters
from tasks.clips import write_manifest
from tasks.errors import DataError, ModelError, ParamsError, SourceError
from tasks.files import atomic_folder, sha256_file, sole_process, storage_errors, write_json
from tasks.inbox import Arrival, MovingError, is_as_listed
from tasks.library import Entry
from tasks.lineage import code_version
from tasks.params import Params
from tasks.sources.places import Place, open_local
from tasks.sources.video import VideoJob

if TYPE_CHECKING:  # imports torch, which the flow's own process does without
    from tasks.model_store import LoadedModel
    from tasks.tracking import ModelVersion

_DEVICE = re.compile(r"cuda|cudnn|cublas|nccl|hip error|out of memory", re.IGNORECASE)
"""What torch says where a device fails, which tells nothing of the video."""
WORK = Path(".mosis", "intake")
"""The model, copies of remote videos, links to local ones; what a killed run left there goes with the next."""


@dataclass(frozen=True)
class Request:
    """A video to take in. file: its content, here, of that hash. model_folder: the version's files, already checked."""

    arrival: Arrival
    file: Path
    sha256: str
    workspace: Path
    params: Params
    version: ModelVersion
    model_folder: Path


def take_in(request: Request) -> Entry:
    """Put the video into the library and version it; what is there already is not done again.

    Raises SourceError and DataError for a video that cannot be taken in, StorageError, BusyError and ModelError for
    what is no fault of it.
    """
    folder = library.entry_folder(request.workspace, library.video_id(request.sha256))
    try:
        entry = library.read_entry(folder)
    except DataError:
        entry = make_entry(request, folder)
    if entry.sha256 != request.sha256:
        raise DataError(f"{request.arrival.place.shown}: another content has the same video_id {entry.video_id}")
    library.version_entry(request.workspace, entry)
    return entry


def make_entry(request: Request, folder: Path) -> Entry:
    """Ingest and label into `folder`, which appears whole or not at all."""
    from tasks import label

    arrival, params = request.arrival, request.params
    model = _load(request)
    with atomic_folder(folder) as temporary:
        clips = temporary / "clips"
        clips.mkdir()
        job = VideoJob(arrival.place.shown, Place(arrival.place.shown, str(request.file)), params.ingest)
        entries = job.run(clips)
        write_manifest(clips, entries)
        try:
            summary = label.label_clips(entries, model, temporary / "labels")
        except RuntimeError as error:
            if _DEVICE.search(str(error)):
                raise ModelError(f"{params.train.device}: {' '.join(str(error).split())[:300]}") from error
            raise
        if sha256_file(request.file) != request.sha256:
            raise MovingError(f"{arrival.place.shown}: it changed while it was read: left until it is whole")
        entry = Entry(
            video_id=folder.name,
            sha256=request.sha256,
            source=arrival.place.shown,
            bytes=request.file.stat().st_size,
            arrived_at=round(arrival.arrived_at, 6),
            clips=len(entries),
            frames=sum(one.frames for one in entries),
            seconds=round(sum(one.seconds for one in entries), 6),
            annotations=summary["annotations"],
            tracks=summary["tracks"],
            model=dict(model.lineage),
            params={name: parameters.to_dict(getattr(params, name)) for name in ("ingest", "export")},
            code=code_version(),
            label_free=summary["label_free"],
            set_aside=tuple(summary["set_aside"]),
            note=entries[0].note,
        )
        write_json(temporary / "entry.json", entry.to_json())
    return entry


_loaded: dict[tuple[str, str], LoadedModel] = {}
"""The one model of this process: videos come by the hundred, and loading takes seconds."""


def _load(request: Request) -> LoadedModel:
    """The version's model, with the workspace's thresholds: its own may be of other days."""
    from tasks import model_store

    key = (request.version.uri, str(request.model_folder))
    if key not in _loaded:
        _loaded.clear()
        device = request.params.train.device
        try:
            _loaded[key] = model_store.load_version(request.version, request.model_folder, device)
        except (DataError, ParamsError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:300]
            raise ModelError(f"{request.version.uri} cannot be used on {device}: {reason}") from None
    return dataclasses.replace(_loaded[key], export=request.params.export)


@contextlib.contextmanager
def local_file(arrival: Arrival, workspace: Path) -> Iterator[Path]:
    """A local path to the content under a name of ours: decoders see nothing of what others have chosen.

    Raises MovingError where it is not what was listed, or may not be read, StorageError as `open_local`.
    """
    if not is_as_listed(arrival):
        raise MovingError(f"{arrival.place.shown}: it changed since it was listed: left until it is whole")
    folder = workspace / WORK
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with _found(arrival, folder) as found, tempfile.TemporaryDirectory(dir=folder) as place:
        link = Path(place, f"video{arrival.place.suffix}")
        link.symlink_to(found.resolve())
        try:
            with open(link, "rb"):
                pass
        except OSError as error:
            raise MovingError(f"{arrival.place.shown}: cannot be read ({error.strerror})") from None
        yield link


@contextlib.contextmanager
def _found(arrival: Arrival, folder: Path) -> Iterator[Path]:
    """`open_local`, with what is not there now as no fault of the content."""
    with contextlib.ExitStack() as stack:
        try:
            path = stack.enter_context(open_local(arrival.place, folder))
        except SourceError as error:
            raise MovingError(str(error)) from None
        yield path


@contextlib.contextmanager
def lock(workspace: Path) -> Iterator[None]:
    """One intake at a time in a workspace. Raises BusyError. Also removes what a killed one has left."""
    busy = f"{workspace}: new videos are being taken in already: wait until that ends"
    with sole_process(workspace / ".mosis" / "intake.lock", busy):
        shutil.rmtree(workspace / WORK, ignore_errors=True)
        with storage_errors(workspace / WORK):
            (workspace / WORK).mkdir(parents=True, exist_ok=True)
        yield
