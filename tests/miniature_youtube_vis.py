"""A YouTube-VIS release of a few small frames, with every field of the real one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

HEIGHT, WIDTH = 48, 96
SIDE = 12
CATEGORIES = [{"id": i, "name": f"class {i}", "supercategory": "object"} for i in range(1, 41)]


@dataclass(frozen=True)
class MiniVideo:
    """numbers: of the frames that the annotation file lists. hidden: indices of them in which object 1 is not seen.

    category: of its two objects; None: no annotation at all.
    """

    id: int
    numbers: Sequence[int]
    hidden: Sequence[int] = ()
    category: int | None = 1

    @property
    def name(self) -> str:
        return f"{self.id:010x}"


def draw_frame(video: MiniVideo, number: int) -> np.ndarray:
    """(48, 96, 3) uint8: two squares over noise that stays; one moves a pixel a frame number, the other does not."""
    frame = np.random.default_rng(video.id).integers(40, 90, (HEIGHT, WIDTH, 3), np.uint8)
    for track in (1, 2):
        mask = draw_mask(track, number)
        frame[mask] = np.random.default_rng(track).integers(120, 250, (int(mask.sum()), 3), np.uint8)
    return frame


def draw_mask(track: int, number: int) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    left = 2 + number if track == 1 else 80
    mask[10 * track : 10 * track + SIDE, left : left + SIDE] = True
    return mask


def plain_rle(mask: np.ndarray) -> dict[str, Any]:
    """Uncompressed run lengths down the columns, zeros first, as the released train files have them."""
    counts, last, run = [], False, 0
    for value in mask.T.ravel().tolist():
        if value != last:
            counts.append(run)
            last, run = value, 0
        run += 1
    return {"counts": [*counts, run], "size": [HEIGHT, WIDTH]}


def annotate(video: MiniVideo) -> list[dict[str, Any]]:
    records = []
    for track in (1, 2):
        masks = [
            None if track == 1 and index in video.hidden else draw_mask(track, number)
            for index, number in enumerate(video.numbers)
        ]
        top, right = 10 * track, 80
        records.append(
            {
                "id": 2 * video.id + track,
                "video_id": video.id,
                "category_id": video.category,
                "iscrowd": 0,
                "height": HEIGHT,
                "width": WIDTH,
                "length": 1,
                "segmentations": [m if m is None else plain_rle(m) for m in masks],
                "bboxes": [
                    m if m is None else [2.0 + n if track == 1 else right, top, SIDE, SIDE]
                    for m, n in zip(masks, video.numbers, strict=True)
                ],
                "areas": [m if m is None else SIDE * SIDE for m in masks],
            }
        )
    return records


def describe(video: MiniVideo) -> dict[str, Any]:
    return {
        "id": video.id,
        "width": WIDTH,
        "height": HEIGHT,
        "length": len(video.numbers),
        "file_names": [f"{video.name}/{number:05d}.jpg" for number in video.numbers],
        "license": 1,
        "coco_url": "",
        "flickr_url": "",
        "date_captured": "2019-04-11 00:55:41.903902",
    }


def make_document(videos: Sequence[MiniVideo], *, published: bool = True) -> dict[str, Any]:
    """The annotation file. published: whether it has annotations; those of valid and test have null."""
    annotations = [record for video in videos if video.category is not None for record in annotate(video)]
    return {
        "info": {"description": "YouTube-VOS", "url": "", "version": "1.0", "year": 2019},
        "licenses": [{"url": "https://creativecommons.org/licenses/by/4.0/", "id": 1, "name": "CC BY 4.0"}],
        "videos": [describe(video) for video in videos],
        "categories": CATEGORIES,
        "annotations": annotations if published else None,
    }


def write_release(
    root: Path, videos: Sequence[MiniVideo], *, split: str = "train", year: int = 2019, published: bool = True
) -> Path:
    """Frames and annotation file of one split, whose path is returned."""
    write_frames(root / split / "JPEGImages", videos)
    path = root / f"{split}.json" if year == 2019 else root / split / "instances.json"
    path.write_text(json.dumps(make_document(videos, published=published)))
    return path


def write_all_frames(root: Path, videos: Sequence[MiniVideo], *, split: str = "train", tail: int = 2) -> None:
    """Every frame from each video's first listed to `tail` after its last."""
    filled = [MiniVideo(v.id, range(v.numbers[0], v.numbers[-1] + 1 + tail)) for v in videos]
    write_frames(root / f"{split}_all_frames" / "JPEGImages", filled)


def write_frames(images: Path, videos: Sequence[MiniVideo]) -> None:
    for video in videos:
        (images / video.name).mkdir(parents=True)
        for number in video.numbers:
            cv2.imwrite(str(images / video.name / f"{number:05d}.jpg"), draw_frame(video, number))
