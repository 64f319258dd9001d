"""COCO instance JSON, per image: read whole with every field checked, written as a stream."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from tasks.errors import DataError
from tasks.files import read_json
from tasks.formats import fields
from tasks.formats.json_lists import JsonLists
from tasks.formats.rle import RLE, read_mask

MAX_BYTES = 4 * 2**30
_IMAGE_KEYS = ("id", "file_name", "height", "width")
_ANNOTATION_KEYS = ("id", "image_id", "category_id", "segmentation", "bbox", "area", "iscrowd")
_LISTS = ("images", "annotations")


@dataclass(frozen=True)
class CocoImage:
    """file_name: relative, forward slashes. extra: further fields of the entry, kept as they are."""

    id: int
    file_name: str
    height: int
    width: int
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class CocoAnnotation:
    """segmentation: RLE of the image's size. bbox: x, y, width, height in pixels. area: of the mask, pixels.

    extra: further fields, such as score and track_id.
    """

    id: int
    image_id: int
    segmentation: RLE
    bbox: list[float]
    area: float
    category_id: int = fields.CATEGORY_ID
    iscrowd: int = 0
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class CocoFile:
    """header: everything but the two lists, categories included."""

    images: list[CocoImage]
    annotations: list[CocoAnnotation]
    header: Mapping[str, Any] = field(default_factory=dict)


class CocoWriter:
    """Context manager; `path` appears whole or not at all. Holds no image longer than its call.

    header: goes first, e.g. info; categories are the one class-agnostic category unless it says otherwise.
    """

    def __init__(self, path: Path, header: Mapping[str, Any] | None = None) -> None:
        self._lists = JsonLists(path, {"categories": fields.CATEGORIES, **(header or {})}, _LISTS)

    def __enter__(self) -> CocoWriter:
        self._lists.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        return self._lists.__exit__(kind, error, trace)

    def add_image(self, image: CocoImage) -> None:
        known = {"id": image.id, "file_name": image.file_name, "height": image.height, "width": image.width}
        self._lists.append("images", {**image.extra, **known})

    def add_annotation(self, annotation: CocoAnnotation) -> None:
        known = {key: getattr(annotation, key) for key in _ANNOTATION_KEYS}
        self._lists.append("annotations", {**annotation.extra, **known})


def read_coco(path: Path, *, max_bytes: int = MAX_BYTES) -> CocoFile:
    """Read any COCO instance file; polygons and plain run lengths become RLE.

    Raises DataError, in one line, for anything that does not fit: sizes, ids, masks, paths that leave the folder.
    """
    document = read_json(path, max_bytes=max_bytes)
    if not isinstance(document, dict):
        raise DataError(f"{path}: not a COCO file: an object with images and annotations is expected")
    where = str(path)
    images = [_read_image(entry, where) for entry in fields.take_list(document, "images", where=where)]
    fields.check_unique((image.id for image in images), where=f"{where}: images")
    sizes = {image.id: (image.height, image.width) for image in images}
    entries = fields.take_list(document, "annotations", where=where)
    annotations = [_read_annotation(entry, sizes, where) for entry in entries]
    fields.check_unique((annotation.id for annotation in annotations), where=f"{where}: annotations")
    return CocoFile(images, annotations, fields.rest_of(document, _LISTS))


def write_coco(path: Path, content: CocoFile) -> None:
    """Write what lies in memory; `CocoWriter` streams."""
    with CocoWriter(path, content.header) as writer:
        for image in content.images:
            writer.add_image(image)
        for annotation in content.annotations:
            writer.add_annotation(annotation)


def _read_image(entry: dict[str, Any], where: str) -> CocoImage:
    number = fields.take_id(entry, "id", where=f"{where}: images")
    where = f"{where}: image {number}"
    name = fields.check_file_name(entry.get("file_name"), where=where)
    height, width = fields.take_size(entry, where=where)
    return CocoImage(number, name, height, width, fields.rest_of(entry, _IMAGE_KEYS))


def _read_annotation(entry: dict[str, Any], sizes: Mapping[int, tuple[int, int]], where: str) -> CocoAnnotation:
    number = fields.take_id(entry, "id", where=f"{where}: annotations")
    where = f"{where}: annotation {number}"
    image_id = fields.take_id(entry, "image_id", where=where)
    if image_id not in sizes:
        raise DataError(f"{where}: image {image_id} is not in the file")
    return CocoAnnotation(
        id=number,
        image_id=image_id,
        segmentation=read_mask(entry.get("segmentation"), sizes[image_id], where=where),
        bbox=fields.check_box(entry.get("bbox"), where=where),
        area=fields.check_area(entry.get("area"), where=where),
        category_id=fields.take_id(entry, "category_id", where=where),
        iscrowd=int(entry.get("iscrowd") in (1, True)),
        extra=fields.rest_of(entry, _ANNOTATION_KEYS),
    )
