"""Read clip archives: random access, everything bounded by what fits the clip."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from tasks import picture_codec
from tasks.clips.info import annotated_frames, parse_info
from tasks.errors import DataError
from tasks.files import parse_json

if TYPE_CHECKING:
    from models.common.instances import Instances

_MAX_JSON_BYTES = 256 * 2**20


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
            self.info = parse_info(self._json("clip.json"), str(self.path))
            self._suffixes = self._find_frames()
            self._annotated = frozenset(annotated_frames(self.info))
            self._tracks: list[tuple[int, list[Any]]] | None = None
            self._void: list[Any] = []
            if self.info.truth:
                self._tracks, self._void = self._read_annotations()
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
        """Ground truth of one frame with track ids: None where it is not known, empty where there is no object."""
        found = self.truth_masks(index)
        if found is None:
            return None
        import torch

        from models.common.instances import Instances

        masks, track_ids = found
        return Instances.from_masks(torch.from_numpy(masks), track_ids=torch.from_numpy(track_ids))

    def truth_masks(self, index: int) -> tuple[np.ndarray, np.ndarray] | None:
        """The same without torch: masks (N, H, W) bool, of which some may be empty, and track ids (N,) int64."""
        index = self._check_index(index)
        if self._tracks is None or index not in self._annotated:
            return None
        size = self.info.height, self.info.width
        found = [(track_id, rles[index]) for track_id, rles in self._tracks if rles[index] is not None]
        where = f"{self.path}: annotations.json, frame {index}"
        masks = np.zeros((len(found), *size), bool)
        for mask, (_, rle) in zip(masks, found, strict=True):
            mask[...] = picture_codec.decode_rle(rle, size, where=where)
        return masks, np.array([track_id for track_id, _ in found], np.int64)

    def void(self, index: int) -> dict[str, Any] | None:
        """The pixels of one frame that its truth says nothing of, run-length encoded; None where there are none."""
        index = self._check_index(index)
        rle = self._void[index] if self._void else None
        if rle is None:
            return None
        where = f"{self.path}: annotations.json, void of frame {index}"
        return picture_codec.check_rle(rle, (self.info.height, self.info.width), where=where)

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

    def _read_annotations(self) -> tuple[list[tuple[int, list[Any]]], list[Any]]:
        """Tracks by id, and void by frame: empty where the clip has none."""
        document = self._json("annotations.json")
        try:
            tracks = [(int(track["track_id"]), list(track["rles"])) for track in document["tracks"]]
            void = list(document.get("void", ()))
        except (TypeError, KeyError, ValueError, OverflowError, AttributeError):
            raise DataError(f"{self.path}: annotations.json does not have the layout of a clip") from None
        for track_id, rles in tracks:
            if len(rles) != len(self) or not -(2**63) <= track_id < 2**63:
                raise DataError(f"{self.path}: annotations.json: track {track_id} does not fit {len(self)} frames")
        if len(void) not in (0, len(self)):
            raise DataError(f"{self.path}: annotations.json: void does not fit {len(self)} frames")
        return tracks, void
