"""The clip archive and the manifest of a folder of them: read and write. Layout in docs/architecture.md."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from tasks import picture_codec
from tasks.errors import DataError
from tasks.files import atomic_path, parse_json

if TYPE_CHECKING:
    from models.common.instances import Instances

FORMAT = 1
MANIFEST = "manifest.parquet"
REJECTED = "rejected.jsonl"
MAX_FRAMES = 1_000_000
_MAX_JSON_BYTES = 256 * 2**20
_CLIP_ID = re.compile(r"[0-9a-f]{16}")


@dataclass(frozen=True)
class ClipInfo:
    """clip.json. Times are integer microseconds.

    timestamps_us: strictly increasing, from the start of the source (not of the clip).
    start_us: what to add for absolute time since 1970, 0 where the source does not tell.
    ingest: the parameters that shaped the clip.
    """

    clip_id: str
    source: str
    source_sha256: str
    width: int
    height: int
    timestamps_us: tuple[int, ...]
    rate_hz: float
    camera: str | None = None
    start_us: int = 0
    split: str | None = None
    ingest: Mapping[str, Any] = field(default_factory=dict)
    truth: bool = False


@dataclass(frozen=True)
class ClipEntry:
    """One row of the manifest: a clip without opening it.

    seconds: includes the last frame's own duration. note: what a person should know about its source, or None.
    """

    clip_id: str
    path: Path
    source: str
    frames: int
    width: int
    height: int
    rate_hz: float
    split: str | None
    truth: bool
    seconds: float
    note: str | None = None


def make_clip_id(source_sha256: str, parameters: Mapping[str, Any], segment: int) -> str:
    """16 hex digits from the source's content, the parameters that shape the clip and the segment's number."""
    text = json.dumps([source_sha256, parameters, segment], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def median_rate_hz(timestamps_us: Iterable[int]) -> float:
    """Frames per second from the median interval; 0 for fewer than two frames."""
    intervals = np.diff(np.array(list(timestamps_us), dtype=np.float64))
    return 1e6 / float(np.median(intervals)) if len(intervals) else 0.0


class ClipReader:
    """Context manager with random access to the frames of one archive; everything read is bounded by what fits it.

    Raises DataError, in one line, for anything that is not an archive of ours or does not fit its own clip.json.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        try:
            self._zip = zipfile.ZipFile(self.path)
        except (OSError, zipfile.BadZipFile, NotImplementedError, ValueError) as error:
            raise DataError(f"{self.path}: not a readable clip archive ({error}): ingest it again") from None
        try:
            self.info = _parse_info(self._json("clip.json"), str(self.path))
            self._suffixes = self._find_frames()
            self._tracks = self._read_tracks() if self.info.truth else None
        except BaseException:
            self._zip.close()
            raise

    def __enter__(self) -> ClipReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._zip.close()

    def __len__(self) -> int:
        return len(self.info.timestamps_us)

    def frame_bytes(self, index: int) -> bytes:
        """The encoded frame (JPEG or PNG) as it lies in the archive."""
        index = self._check_index(index)
        return self._read(f"frames/{index:06d}{self._suffixes[index]}", self._pixel_bytes(bytes_per_pixel=12))

    def frame(self, index: int) -> np.ndarray:
        """(H, W, 3) uint8 RGB."""
        where = f"{self.path}: frame {index}"
        return picture_codec.decode_rgb(self.frame_bytes(index), size=(self.info.height, self.info.width), where=where)

    def frames(self) -> Iterator[np.ndarray]:
        return (self.frame(index) for index in range(len(self)))

    def truth(self, index: int) -> Instances | None:
        """Ground truth of one frame with track ids: None where the clip has none at all, empty where the frame has."""
        index = self._check_index(index)
        if self._tracks is None:
            return None
        import torch

        from models.common.instances import Instances

        height, width = self.info.height, self.info.width
        found = [(track_id, rles[index]) for track_id, rles in self._tracks if rles[index] is not None]
        if not found:
            empty = Instances.empty(height, width)
            return dataclasses.replace(empty, track_ids=torch.zeros(0, dtype=torch.int64))
        where = f"{self.path}: annotations.json, frame {index}"
        masks = np.stack([picture_codec.decode_rle(rle, (height, width), where=where) for _, rle in found])
        track_ids = torch.tensor([track_id for track_id, _ in found], dtype=torch.int64)
        return Instances.from_masks(torch.from_numpy(masks), track_ids=track_ids)

    def flow(self, index: int) -> np.ndarray | None:
        """True optical flow of frame index to index + 1: (H, W, 2) float32, NaN where unknown; None: not stored."""
        index = self._check_index(index)
        name = f"flow/{index:06d}.png"
        if name not in self._zip.NameToInfo:
            return None
        data = self._read(name, self._pixel_bytes(bytes_per_pixel=12))
        where = f"{self.path}: optical flow {index}"
        return picture_codec.decode_flow(data, size=(self.info.height, self.info.width), where=where)

    def _check_index(self, index: int) -> int:
        if not -len(self) <= index < len(self):
            raise IndexError(f"frame {index} of {len(self)}")
        return index % len(self)

    def _pixel_bytes(self, *, bytes_per_pixel: int) -> int:
        return bytes_per_pixel * self.info.height * self.info.width + 2**20

    def _read(self, name: str, max_bytes: int) -> bytes:
        """One entry. Entries are stored, so that one can never unpack to more than the archive itself holds."""
        entry = self._zip.NameToInfo.get(name)
        if entry is None:
            raise DataError(f"{self.path}: {name} is missing: ingest the source again")
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size or entry.flag_bits & 1:
            raise DataError(f"{self.path}: {name} is packed, which this project never writes: not an archive of ours")
        if entry.file_size > max_bytes:
            raise DataError(f"{self.path}: {name} claims {entry.file_size} bytes, more than it can need: file refused")
        try:
            return self._zip.read(entry)
        except (OSError, EOFError, zipfile.BadZipFile, NotImplementedError, ValueError) as error:
            raise DataError(f"{self.path}: {name} is damaged ({error}): ingest the source again") from None

    def _json(self, name: str) -> Any:
        return parse_json(self._read(name, _MAX_JSON_BYTES), name=f"{self.path}: {name}")

    def _find_frames(self) -> list[str]:
        known = self._zip.NameToInfo
        suffixes = []
        for index in range(len(self.info.timestamps_us)):
            suffix = next((s for s in (".jpg", ".png") if f"frames/{index:06d}{s}" in known), None)
            if suffix is None:
                raise DataError(f"{self.path}: frame {index} is missing: ingest the source again")
            suffixes.append(suffix)
        return suffixes

    def _read_tracks(self) -> list[tuple[int, list[Any]]]:
        document = self._json("annotations.json")
        try:
            tracks = [(int(track["track_id"]), list(track["rles"])) for track in document["tracks"]]
        except (TypeError, KeyError, ValueError, OverflowError):
            raise DataError(f"{self.path}: annotations.json does not have the layout of a clip") from None
        for track_id, rles in tracks:
            if len(rles) != len(self) or not -(2**63) <= track_id < 2**63:
                raise DataError(f"{self.path}: annotations.json: track {track_id} does not fit {len(self)} frames")
        return tracks


