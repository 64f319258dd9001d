"""Tiny datasets in the formats of DAVIS 2016 and 2017, SegTrackv2, FBMS-59 and YouTube-VOS 2018, as released."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = (24, 32)
FRAMES = 4
PALETTE = [0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0] + [64] * (3 * 252)


def labels(index: int, *, void: bool = False) -> np.ndarray:
    """(H, W) uint8: object 1 of 6 x 6 in two parts moves right, object 2 of 5 x 4 down; void: a column of 255."""
    picture = np.zeros(SIZE, np.uint8)
    picture[2:8, index : index + 6] = 1
    picture[4, index : index + 6] = 0
    picture[10 + index : 15 + index, 20:24] = 2
    if void:
        picture[:, 30] = 255
    return picture


def write_frame(path: Path, index: int) -> None:
    frame = np.full((*SIZE, 3), (20, 40, 160), np.uint8)
    frame[labels(index) == 1] = (230, 120, 30)
    frame[labels(index) == 2] = (30, 220, 90)
    save(path, Image.fromarray(frame))


def write_palette(path: Path, ids: np.ndarray) -> None:
    picture = Image.fromarray(ids).convert("P")
    picture.putdata(ids.ravel().tolist())
    picture.putpalette(PALETTE)
    save(path, picture)


def write_binary(path: Path, mask: np.ndarray) -> None:
    """0 and 255 in 8 bits of grey."""
    save(path, Image.fromarray(mask.astype(np.uint8) * 255))


def write_colours(path: Path, ids: np.ndarray, colours: dict[int, tuple[int, int, int]]) -> None:
    rgb = np.zeros((*SIZE, 3), np.uint8)
    for value, colour in colours.items():
        rgb[ids == value] = colour
    save(path, Image.fromarray(rgb))


def save(path: Path, picture: Image.Image) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)


def write_lines(path: Path, lines: Iterable[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


def write_davis_2016(root: Path, resolutions: Iterable[str] = ("480p",)) -> Path:
    """bear is for training, camel for validation: one object, 0 and 255, and a list with a line for each frame."""
    for resolution in resolutions:
        lines: dict[str, list[str]] = {}
        for offset, (name, split) in enumerate((("bear", "train"), ("camel", "val"))):
            for index in range(FRAMES):
                stem = f"{resolution}/{name}/{index:05d}"
                write_frame(root / f"JPEGImages/{stem}.jpg", index + offset)
                write_binary(root / f"Annotations/{stem}.png", labels(index + offset) > 0)
                line = f"/JPEGImages/{stem}.jpg /Annotations/{stem}.png "
                lines.setdefault(split, []).append(line)
                lines.setdefault("trainval", []).append(line)
        for split, content in lines.items():
            write_lines(root / f"ImageSets/{resolution}/{split}.txt", content)
    return root


def write_davis_2017(root: Path) -> Path:
    """dogs-jump and lindy-hop, palette pictures; the unsupervised annotations have void in them."""
    for offset, name in enumerate(("dogs-jump", "lindy-hop")):
        for index in range(FRAMES):
            stem = f"480p/{name}/{index:05d}"
            write_frame(root / f"JPEGImages/{stem}.jpg", index + offset)
            write_palette(root / f"Annotations/{stem}.png", labels(index + offset))
            write_palette(root / f"Annotations_unsupervised/{stem}.png", labels(index + offset, void=True))
    write_lines(root / "ImageSets/2016/val.txt", ["lindy-hop"])
    write_lines(root / "ImageSets/2017/train.txt", ["lindy-hop"])
    write_lines(root / "ImageSets/2017/val.txt", ["dogs-jump"])
    write_lines(root / "ImageSets/2019/test-dev.txt", ["lindy-hop"])
    return root


def write_flat(root: Path) -> Path:
    for index in range(FRAMES):
        write_frame(root / f"goat/JPEGImages/{index:05d}.jpg", index)
        write_binary(root / f"goat/Annotations/{index:05d}.png", labels(index) > 0)
    return root


def write_segtrack(root: Path) -> Path:
    """bmx has a folder for each object, frog one object; frames are PNG there and BMP here, masks of other names."""
    for index in range(FRAMES):
        write_frame(root / f"JPEGImages/bmx/bmx_{index + 1:05d}.png", index)
        one = (labels(index) == 1).astype(np.uint8) * 255
        write_palette(root / f"GroundTruth/bmx/1/bmx_{index + 1:05d}.png", one)
        write_binary(root / f"GroundTruth/bmx/2/bmx_{index + 1:05d}.png", labels(index) > 0)
        write_frame(root / f"JPEGImages/frog/frog2_{index:05d}.bmp", index + 1)
        write_binary(root / f"GroundTruth/frog/{index:04d}.bmp", labels(index + 1) == 2)
    write_lines(root / "ImageSets/all.txt", ["*bmx", "*frog"])
    return root


def write_fbms(root: Path) -> Path:
    """cars1: greys on black, of two of the frames; camel01: colours on white, with greys that merge objects beside."""
    for index in range(FRAMES):
        write_frame(root / f"Trainingset/cars1/cars1_{index + 1:02d}.jpg", index)
        write_frame(root / f"Testset/camel01/camel01_{index + 1:04d}.jpg", index + 1)
    write_lines(root / "Trainingset/cars1/GroundTruth/cars1Def.dat", ["2"])
    for index in (0, 3):
        grey = np.array([0, 80, 160], np.uint8)[labels(index)]
        save(root / f"Trainingset/cars1/GroundTruth/cars1_{index + 1:02d}.pgm", Image.fromarray(grey))
        folder = root / "Testset/camel01/GroundTruth"
        colours = {0: (255, 255, 255), 1: (0, 0, 0), 2: (0, 0, 255)}
        write_colours(folder / f"{index + 1:03d}_gt.ppm", labels(index + 1), colours)
        save(folder / f"{index + 1:03d}_gt.pgm", Image.fromarray(np.full(SIZE, 29, np.uint8)))
        save(folder / f"PROB{index + 2:03d}_gt.ppm", Image.new("RGB", SIZE[::-1], (9, 9, 9)))
    return root


def write_youtube_vos(root: Path) -> Path:
    """Every fifth frame with palette masks; all frames of one video beside. valid has the first mask alone."""
    for index in range(FRAMES):
        write_frame(root / f"train/JPEGImages/003234408d/{5 * index:05d}.jpg", index)
        write_palette(root / f"train/Annotations/003234408d/{5 * index:05d}.png", labels(index))
        write_frame(root / f"valid/JPEGImages/00f88c4f0a/{5 * index + 10:05d}.jpg", index + 1)
    write_palette(root / "valid/Annotations/00f88c4f0a/00010.png", labels(1))
    videos = {"003234408d": {"objects": {"1": {"category": "penguin", "frames": ["00000", "00005"]}}}}
    (root / "train/meta.json").write_text(json.dumps({"videos": videos}))
    return root
