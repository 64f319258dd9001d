"""The library: for each video that has arrived its clips, its labels and what they were made from.

`library/<video_id>/` appears whole or not at all. Its video is done when git has `library/<video_id>.dvc`, which it
gets only after the remote has the archive (docs/adr/0009); all before that can be repeated and changes nothing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks import history, versioning
from tasks import params as parameters
from tasks.errors import DataError
from tasks.files import atomic_path, read_json, sha256_tree, storage_errors
from tasks.params import Params
from tasks.workspace import code_root, fingerprints, template

LIBRARY = "library"
REJECTED = "rejected.jsonl"
FORMAT = 1
"""Of entry.json."""
_VIDEO_ID = re.compile(r"[0-9a-f]{16}")
_IGNORED = "/*/\n/rejected.jsonl\n"
"""Of library/.gitignore: one line for all videos, where DVC would add one for each."""
_MAX_LINE = 20_000


@dataclass(frozen=True)
class Entry:
    """entry.json of one video. source: as people know it, without credentials. arrived_at: seconds since 1970.

    model: name, version and digests of what labelled it. params: of ingest and export. code: the version of this
    package. label_free: as `LabelFreeEvaluator.evaluate` gives. set_aside: clips that could not be labelled.
    """

    video_id: str
    sha256: str
    source: str
    bytes: int
    arrived_at: float
    clips: int
    frames: int
    seconds: float
    annotations: int
    tracks: int
    model: Mapping[str, Any]
    params: Mapping[str, Any]
    code: Mapping[str, str]
    label_free: Mapping[str, float | None]
    set_aside: tuple[Mapping[str, str], ...] = ()
    note: str | None = None

    def to_json(self) -> dict[str, Any]:
        return {"format": FORMAT, **dataclasses.asdict(self)}


@dataclass(frozen=True)
class Rejected:
    """A content that cannot be taken in. attempt: fingerprint of what it was tried with."""

    source: str
    sha256: str
    reason: str
    attempt: str


def video_id(sha256: str) -> str:
    """Of a video, from the hex SHA-256 of its file."""
    return sha256[:16]


def entry_folder(workspace: Path, video: str) -> Path:
    return workspace / LIBRARY / video


def read_entry(folder: Path) -> Entry:
    """The entry.json of library/<video_id>. Raises DataError where it is missing or not what we write."""
    path = folder / "entry.json"
    document = read_json(path)
    try:
        fields = {key: value for key, value in document.items() if key != "format"}
        entry = Entry(**{**fields, "set_aside": tuple(fields.get("set_aside", ()))})
        fits = (
            document["format"] == FORMAT
            and entry.video_id == folder.name
            and _VIDEO_ID.fullmatch(entry.video_id) is not None
            and isinstance(entry.sha256, str)
            and video_id(entry.sha256) == entry.video_id
            and isinstance(entry.source, str)
            and all(isinstance(part, dict) for part in (entry.model, entry.params, entry.code, entry.label_free))
            and all(type(count) is int for count in (entry.clips, entry.frames, entry.bytes))
            and isinstance(entry.seconds, int | float)
        )
    except (TypeError, KeyError, AttributeError):
        fits = False
    if not fits:
        raise DataError(f"{path} does not have the layout of a video's entry: remove the folder, or `dvc checkout` it")
    return entry


def done_videos(workspace: Path, revision: str = "HEAD") -> list[str]:
    """video_ids of all that are done, as of a commit; sorted."""
    names = history.committed_files(workspace, LIBRARY, revision)
    stems = (name.removesuffix(".dvc") for name in names if name.endswith(".dvc"))
    return sorted(stem for stem in stems if _VIDEO_ID.fullmatch(stem))


def done_entries(workspace: Path) -> list[Entry]:
    """Those of all that are done and lie here, in order of arrival; what was not pulled is left out."""
    folders = (entry_folder(workspace, video) for video in done_videos(workspace))
    entries = [read_entry(folder) for folder in folders if (folder / "entry.json").is_file()]
    return sorted(entries, key=lambda entry: (entry.arrived_at, entry.video_id))


def present_entries(workspace: Path, videos: Iterable[str]) -> list[Entry]:
    """Those of these videos that lie here and can be read, in their order: a clone may not have pulled them all."""
    found = []
    for video in videos:
        with contextlib.suppress(DataError):
            found.append(read_entry(entry_folder(workspace, video)))
    return found


def version_entry(workspace: Path, entry: Entry) -> None:
    """Make the entry's folder a version: in DVC's cache, then in the remote, then in git.

    In this order, so that git never names what the remote does not have. Each step changes nothing where it has been
    taken before. Raises StorageError, or BusyError where another process works in the workspace.
    """
    target = f"{LIBRARY}/{entry.video_id}"
    prepare(workspace)
    versioning.add(workspace, target)
    versioning.push_target(workspace, f"{target}.dvc")
    message = f"Video {entry.video_id}: {entry.frames} frames labelled by {entry.model.get('name', 'a model')}"
    if entry.model.get("version"):
        message += f" version {entry.model['version']}"
    history.commit_files(workspace, [f"{target}.dvc", f"{LIBRARY}/.gitignore"], message)


def prepare(workspace: Path) -> None:
    """Make library/ with the .gitignore that keeps the videos themselves out of git."""
    path = workspace / LIBRARY / ".gitignore"
    if not path.is_file() or path.read_text(encoding="utf-8") != _IGNORED:
        with atomic_path(path) as temporary:
            temporary.write_text(_IGNORED, encoding="utf-8")


def attempt_fingerprint(params: Params) -> str:
    """Of the code and the parameters that decide whether a video can be taken in; another one is worth another try."""
    source = template("dvc.yaml")
    codes = fingerprints(source, code_root())
    ingest = {name: value for name, value in parameters.to_dict(params.ingest).items() if name != "sources"}
    settings = [ingest, parameters.to_dict(params.export), params.train.device]
    own = sha256_tree(code_root() / "tasks" / name for name in ("intake.py", "label.py", "label_writing.py"))
    text = json.dumps([codes["ingest"], codes["export"], own, settings], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def read_rejected(workspace: Path) -> dict[str, Rejected]:
    """Content hash -> what was set aside and why; lines that are not ours are passed over."""
    found: dict[str, Rejected] = {}
    try:
        with open(workspace / LIBRARY / REJECTED, encoding="utf-8", errors="replace") as file:
            while line := file.readline(_MAX_LINE):
                try:
                    one = Rejected(**json.loads(line))
                except (ValueError, TypeError):
                    continue
                if all(isinstance(value, str) for value in dataclasses.astuple(one)):
                    found[one.sha256] = one
    except FileNotFoundError:
        pass
    return found


def reject(workspace: Path, one: Rejected) -> None:
    """Set a content aside in library/rejected.jsonl, in place of what was said of it before: a kill may cost the line,
    and another try of the video.
    """
    prepare(workspace)
    path, known = workspace / LIBRARY / REJECTED, read_rejected(workspace)
    with storage_errors(path):
        if one.sha256 not in known:  # thousands may come, of which none makes the others be written again
            with open(path, "ab") as file:
                file.write(b"\n" if _is_cut_short(path) else b"")
                file.write(_line(one))
            return
        with atomic_path(path) as temporary:
            temporary.write_bytes(b"".join(map(_line, {**known, one.sha256: one}.values())))


def _line(one: Rejected) -> bytes:
    return json.dumps(dataclasses.asdict(one), ensure_ascii=False).encode() + b"\n"


def _is_cut_short(path: Path) -> bool:
    """Whether the last line has no end: a kill, as it was written."""
    with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            return file.read(1) != b"\n"
    return False