class ClipWriter:
    """Context manager that writes `folder/<clip_id>.zip`, whole or not at all. `entry` is its manifest row afterwards.

    Equal input gives equal bytes. Frames go straight to disk: memory does not grow with the clip, annotations excepted.
    """

    entry: ClipEntry

    def __init__(
        self,
        folder: Path,
        *,
        clip_id: str,
        source: str,
        source_sha256: str,
        camera: str | None = None,
        start_us: int = 0,
        split: str | None = None,
        ingest: Mapping[str, Any] | None = None,
        jpeg_quality: int = 95,
        lossless: bool = False,
    ) -> None:
        """lossless: write arrays as PNG instead of JPEG at `jpeg_quality`. Frames given as bytes stay as they are."""
        if not _CLIP_ID.fullmatch(clip_id):
            raise ValueError(f"clip_id must be 16 hex digits, not {clip_id!r}")
        self.path = Path(folder) / f"{clip_id}.zip"
        self._known: dict[str, Any] = {
            "clip_id": clip_id,
            "source": source,
            "source_sha256": source_sha256,
            "camera": camera,
            "start_us": start_us,
            "split": split,
            "ingest": dict(ingest or {}),
        }
        self._jpeg_quality = None if lossless else jpeg_quality
        self._size: tuple[int, int] | None = None
        self._timestamps_us: list[int] = []
        self._tracks: dict[int, dict[int, dict[str, Any]]] = {}
        self._truth = False
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> ClipWriter:
        temporary = self._stack.enter_context(atomic_path(self.path))
        self._zip = self._stack.enter_context(zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if kind is not None:
            return bool(self._stack.__exit__(kind, error, trace))
        with self._stack:
            info = self._finish()
        self.entry = _to_entry(info, self.path)
        return False

    def __len__(self) -> int:
        return len(self._timestamps_us)

    def add(
        self,
        frame: np.ndarray | bytes,
        timestamp_us: int,
        *,
        masks: Mapping[int, np.ndarray] | None = None,
        flow: np.ndarray | None = None,
    ) -> None:
        """Append one frame.

        frame: (H, W, 3) uint8 RGB, or the bytes of an 8-bit JPEG or PNG, kept as they are.
        masks: track id -> (H, W) bool. None in every frame: the clip has no ground truth; {}: nothing in this frame.
        flow: (H, W, 2) float32 pixels of this frame to the next, NaN where unknown.
        """
        index = len(self._timestamps_us)
        if index and timestamp_us <= self._timestamps_us[-1]:
            raise DataError(f"{self._known['source']}: timestamps do not increase at frame {index}")
        if index >= MAX_FRAMES:
            raise DataError(f"{self._known['source']}: more than {MAX_FRAMES} frames in one clip: lower clip_seconds")
        where = f"{self._known['source']}: frame {index}"
        size = frame.shape[:2] if isinstance(frame, np.ndarray) else picture_codec.read_header(frame, where=where).size
        self._check_size(size, index)
        data, suffix = picture_codec.encode_rgb(frame, jpeg_quality=self._jpeg_quality, where=where)
        self._write(f"frames/{index:06d}{suffix}", data)
        if masks is not None:
            self._truth = True
            for track_id, mask in sorted(masks.items()):
                self._check_size(mask.shape, index)
                if mask.any():
                    self._tracks.setdefault(int(track_id), {})[index] = picture_codec.encode_rle(mask)
        if flow is not None:
            self._check_size(flow.shape[:2], index)
            self._write(f"flow/{index:06d}.png", picture_codec.encode_flow(flow))
        self._timestamps_us.append(int(timestamp_us))

    def _check_size(self, size: tuple[int, ...], index: int) -> None:
        self._size = self._size or (int(size[0]), int(size[1]))
        if tuple(size) != self._size:
            raise DataError(
                f"{self._known['source']}: frame {index} is {size[1]} x {size[0]}, the first was "
                f"{self._size[1]} x {self._size[0]}: all frames of a clip must have one size"
            )

    def _write(self, name: str, data: bytes) -> None:
        """An entry with a fixed date and mode, so that equal content gives an equal archive."""
        entry = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
        entry.external_attr = 0o644 << 16
        entry.create_system = 3
        self._zip.writestr(entry, data)

    def _finish(self) -> ClipInfo:
        if self._size is None:
            raise DataError(f"{self._known['source']}: no frames")
        count = len(self._timestamps_us)
        if self._truth:
            tracks = [
                {"track_id": track_id, "rles": [rles.get(index) for index in range(count)]}
                for track_id, rles in sorted(self._tracks.items())
            ]
            self._write("annotations.json", _dump({"tracks": tracks}))
        info = ClipInfo(
            **self._known,
            height=self._size[0],
            width=self._size[1],
            timestamps_us=tuple(self._timestamps_us),
            rate_hz=median_rate_hz(self._timestamps_us),
            truth=self._truth,
        )
        self._write("clip.json", _dump({"format": FORMAT, **dataclasses.asdict(info)}))
        return info


def write_manifest(folder: Path, entries: Iterable[ClipEntry]) -> None:
    """Write folder/manifest.parquet, sorted by clip_id, paths relative to it; a clip given twice stands once."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    kept = {entry.clip_id: entry for entry in entries}
    rows = [dataclasses.asdict(kept[clip_id]) | {"path": kept[clip_id].path.name} for clip_id in sorted(kept)]
    kinds = {
        **dict.fromkeys(("clip_id", "path", "source", "split", "note"), pa.string()),
        **dict.fromkeys(("frames", "width", "height"), pa.int64()),
        **dict.fromkeys(("rate_hz", "seconds"), pa.float64()),
        "truth": pa.bool_(),
    }
    schema = pa.schema([(f.name, kinds[f.name]) for f in dataclasses.fields(ClipEntry)])
    with atomic_path(folder / MANIFEST) as temporary:
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), temporary)


def open_clips(folder: Path) -> list[ClipEntry]:
    """The clips that folder/manifest.parquet lists, sorted by clip_id. Raises DataError where one is missing."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = folder / MANIFEST
    if not path.is_file():
        raise DataError(f"{path} not found: run the ingest stage first (`dvc repro ingest`)")
    try:
        rows = pq.read_table(path).to_pylist()
        entries = [ClipEntry(**row | {"path": folder / row["path"]}) for row in rows]
    except (OSError, pa.ArrowException, TypeError, KeyError) as error:
        raise DataError(f"{path} is not a manifest of clips ({str(error).splitlines()[0]}): ingest again") from None
    for entry in entries:
        if not _CLIP_ID.fullmatch(str(entry.clip_id)) or entry.path != folder / f"{entry.clip_id}.zip":
            raise DataError(f"{path}: {entry.path} is not the name of a clip archive: ingest again")
        if not entry.path.is_file():
            raise DataError(f"{entry.path} is listed in {MANIFEST} and missing: `dvc pull` or ingest again")
    return sorted(entries, key=lambda entry: entry.clip_id)


def _to_entry(info: ClipInfo, path: Path) -> ClipEntry:
    span_us = info.timestamps_us[-1] - info.timestamps_us[0]
    return ClipEntry(
        clip_id=info.clip_id,
        path=path,
        source=info.source,
        frames=len(info.timestamps_us),
        width=info.width,
        height=info.height,
        rate_hz=info.rate_hz,
        split=info.split,
        truth=info.truth,
        seconds=span_us / 1e6 + (1 / info.rate_hz if info.rate_hz else 0.0),
    )


def _dump(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, allow_nan=False, separators=(",", ":")).encode()


def _parse_info(document: Any, where: str) -> ClipInfo:
    """clip.json, checked: the archive may come from anywhere."""
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise DataError(f"{where}: clip.json is not of format {FORMAT}: ingest the source again with this version")
    try:
        info = ClipInfo(**{key: value for key, value in document.items() if key != "format"})
        times = np.array(info.timestamps_us, dtype=np.int64)
        info = dataclasses.replace(info, timestamps_us=tuple(times.tolist()), rate_hz=float(info.rate_hz))
        fits = (
            bool(_CLIP_ID.fullmatch(info.clip_id))
            and isinstance(info.source, str)
            and isinstance(info.truth, bool)
            and info.split in (None, "train", "val", "test")
            and type(info.width) is int
            and type(info.height) is int
            and 0 < info.width * info.height <= picture_codec.MAX_PIXELS
            and times.ndim == 1
            and 0 < len(times) <= MAX_FRAMES
            and bool((np.diff(times) > 0).all())
        )
    except (TypeError, ValueError, OverflowError):
        fits = False
    if not fits:
        raise DataError(f"{where}: clip.json does not have the layout of a clip: ingest the source again")
    return info
