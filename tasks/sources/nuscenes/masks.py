"""Masks of nuImages: of the objects in key frames. Surfaces (surface_ann) are no instances and left out."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tasks.errors import DataError
from tasks.picture_codec import decode_rle
from tasks.sources.nuscenes.pictures import show
from tasks.sources.nuscenes.release import Release
from tasks.sources.nuscenes.tables import Recording

MAX_OBJECTS = 2_000
_MAX_DECODED_BYTES = 2**32


@dataclass(frozen=True)
class KeyFrameMasks:
    """A Truth. frames: number of a key frame -> the masks of its objects, as object_ann holds them or None."""

    frames: Mapping[int, tuple[Any, ...]]

    @property
    def exhaustive(self) -> bool:
        """nuImages labels every object of its classes, which is all that moves by itself; an object that has a box and
        no mask leaves a hole."""
        return all(mask is not None for masks in self.frames.values() for mask in masks)

    def digest(self) -> str:
        return hashlib.sha256(json.dumps(sorted(self.frames.items())).encode()).hexdigest()

    def masks(self, number: int, size: tuple[int, int], folder: Path) -> Mapping[int, np.ndarray] | None:
        """Objects are numbered by their place in the table: a sample has one key frame, and tracks of one frame."""
        found = self.frames.get(number)
        if found is None:
            return None
        if len(found) * size[0] * size[1] > _MAX_DECODED_BYTES:
            raise DataError(f"object_ann: {len(found)} masks of {size[1]} x {size[0]}: too many to decode")
        return {place: decode_mask(mask, size) for place, mask in enumerate(found) if mask is not None}


def decode_mask(mask: Any, size: tuple[int, int]) -> np.ndarray:
    """(H, W) bool of {"size": [H, W], "counts": base64 of COCO's compressed run lengths}. Raises DataError."""
    counts = mask.get("counts") if isinstance(mask, dict) else None
    if not isinstance(counts, str):
        raise DataError(f"object_ann: {show(mask)} is not a mask")
    try:
        text = base64.b64decode(counts, validate=True).decode("ascii")
    except (binascii.Error, ValueError):
        raise DataError(f"object_ann: the counts {show(counts)} are not base64 of run lengths") from None
    return decode_rle({"size": mask.get("size"), "counts": text}, size, where="object_ann")


def read_masks(release: Release, recordings: Iterable[Recording]) -> dict[str, list[Any]] | None:
    """sample_data token of a key frame -> masks of its objects; None where the release has no annotation at all.

    The test part is published with empty tables: no key frame of it is known to be empty.
    """
    pictures = {picture.token: (picture, recording) for recording in recordings for picture in recording.pictures}
    masks: dict[str, list[Any]] = {token: [] for token, (picture, _) in pictures.items() if picture.is_key}
    any_record = False
    for record in release.read("object_ann", "token", "sample_data_token"):
        any_record = True
        token = record["sample_data_token"]
        if token not in pictures:  # of a camera or a sample that is not selected
            continue
        _, recording = pictures[token]
        where = f"object_ann {show(record['token'])}"
        if token not in masks:
            recording.fault = recording.fault or f"{where}: belongs to a picture that is no key frame"
        elif len(masks[token]) >= MAX_OBJECTS:
            recording.fault = recording.fault or f"{where}: more than {MAX_OBJECTS} objects in a picture"
        else:
            masks[token].append(record.get("mask"))
    return masks if any_record else None
