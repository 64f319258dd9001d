"""Write clip archives: whole or not at all, equal bytes from equal input."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from tasks import picture_codec
from tasks.clips.archive import StoredArchive
from tasks.clips.info import (
    FORMAT,
    MAX_FRAMES,
    VOID,
    ClipEntry,
    ClipInfo,
    dump_json,
    is_clip_id,
    median_rate_hz,
    to_entry,
)
from tasks.errors import DataError
from tasks.files import TEMPORARY_PREFIX, atomic_path, storage_errors


class ClipWriter:
    """Context manager that writes `folder/<clip_id>.zip`, whole or not at all. `entry` is its manifest row afterwards.

    Equal input gives equal bytes. Frames go straight to disk: memory does not grow with the clip, annotations excepted.

    Who knows the content of the source only at its end leaves out `clip_id` and `source_sha256`, and calls `name` with
    them after the context, or `discard`. No file is held open in between.
    """

    entry: ClipEntry

    def __init__(
        self,
        folder: Path,
        *,
        source: str,
        clip_id: str | None = None,
        source_sha256: str | None = None,
        camera: str | None = None,
        start_us: int = 0,
        split: str | None = None,
        exhaustive: bool = True,
        ingest: Mapping[str, Any] | None = None,
        jpeg_quality: int = 95,
        lossless: bool = False,
    ) -> None:
        """lossless: write arrays as PNG instead of JPEG at `jpeg_quality`. Frames given as bytes stay as they are."""
        self._folder = Path(folder)
        self._identity = None if clip_id is None else _Identity(clip_id, source_sha256 or "")
        self._known: dict[str, Any] = {
            "source": source,
            "camera": camera,
            "start_us": start_us,
            "split": split,
            "exhaustive": exhaustive,
            "ingest": dict(ingest or {}),
        }
        self._jpeg_quality = None if lossless else jpeg_quality
        self._size: tuple[int, int] | None = None
        self._timestamps_us: list[int] = []
        self._tracks: dict[int, dict[int, dict[str, Any]]] = {}
        self._void: dict[int, dict[str, Any]] = {}
        self._annotated: list[int] = []
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> ClipWriter:
        if self._identity is not None:
            temporary = self._stack.enter_context(atomic_path(self._path(self._identity)))
        else:
            temporary = self._folder / f"{TEMPORARY_PREFIX}{secrets.token_hex(4)}-unnamed.zip"
            self._stack.enter_context(storage_errors(temporary))
            self._folder.mkdir(parents=True, exist_ok=True)
            self._stack.callback(temporary.unlink, missing_ok=True)
        self._archive = StoredArchive(temporary)
        self._stack.callback(self._archive.close)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if kind is not None:
            return bool(self._stack.__exit__(kind, error, trace))
        if self._identity is not None:
            with self._stack:
                self._write_annotations()
                self._finish(self._identity)
            return False
        with contextlib.ExitStack() as stack:
            stack.push(self._stack.pop_all())
            self._write_annotations()
            self._archive.leave()
            self._stack = stack.pop_all()
        return False

    def name(self, clip_id: str, source_sha256: str) -> ClipEntry:
        """Give a clip that was written without a name its own: only now it appears. Once."""
        identity = _Identity(clip_id, source_sha256)
        with self._stack, atomic_path(self._path(identity)) as temporary:
            os.replace(self._archive.path, temporary)
            self._archive.path = temporary
            self._finish(identity)
        return self.entry

    def discard(self) -> None:
        """Remove what was written without a name; nothing where it has one."""
        self._stack.close()

    def __len__(self) -> int:
        return len(self._timestamps_us)

    def add(
        self,
        frame: np.ndarray | bytes | picture_codec.Encoded,
        timestamp_us: int,
        *,
        masks: Mapping[int, np.ndarray] | None = None,
        flow: np.ndarray | None = None,
    ) -> None:
        """Append one frame.

        frame: (H, W, 3) uint8 RGB, or the bytes of an 8-bit JPEG or PNG, kept as they are.
        masks: track id -> (H, W) bool; {}: nothing in this frame; None: this frame has no ground truth. Under VOID, the
            pixels that the truth says nothing of.
        flow: (H, W, 2) float32 pixels of this frame to the next, NaN where unknown.
        """
        index = len(self._timestamps_us)
        if index and timestamp_us <= self._timestamps_us[-1]:
            raise DataError(f"{self._known['source']}: timestamps do not increase at frame {index}")
        if index >= MAX_FRAMES:
            raise DataError(f"{self._known['source']}: more than {MAX_FRAMES} frames in one clip: lower clip_seconds")
        where = f"{self._known['source']}: frame {index}"
        if isinstance(frame, bytes):
            frame = picture_codec.Encoded(frame, picture_codec.read_header(frame, where=where))
        self._check_size(frame.shape[:2] if isinstance(frame, np.ndarray) else frame.header.size, index)
        data, suffix = picture_codec.encode_rgb(frame, jpeg_quality=self._jpeg_quality, where=where)
        crc = frame.crc if isinstance(frame, picture_codec.Encoded) else None
        self._archive.add(f"frames/{index:06d}{suffix}", data, crc)
        if masks is not None:
            self._annotated.append(index)
            for track_id, mask in sorted(masks.items()):
                self._check_size(mask.shape, index)
                if mask.any():
                    seen = self._void if track_id == VOID else self._tracks.setdefault(int(track_id), {})
                    seen[index] = picture_codec.encode_rle(mask)
        if flow is not None:
            self._check_size(flow.shape[:2], index)
            self._archive.add(f"flow/{index:06d}.png", picture_codec.encode_flow(flow))
        self._timestamps_us.append(int(timestamp_us))

    def _check_size(self, size: tuple[int, ...], index: int) -> None:
        self._size = self._size or (int(size[0]), int(size[1]))
        if tuple(size) != self._size:
            raise DataError(
                f"{self._known['source']}: frame {index} is {size[1]} x {size[0]}, the first was "
                f"{self._size[1]} x {self._size[0]}: all frames of a clip must have one size"
            )

    def _path(self, identity: _Identity) -> Path:
        return self._folder / f"{identity.clip_id}.zip"

    def _write_annotations(self) -> None:
        if self._size is None:
            raise DataError(f"{self._known['source']}: no frames")
        if self._annotated:
            frames = range(len(self))
            tracks = [
                {"track_id": track_id, "rles": [rles.get(index) for index in frames]}
                for track_id, rles in sorted(self._tracks.items())
            ]
            void = [self._void.get(index) for index in frames]
            document = {"tracks": tracks, **({"void": void} if self._void else {})}
            self._archive.add("annotations.json", dump_json(document))
        self._tracks.clear()

    def _finish(self, identity: _Identity) -> None:
        """clip.json, the directory, and `entry`."""
        assert self._size is not None
        info = ClipInfo(
            **self._known,
            **dataclasses.asdict(identity),
            height=self._size[0],
            width=self._size[1],
            timestamps_us=tuple(self._timestamps_us),
            rate_hz=median_rate_hz(self._timestamps_us),
            truth=bool(self._annotated),
            annotated=tuple(self._annotated) if 0 < len(self._annotated) < len(self) else None,
        )
        self._archive.add("clip.json", dump_json({"format": FORMAT, **dataclasses.asdict(info)}))
        self._archive.finish()
        self.entry = to_entry(info, self._path(identity))


@dataclasses.dataclass(frozen=True)
class _Identity:
    clip_id: str
    source_sha256: str

    def __post_init__(self) -> None:
        if not is_clip_id(self.clip_id):
            raise ValueError(f"clip_id must be 16 hex digits, not {self.clip_id!r}")
