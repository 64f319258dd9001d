"""Masks of one image as COCO run lengths, all at once. One at a time, and with checks: tasks/picture_codec.py."""

from __future__ import annotations

from typing import Any

import numpy as np
from pycocotools import mask as coco_mask
from torch import Tensor

RLE = dict[str, Any]
"""{"size": [height, width], "counts": ASCII str}, as pycocotools writes it but for the str, which JSON can hold."""


def encode_masks(masks: Tensor) -> list[RLE]:
    """(N, H, W) bool on any device -> N RLEs."""
    if len(masks) == 0:
        return []
    # pycocotools wants (H, W, N) in Fortran order, which is (N, W, H) in C order read backwards.
    columns_first = masks.to("cpu").transpose(1, 2).contiguous().numpy().astype(np.uint8)
    encoded = coco_mask.encode(columns_first.transpose(2, 1, 0))
    return [{"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode("ascii")} for rle in encoded]


def mask_areas(rles: list[RLE]) -> np.ndarray:
    """Pixels in each mask: (N,) float64."""
    return coco_mask.area(rles).astype(np.float64) if rles else np.zeros(0)
