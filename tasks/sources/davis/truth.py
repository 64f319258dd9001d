"""Ground truth as pictures whose pixels are ids of objects, one picture a frame or one for each object."""

from __future__ import annotations

import enum
import hashlib
import json
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tasks import picture_codec
from tasks.clips import VOID
from tasks.errors import DataError, SourceError
from tasks.files import TEMPORARY_PREFIX
from tasks.sources.loading import read_bytes
from tasks.sources.places import Place, open_local

MAX_OBJECTS = 256
MAX_MASK_PIXELS = 2**29
"""Of all masks of one picture together."""

_MAX_MASK_BYTES = 64 * 2**20
_MAX_KEPT_BYTES = 256 * 2**20
_VOID = 255
_WHITE = 255


class Meaning(enum.Enum):
    """What the values in a mask picture say.

    IDS: 0 is background, every other value an object; index 255 of a palette is void: neither, and no score counts it.
    OBJECT: whatever is not 0 is the one object of its file.
    REGIONS: as IDS without void, and the background is black or white, whichever more of the sequence's borders are.
    """

    IDS = "ids"
    OBJECT = "object"
    REGIONS = "regions"


@dataclass(frozen=True)
class MaskFile:
    """object_id: of the object that the file stands for, where its values do not say."""

    place: Place
    object_id: int


@dataclass(frozen=True)
class FolderTruth:
    """Truth of one sequence (tasks.sources.sequences.Truth).

    files: of the pictures by number; a picture without any is not annotated, one whose masks are empty shows no object.
    merge: all objects count as one. groups: of ids that count as one object, which takes the smallest of them.
    Objects that are not labelled may be in view.
    """

    files: Mapping[int, tuple[MaskFile, ...]]
    meaning: Meaning
    merge: bool = False
    groups: tuple[tuple[int, ...], ...] = ()
    _kept: _Kept = field(default_factory=lambda: _Kept(), repr=False, compare=False)
    _background: list[int] = field(default_factory=list, repr=False, compare=False)

    @property
    def exhaustive(self) -> bool:
        return False

    def digest(self) -> str:
        """Hex SHA-256 over the mask files' contents and what is made of them; names do not count."""
        settings = [self.meaning.value, self.merge, sorted(map(sorted, self.groups))]
        digest = hashlib.sha256(json.dumps(settings).encode())
        with tempfile.TemporaryDirectory(prefix=TEMPORARY_PREFIX) as folder:
            for number, files in sorted(self.files.items()):
                for file in files:
                    try:
                        content = hashlib.sha256(self._read(file.place, Path(folder))).hexdigest()
                    except SourceError:
                        content = "unreadable"
                    digest.update(f" {number} {file.object_id} {content}".encode())
        return digest.hexdigest()

    def masks(self, number: int, size: tuple[int, int], folder: Path) -> Mapping[int, np.ndarray] | None:
        files = self.files.get(number)
        if files is None:
            return None
        found: dict[int, np.ndarray] = {}
        names = {one: min(group) for group in self.groups for one in group}
        for file in files:
            for object_id, mask in self._objects(file, size, folder).items():
                name = VOID if object_id == VOID else 1 if self.merge else names.get(object_id, object_id)
                found[name] = found[name] | mask if name in found else mask
        return found

    def _objects(self, file: MaskFile, size: tuple[int, int], folder: Path) -> dict[int, np.ndarray]:
        labels = self._labels(file, size, folder)
        if self.meaning is Meaning.OBJECT:
            return {file.object_id: labels > 0} if labels.any() else {}
        background = self._find_background(folder) if self.meaning is Meaning.REGIONS else 0
        void = self._void(file, folder)
        ids = [int(value) for value in np.unique(labels) if value not in (background, void)]
        if len(ids) > MAX_OBJECTS or len(ids) * labels.size > MAX_MASK_PIXELS:
            raise DataError(f"{_name(file)}: has {len(ids)} different values: not a picture of objects' ids")
        found = {value or _WHITE: labels == value for value in ids}  # 0 is an object only on white
        if void is not None and (unknown := labels == void).any():
            found[VOID] = unknown
        return found

    def _labels(self, file: MaskFile, size: tuple[int, int] | None, folder: Path) -> np.ndarray:
        return picture_codec.decode_labels(self._read(file.place, folder), size=size, where=_name(file))

    def _void(self, file: MaskFile, folder: Path) -> int | None:
        """The value of void pixels, which only pictures with a palette have."""
        header = picture_codec.read_header(self._read(file.place, folder), where=_name(file))
        return _VOID if self.meaning is Meaning.IDS and header.mode == "P" else None

    def _find_background(self, folder: Path) -> int:
        """0 or white. FBMS-59 uses the one in some sequences and the other in others."""
        if not self._background:
            votes: Counter[int] = Counter()
            for files in self.files.values():
                for file in files:
                    try:
                        labels = self._labels(file, None, folder)
                    except (DataError, SourceError):
                        continue
                    for edge in (labels[0], labels[-1], labels[:, 0], labels[:, -1]):
                        votes.update({value: int((edge == value).sum()) for value in (0, _WHITE)})
            self._background.append(_WHITE if votes[_WHITE] > votes[0] else 0)
        return self._background[0]

    def _read(self, place: Place, folder: Path) -> bytes:
        """Asked twice, for the digest and for the masks: kept in between while there is room."""
        data = self._kept.files.get(place.url)
        if data is None:
            with open_local(place, folder) as path:
                data = read_bytes(path, place.shown, _MAX_MASK_BYTES)
            if len(data) <= self._kept.room:
                self._kept.room -= len(data)
                self._kept.files[place.url] = data
        return data


@dataclass
class _Kept:
    files: dict[str, bytes] = field(default_factory=dict)
    room: int = _MAX_KEPT_BYTES


def _name(file: MaskFile) -> str:
    return Path(file.place.shown).name
