"""Masks of COCO and YouTube-VIS files as run lengths: those of an image encoded at once, every kind read."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import Tensor

from tasks.errors import DataError
from tasks.picture_codec import check_rle

RLE = dict[str, Any]
"""{"size": [height, width], "counts": ASCII str}, as pycocotools writes it but for the str, which JSON can hold."""

_MAX_POLYGON_POINTS = 100_000


def encode_masks(masks: Tensor) -> list[RLE]:
    """(N, H, W) bool on any device -> N RLEs."""
    # pycocotools goes down the columns: a transposed mask in C order is what it calls Fortran order, read backwards.
    columns_first = (cv2.transpose(mask) for mask in masks.to("cpu", torch.uint8).numpy())
    return [_to_text(coco_mask.encode(mask.T)) for mask in columns_first]


def mask_areas(rles: list[RLE]) -> np.ndarray:
    """Pixels in each mask: (N,) float64."""
    # pycocotools 2.0.11 fails on more than 255 at once.
    batches = (coco_mask.area(rles[start : start + 255]) for start in range(0, len(rles), 255))
    return np.concatenate([np.zeros(0), *batches])


def read_mask(segmentation: Any, size: tuple[int, int], *, where: str) -> RLE:
    """A mask as files hold it - compressed or plain run lengths, or polygons - as an RLE of `size` = (height, width).

    Raises DataError where it is none of these or does not fit the size.
    """
    if isinstance(segmentation, list):
        return _from_polygons(segmentation, size, where=where)
    if isinstance(segmentation, dict) and isinstance(segmentation.get("counts"), list):
        return _from_runs(segmentation, size, where=where)
    return check_rle(segmentation, size, where=where)


def _from_runs(segmentation: dict[str, Any], size: tuple[int, int], *, where: str) -> RLE:
    counts = segmentation["counts"]
    plain = all(type(run) is int and run >= 0 for run in counts)
    if not plain or segmentation.get("size") != list(size) or sum(counts) != size[0] * size[1]:
        raise DataError(f"{where}: run lengths do not fill {size[1]} x {size[0]}: mask refused")
    return _to_text(coco_mask.frPyObjects({"size": list(size), "counts": counts}, *size))


def _from_polygons(polygons: list[Any], size: tuple[int, int], *, where: str) -> RLE:
    height, width = size
    for polygon in polygons:
        if not isinstance(polygon, list) or not 6 <= len(polygon) <= 2 * _MAX_POLYGON_POINTS or len(polygon) % 2:
            raise DataError(f"{where}: a polygon needs x, y of three points or more")
        if not all(type(value) in (int, float) for value in polygon):
            raise DataError(f"{where}: a polygon may hold numbers only")
        # pycocotools walks along every edge, however long a file claims it to be.
        if any(abs(x) > 2 * width + 1 for x in polygon[::2]) or any(abs(y) > 2 * height + 1 for y in polygon[1::2]):
            raise DataError(f"{where}: a polygon lies far outside the image of {width} x {height}: mask refused")
    if not polygons:
        return _to_text(coco_mask.encode(np.zeros(size, np.uint8, order="F")))
    return _to_text(coco_mask.merge(coco_mask.frPyObjects(polygons, height, width)))


def _to_text(rle: dict[str, Any]) -> RLE:
    return {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode("ascii")}
