"""Writes the folder that FrameStore reads: clips one after another, in constant memory."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType

import numpy as np

from tasks.files import write_json
from tasks.frames import StoredClip, clips_document, shard_name
from tasks.labels import LabelStore, LabelWriter
from tasks.npy import NpyWriter, open_npy

SHARD_BYTES = 256 * 2**20


@dataclass(frozen=True)
class PreparedClip:
    """One clip's arrays in a folder of its own, rows counted from 0.

    frames.npy (T, H, W, 3) uint8; truth/ a LabelStore where has_truth; flow_rows.npy (M,) int64 and flow.npy
    (M, H, W, 2) float16 where has_flow. annotated: as in StoredClip.
    """

    folder: Path
    clip_id: str
    source: str
    has_truth: bool
    has_flow: bool
    annotated: tuple[int, ...] | None = None


class ClipPreparer:
    """Context manager that fills the folder of a PreparedClip frame by frame."""

    def __init__(self, folder: Path, size: tuple[int, int], *, truth: bool) -> None:
        folder.mkdir(parents=True)
        self._size = size
        self._folder = folder
        self._stack = ExitStack()
        self._frames = self._stack.enter_context(NpyWriter(folder / "frames.npy", np.uint8, (*size, 3)))
        self.labels: LabelWriter | None = None
        if truth:
            (folder / "truth").mkdir()
            self.labels = self._stack.enter_context(LabelWriter(folder / "truth", size))
        self._flow: tuple[NpyWriter, NpyWriter] | None = None

    @property
    def has_flow(self) -> bool:
        return self._flow is not None

    def add_frame(self, frame: np.ndarray) -> None:
        self._frames.append(frame[None])

    def add_flow(self, row: int, flow_uv: np.ndarray) -> None:
        """flow_uv: (H, W, 2) pixels from frame `row` to the next."""
        if self._flow is None:
            rows = self._stack.enter_context(NpyWriter(self._folder / "flow_rows.npy", np.int64, ()))
            fields = self._stack.enter_context(NpyWriter(self._folder / "flow.npy", np.float16, (*self._size, 2)))
            self._flow = rows, fields
        self._flow[0].append(np.array([row]))
        self._flow[1].append(flow_uv[None])

    def __enter__(self) -> ClipPreparer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)


class FrameWriter:
    """Context manager over a folder that exists. Add clips in the order of their rows, then `finish`."""

    def __init__(self, folder: Path, size: tuple[int, int], *, shard_bytes: int = SHARD_BYTES) -> None:
        self.folder = folder
        self.clips: list[StoredClip] = []
        self._size = size
        self._shard_frames = max(1, shard_bytes // (size[0] * size[1] * 3))
        self._shard_lengths: list[int] = []
        self._shard: NpyWriter | None = None
        self._labels: LabelWriter | None = None
        self._flow: tuple[NpyWriter, NpyWriter] | None = None

    def add(self, clip: PreparedClip) -> StoredClip:
        """Append one clip's frames, truth and flow; returns where they lie (its split is set by `finish`)."""
        frames = len(open_npy(clip.folder / "frames.npy", np.uint8, (*self._size, 3)))
        if self._shard is None or (self._shard.rows and self._shard.rows + frames > self._shard_frames):
            self._open_shard()
        assert self._shard is not None
        stored = StoredClip(
            clip_id=clip.clip_id,
            source=clip.source,
            split="train",
            shard=len(self._shard_lengths) - 1,
            start=self._shard.rows,
            frames=frames,
            first_row=sum(self._shard_lengths),
            truth=clip.has_truth,
            optical_flow=clip.has_flow,
            annotated=clip.annotated,
        )
        self._shard.extend(clip.folder / "frames.npy")
        self._shard_lengths[-1] += frames
        if clip.has_truth:
            self._add_truth(clip.folder / "truth", stored.first_row)
        if clip.has_flow:
            self._add_flow(clip.folder, stored.first_row)
        self.clips.append(stored)
        return stored

    def finish(self, splits: Iterable[str]) -> list[StoredClip]:
        """Write clips.json and splits.json; `splits` has one for each clip, in the order they were added."""
        self.close()
        self.clips = [replace(clip, split=split) for clip, split in zip(self.clips, splits, strict=True)]
        write_json(self.folder / "clips.json", clips_document(self._size, self.clips, self._shard_lengths))
        write_json(self.folder / "splits.json", {clip.clip_id: clip.split for clip in self.clips})
        return self.clips

    def close(self) -> None:
        for file in (self._shard, self._labels, *(self._flow or ())):
            if file is not None:
                file.close()

    def __enter__(self) -> FrameWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open_shard(self) -> None:
        if self._shard is not None:
            self._shard.close()
        self._shard = NpyWriter(self.folder / shard_name(len(self._shard_lengths)), np.uint8, (*self._size, 3))
        self._shard_lengths.append(0)

    def _add_truth(self, folder: Path, first_row: int) -> None:
        if self._labels is None:
            (self.folder / "truth").mkdir()
            self._labels = LabelWriter(self.folder / "truth", self._size)
        self._labels.extend(LabelStore.open(folder), first_row=first_row)

    def _add_flow(self, folder: Path, first_row: int) -> None:
        if self._flow is None:
            target = self.folder / "flow"
            target.mkdir()
            fields = NpyWriter(target / "flow.npy", np.float16, (*self._size, 2))
            self._flow = NpyWriter(target / "rows.npy", np.int64, ()), fields
        self._flow[0].append(open_npy(folder / "flow_rows.npy", np.int64, ()) + first_row)
        self._flow[1].extend(folder / "flow.npy")
