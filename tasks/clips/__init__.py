"""The clip archive and the manifest of a folder of them: read and write. Layout in docs/architecture.md."""

from tasks.clips.info import FORMAT, VOID, ClipEntry, ClipInfo, annotated_frames, make_clip_id, median_rate_hz
from tasks.clips.manifest import MANIFEST, REJECTED, open_clips, write_manifest
from tasks.clips.reader import ClipReader
from tasks.clips.writer import ClipWriter

__all__ = [
    "FORMAT",
    "MANIFEST",
    "REJECTED",
    "VOID",
    "ClipEntry",
    "ClipInfo",
    "ClipReader",
    "ClipWriter",
    "annotated_frames",
    "make_clip_id",
    "median_rate_hz",
    "open_clips",
    "write_manifest",
]
