"""The frame store: frames at training size, the pairs among them, and truth where there is any; decodes nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from tasks.errors import DataError
from tasks.files import check_scarce, read_json
from tasks.labels import LabelStore
from tasks.npy import open_npy

if TYPE_CHECKING:
    from models.common.instances import Instances

FORMAT = 2
Split = Literal["train", "val", "test"]
SPLITS: tuple[str, ...] = get_args(Split)
_MEND = "run the pairs stage again"
_MOST_MAPPED = 128
"""Shards of a store mapped at a time: each holds a file descriptor, often 1,024 are allowed, and 1,000 hours of video
have some 29,000 shards.
"""


@dataclass(frozen=True)
class StoredClip:
    """Where the frames of one clip lie.

    first_row: row of the clip's first frame, counted over all shards; its frames are rows first_row .. stop - 1.
    shard, start: the file, and the row within it.
    truth: whether its frames have ground truth (perhaps of no instance); annotated: which do, counted from the clip's
    first, ascending, None where all do. optical_flow: whether they have true motion.
    """

    clip_id: str
    source: str
    split: str
    shard: int
    start: int
    frames: int
    first_row: int
    truth: bool = False
    optical_flow: bool = False
    annotated: tuple[int, ...] | None = None

    @property
    def stop(self) -> int:
        return self.first_row + self.frames

    def truth_rows(self) -> np.ndarray:
        """Rows (N,) int64 of its frames that have ground truth."""
        if not self.truth:
            return np.zeros(0, np.int64)
        if self.annotated is None:
            return np.arange(self.first_row, self.stop, dtype=np.int64)
        return self.first_row + np.array(self.annotated, np.int64)


@dataclass(frozen=True)
class Pairs:
    """row_a, row_b: (P,) int64 rows of frames t and t+1 of one clip; dt_s: (P,) float32 seconds from a to b."""

    row_a: np.ndarray
    row_b: np.ndarray
    dt_s: np.ndarray

    def __len__(self) -> int:
        return len(self.row_a)

    def __getitem__(self, index: np.ndarray | slice) -> Pairs:
        return Pairs(self.row_a[index], self.row_b[index], self.dt_s[index])


@dataclass(frozen=True)
class FlowStore:
    """True optical flow of some rows: rows (N,) int64 ascending, flow_uv (N, H, W, 2) pixels, row -> row + 1."""

    rows: np.ndarray
    flow_uv: np.ndarray

    def __getitem__(self, row: int) -> np.ndarray | None:
        """(H, W, 2) float32 in pixels, or None where `row` has none (the last frame of a clip)."""
        at = int(np.searchsorted(self.rows, row))
        if at == len(self.rows) or self.rows[at] != row:
            return None
        return np.asarray(self.flow_uv[at], np.float32)


class FrameStore:
    """Random access to frames (H, W, 3) uint8 RGB by row, and the pairs of each split."""

    def __init__(
        self,
        size: tuple[int, int],
        clips: list[StoredClip],
        shard_frames: Sequence[int],
        shard: Callable[[int], np.ndarray],
        pairs: dict[str, Pairs],
        *,
        truth: LabelStore | None = None,
        optical_flow: FlowStore | None = None,
    ) -> None:
        """shard_frames: the number of frames in each shard. shard: (number) -> its (T, H, W, 3) uint8 frames."""
        self.size = size
        self.clips = clips
        self.truth = truth
        self.optical_flow = optical_flow
        self._shard = shard
        self._shard_starts = np.cumsum([0, *shard_frames])
        self._pairs = pairs

    @classmethod
    def open(cls, folder: Path) -> FrameStore:
        """Open data/pairs, whose shards are mapped when they are read. Raises DataError in one line where it is
        missing, broken or its files disagree, StorageError where this process may open no more files.
        """
        folder = Path(folder)
        document = _read_document(folder / "clips.json")
        size, clips = document["size"], document["clips"]

        @lru_cache(maxsize=_MOST_MAPPED)
        def shard(number: int) -> np.ndarray:
            return open_npy(folder / shard_name(number), np.uint8, (*size, 3))

        shard_frames = [len(shard(number)) for number in range(len(document["shards"]))]
        _check_clips(folder, clips, shard_frames)
        truth = LabelStore.open(folder / "truth") if (folder / "truth").is_dir() else None
        optical_flow = _open_flow(folder / "flow", size) if (folder / "flow").is_dir() else None
        rows = clips[-1].stop if clips else 0
        for name, labelled in (("truth", truth), ("flow", optical_flow)):
            if labelled is not None and len(labelled.rows) and labelled.rows[-1] >= rows:
                raise DataError(f"{folder / name} has labels for frames that are not there: {_MEND}")
        if truth is not None and truth.size != size:
            raise DataError(f"{folder / 'truth'} is of size {truth.size}, the frames of {size}: {_MEND}")
        pairs = _read_pairs(folder / "pairs.parquet", clips)
        return cls(size, clips, shard_frames, shard, pairs, truth=truth, optical_flow=optical_flow)

    @classmethod
    def from_arrays(
        cls,
        clips: Sequence[np.ndarray],
        splits: Sequence[str],
        rate_hz: float,
        truth: Sequence[Sequence[Instances] | None] | None = None,
        optical_flow: Sequence[np.ndarray | None] | None = None,
    ) -> FrameStore:
        """A store in memory, with every consecutive pair of frames, none dropped.

        clips: per clip (T, H, W, 3) uint8, all of one size. splits: the split of each. truth: per clip one per
        frame (Instances), or None. optical_flow: per clip (T, H, W, 2) pixels, of which the last is ignored, or None.
        """
        truths = list(truth) if truth is not None else [None] * len(clips)
        flows: list[np.ndarray | None] = list(optical_flow) if optical_flow is not None else [None] * len(clips)
        if not len(clips) == len(splits) == len(truths) == len(flows):
            raise ValueError("clips, splits, truth and optical_flow differ in length")
        size = _common_size(clips)
        first_rows = np.cumsum([0, *(len(frames) for frames in clips)]).tolist()
        stored = [
            StoredClip(
                clip_id=f"clip-{number:05d}", source=f"array-{number:05d}", split=splits[number], shard=number, start=0,
                frames=len(frames), first_row=first_rows[number],
                truth=truths[number] is not None, optical_flow=flows[number] is not None,
            )
            for number, frames in enumerate(clips)
        ]  # fmt: skip
        pairs = {split: _consecutive([c for c in stored if c.split == split], 1.0 / rate_hz) for split in SPLITS}
        items = ((c.first_row + i, t) for c, per in zip(stored, truths, strict=True) for i, t in enumerate(per or ()))
        labels = LabelStore.from_items(size, items) if truth is not None else None
        flow_store = _stack_flow(stored, flows, size) if optical_flow is not None else None
        shard_frames = [len(frames) for frames in clips]
        return cls(size, stored, shard_frames, clips.__getitem__, pairs, truth=labels, optical_flow=flow_store)

    def __len__(self) -> int:
        """Number of frames."""
        return int(self._shard_starts[-1])

    def frame(self, row: int) -> np.ndarray:
        """(H, W, 3) uint8 RGB, a read-only view."""
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of a store of {len(self)} frames")
        shard = int(np.searchsorted(self._shard_starts, row, side="right")) - 1
        return np.asarray(self._shard(shard)[row - self._shard_starts[shard]])

    def gather(self, rows: np.ndarray) -> np.ndarray:
        """(B, H, W, 3) uint8 RGB copies of `rows` (B,), in their order; reads each shard once, front to back."""
        rows = np.asarray(rows, np.int64)
        if len(rows) and (rows.min() < 0 or rows.max() >= len(self)):
            raise IndexError(f"rows {rows.min()} to {rows.max()} of a store of {len(self)} frames")
        order = np.argsort(rows, kind="stable")
        ascending = rows[order]
        out = np.empty((len(rows), *self.size, 3), np.uint8)
        shards, lows = np.unique(np.searchsorted(self._shard_starts, ascending, side="right") - 1, return_index=True)
        for shard, low, high in zip(shards.tolist(), lows, np.append(lows, len(rows))[1:], strict=True):
            out[order[low:high]] = self._shard(shard)[ascending[low:high] - self._shard_starts[shard]]
        return out

    def clip_frames(self, clip: StoredClip) -> np.ndarray:
        """(T, H, W, 3) uint8 RGB, a view of the shard."""
        return np.asarray(self._shard(clip.shard)[clip.start : clip.start + clip.frames])

    def pairs(self, split: str | None = None) -> Pairs:
        """Pairs of one split, or of all, in ascending row_a."""
        if split is not None:
            if split not in SPLITS:
                raise ValueError(f"unknown split {split!r}: one of {', '.join(SPLITS)}")
            return self._pairs[split]
        joined = [np.concatenate([getattr(self._pairs[s], f.name) for s in SPLITS]) for f in fields(Pairs)]
        return Pairs(*joined)[np.argsort(joined[0], kind="stable")]


def open_clip(folder: Path, clip: StoredClip, size: tuple[int, int]) -> np.ndarray:
    """(T, H, W, 3) uint8 RGB, a view of the frames of one clip of a store in `folder`, of which only its shard is
    opened: the pairs of 1,000 hours take gigabytes. Raises what `FrameStore.open` raises.
    """
    frames = open_npy(folder / shard_name(clip.shard), np.uint8, (*size, 3))[clip.start : clip.start + clip.frames]
    if len(frames) != clip.frames:
        raise DataError(f"{folder / shard_name(clip.shard)} ends before clip {clip.clip_id} does: {_MEND}")
    return frames


def shard_name(number: int) -> str:
    return f"frames-{number:05d}.npy"


def clips_document(size: tuple[int, int], clips: Sequence[StoredClip], shards: Sequence[int]) -> dict[str, Any]:
    """What clips.json holds; `shards` is the number of frames in each."""
    return {
        "format": FORMAT, "height": size[0], "width": size[1], "shards": list(shards),
        "clips": [asdict(clip) for clip in clips],
    }  # fmt: skip


def _read_document(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise DataError(f"{path} is missing: run the pairs stage first")
    value = read_json(path)
    try:
        if value["format"] != FORMAT:
            raise DataError(f"{path} has format {value['format']}, this version reads {FORMAT}: {_MEND}")
        size = (int(value["height"]), int(value["width"]))
        clips = [_parse_clip(entry) for entry in value["clips"]]
        return {"size": size, "shards": [int(frames) for frames in value["shards"]], "clips": clips}
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} is broken ({type(error).__name__} at {error}): {_MEND}") from None


def _parse_clip(entry: dict[str, Any]) -> StoredClip:
    annotated = entry.get("annotated")
    return StoredClip(**entry | {"annotated": None if annotated is None else tuple(annotated)})


def _check_clips(folder: Path, clips: Iterable[StoredClip], shard_frames: Sequence[int]) -> None:
    """Rows must follow one another without gaps, each clip inside its shard, so that a row means one frame."""
    starts = np.cumsum([0, *shard_frames]).tolist()
    row = 0
    for clip in clips:
        annotated = clip.annotated or ()
        numbers = (clip.shard, clip.start, clip.frames, clip.first_row, *annotated)
        if not all(isinstance(number, int) for number in numbers) or clip.split not in SPLITS:
            raise DataError(f"{folder / 'clips.json'}: clip {clip.clip_id} has fields of the wrong kind: {_MEND}")
        inside = 0 <= clip.shard < len(shard_frames) and clip.first_row == row == starts[clip.shard] + clip.start
        if (
            not inside
            or clip.frames < 1
            or clip.stop > starts[clip.shard + 1]
            or any(not 0 <= index < clip.frames for index in annotated)
        ):
            raise DataError(f"{folder / 'clips.json'}: clip {clip.clip_id} does not fit its shard: {_MEND}")
        row = clip.stop
    if row != starts[-1]:
        raise DataError(f"{folder}: clips.json names {row} frames, the shards hold {starts[-1]}: {_MEND}")


def _read_pairs(path: Path, clips: list[StoredClip]) -> dict[str, Pairs]:
    """Batch by batch, since a table of millions of pairs takes ten times the memory of what is kept of it."""
    # Here and not above: training runs on machines without pyarrow, from stores in memory.
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    stops = np.array([clip.stop for clip in clips], np.int64)
    known = np.array([SPLITS.index(clip.split) for clip in clips], np.int8)
    names, kinds = [field.name for field in fields(Pairs)], (np.int64, np.int64, np.float32)
    parts = {split: [[np.zeros(0, kind)] for kind in kinds] for split in SPLITS}
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(columns=[*names, "split"]):
                splits = pc.index_in(batch["split"], value_set=pa.array(SPLITS)).fill_null(-1).to_numpy()
                columns = [
                    batch[name].to_numpy(zero_copy_only=False).astype(kind)
                    for name, kind in zip(names, kinds, strict=True)
                ]
                _check_pairs(path, columns[0], columns[1], splits, stops, known)
                for number, split in enumerate(SPLITS):
                    for part, column in zip(parts[split], columns, strict=True):
                        part.append(column[splits == number])
    except FileNotFoundError:
        raise DataError(f"{path} is missing: {_MEND}") from None
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, DataError):
            raise
        check_scarce(path, error)
        raise DataError(f"{path} is broken ({' '.join(str(error).split())[:120]}): {_MEND}") from None
    return {split: Pairs(*(_join(part) for part in parts[split])) for split in SPLITS}


def _check_pairs(
    path: Path, row_a: np.ndarray, row_b: np.ndarray, splits: np.ndarray, stops: np.ndarray, known: np.ndarray
) -> None:
    """stops, known: of each clip the end of its rows and the number of its split; splits: those that the pairs name."""
    clip_a, clip_b = np.searchsorted(stops, row_a, side="right"), np.searchsorted(stops, row_b, side="right")
    if len(row_a) and (row_a.min() < 0 or clip_a.max() >= len(stops) or (clip_a != clip_b).any()):
        raise DataError(f"{path} has a pair whose frames are not of one clip: {_MEND}")
    if (splits != known[clip_a]).any():
        raise DataError(f"{path} and clips.json disagree on the splits: {_MEND}")


def _join(part: list[np.ndarray]) -> np.ndarray:
    """Frees the pieces, of which there are as many bytes as of the whole."""
    whole = np.concatenate(part)
    part.clear()
    return whole


def _open_flow(folder: Path, size: tuple[int, int]) -> FlowStore:
    rows = np.array(open_npy(folder / "rows.npy", np.int64, ()))
    flow_uv = open_npy(folder / "flow.npy", np.float16, (*size, 2))
    if len(rows) != len(flow_uv) or (np.diff(rows) <= 0).any() or (len(rows) and rows[0] < 0):
        raise DataError(f"{folder}: rows and flow do not fit: {_MEND}")
    return FlowStore(rows, flow_uv)


def _common_size(clips: Sequence[np.ndarray]) -> tuple[int, int]:
    sizes = {frames.shape[1:] for frames in clips}
    if len(sizes) != 1 or any(frames.dtype != np.uint8 or frames.ndim != 4 for frames in clips):
        raise ValueError(f"clips must be (T, H, W, 3) uint8 of one size, not {sorted(sizes)}")
    height, width, channels = sizes.pop()
    if channels != 3:
        raise ValueError(f"clips must have 3 channels, not {channels}")
    return height, width


def _consecutive(clips: Sequence[StoredClip], dt_s: float) -> Pairs:
    rows = [np.arange(clip.first_row, clip.stop - 1, dtype=np.int64) for clip in clips]
    row_a = np.concatenate([np.zeros(0, np.int64), *rows])
    return Pairs(row_a, row_a + 1, np.full(len(row_a), dt_s, np.float32))


def _stack_flow(clips: list[StoredClip], flows: list[np.ndarray | None], size: tuple[int, int]) -> FlowStore:
    known = [(clip, flow) for clip, flow in zip(clips, flows, strict=True) if flow is not None]
    rows = _consecutive([clip for clip, _ in known], 1.0).row_a
    empty = np.zeros((0, *size, 2), np.float32)
    return FlowStore(rows, np.concatenate([empty, *(flow[: clip.frames - 1] for clip, flow in known)]))
