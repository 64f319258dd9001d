"""Multi-object video with exact truth on real pictures: cut-outs of real clips that move over other real clips.

Cut-outs: the four DAVIS 2016 sequences' objects with their own frames, so that limbs move, and blobs of texture from
the videos. Backgrounds: a DAVIS sequence that gives no cut-out here, whose own object is truth, too; or the median
picture of a video under a camera path of our own. Everything follows from the seed. Used by `benchmarks.real`; seeds
400 to 599 are for choosing settings, 10 to 12 for the table.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch

from models.common.instances import Instances

SIZE = (128, 224)
SEQUENCES = ("dog", "car-shadow", "goat", "blackswan")
_OVERSIZE = 2
"""Pictures are put together at this many times the size, so that edges are as soft as a camera's."""
_OBJECTS = (3, 6)
_AREA = (0.006, 0.06)
"""Of an object, share of the frame."""
_SPEED = (0.5, 3.0)
"""Pixels per frame."""
_BLOB_SHARE = 0.35
_STILL_SHARE = 0.25
"""Of the objects that stand still for a spell."""
_LEAST_VISIBLE = 20
"""Pixels of the final frame below which an object is not in view."""
_MEDIAN_FRAMES = 25


@dataclass(frozen=True)
class Davis:
    """frames: (T, 2H, 2W, 3) uint8 RGB. masks: (T, 2H, 2W) bool of its one object."""

    frames: np.ndarray
    masks: np.ndarray


@dataclass(frozen=True)
class Sources:
    """sequences: by name. plates: (2H, 2W, 3) uint8 RGB, the median picture of each video."""

    sequences: dict[str, Davis]
    plates: list[np.ndarray]


@dataclass(frozen=True)
class Path2D:
    """Similarity per frame: centre (T, 2) x y in the oversize frame, angle (T,) radians, scale (T,)."""

    centre: np.ndarray
    angle: np.ndarray
    scale: np.ndarray


@dataclass(frozen=True)
class Layer:
    """What is pasted. pictures: (N, h, w, 3) float32, alphas: (N, h, w) float32 in [0, 1]; frame t shows order[t]."""

    pictures: Sequence[np.ndarray]
    alphas: Sequence[np.ndarray]
    order: np.ndarray
    path: Path2D


def shared_folder() -> Path:
    """Where DAVIS and the videos are: MOSIS_SHARED_DATA, or ../shared/data beside the repository."""
    return Path(os.environ.get("MOSIS_SHARED_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")


def composite_clips(shared: Path, seed: int, clips: int, frames: int) -> tuple[list[np.ndarray], list[list[Instances]]]:
    """`clips` clips of `frames` frames (T, 128, 224, 3) uint8 RGB and the modal truth of each frame, with track ids.

    shared: holds davis2016/ and videos/. Raises FileNotFoundError where they are not there.
    """
    sources = load_sources(shared)
    pictures, truth = [], []
    for number in range(clips):
        clip, instances = compose(sources, np.random.default_rng((seed, number)), frames)
        pictures.append(clip)
        truth.append(instances)
    return pictures, truth


def load_sources(shared: Path) -> Sources:
    return Sources(
        {name: read_sequence(shared / "davis2016" / name) for name in SEQUENCES},
        [median_picture(path) for path in sorted((shared / "videos").glob("*.mp4"))],
    )


def read_sequence(folder: Path, size: tuple[int, int] = (SIZE[0] * _OVERSIZE, SIZE[1] * _OVERSIZE)) -> Davis:
    """A DAVIS sequence at `size` (height, width). Raises FileNotFoundError where a file is missing or broken."""
    files = sorted((folder / "JPEGImages").glob("*.jpg"))
    if not files:
        raise FileNotFoundError(f"no DAVIS sequence in {folder}")
    frames = [shrink(read_picture(file, cv2.IMREAD_COLOR)[..., ::-1], size) for file in files]
    masks = [folder / "Annotations" / f"{file.stem}.png" for file in files]
    return Davis(
        np.stack(frames), np.stack([shrink(read_picture(mask, cv2.IMREAD_GRAYSCALE), size) > 127 for mask in masks])
    )


def read_picture(path: Path, mode: int) -> np.ndarray:
    image = cv2.imread(str(path), mode)
    if image is None:
        raise FileNotFoundError(f"{path} cannot be read: is the folder complete?")
    return image


def shrink(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA)


def read_video(path: Path, size: tuple[int, int] = SIZE) -> np.ndarray:
    """(T, H, W, 3) uint8 RGB, a whole video at `size`. Raises FileNotFoundError where nothing can be decoded."""
    capture = cv2.VideoCapture(str(path))
    frames = []
    while True:
        there, frame = capture.read()
        if not there:
            break
        frames.append(shrink(frame, size)[..., ::-1])
    capture.release()
    if not frames:
        raise FileNotFoundError(f"{path} cannot be decoded")
    return np.ascontiguousarray(np.stack(frames))


def median_picture(path: Path) -> np.ndarray:
    """(2H, 2W, 3) uint8: the median over a video; the cameras of our videos stand, so what moves drops out."""
    frames = read_video(path, (SIZE[0] * _OVERSIZE, SIZE[1] * _OVERSIZE))
    chosen = frames[np.linspace(0, len(frames) - 1, _MEDIAN_FRAMES).astype(int)]
    return np.median(chosen, axis=0).astype(np.uint8)


def compose(sources: Sources, rng: np.random.Generator, frames: int) -> tuple[np.ndarray, list[Instances]]:
    """One clip (T, 128, 224, 3) uint8 and its truth."""
    names = list(sources.sequences)
    behind = names[rng.integers(len(names))] if rng.random() < 0.5 else None
    height, width = (side * _OVERSIZE for side in SIZE)
    if behind is None:
        grounds, own = pan_plate(sources.plates[rng.integers(len(sources.plates))], rng, frames), None
    else:
        order = there_and_back(len(sources.sequences[behind].frames), rng, frames)
        grounds, own = sources.sequences[behind].frames[order], sources.sequences[behind].masks[order]
    cast = [name for name in names if name != behind]
    layers = []
    for _ in range(rng.integers(_OBJECTS[0], _OBJECTS[1] + 1) - (own is not None)):
        path = draw_path(rng, frames, (height, width))
        if rng.random() < _BLOB_SHARE:
            layers.append(cut_blob(sources.plates[rng.integers(len(sources.plates))], rng, path))
        else:
            layers.append(cut_object(sources.sequences[cast[rng.integers(len(cast))]], rng, path))
    shown = [paste(grounds[t], None if own is None else own[t], layers, t) for t in range(frames)]
    return np.stack([picture for picture, _ in shown]), [instances for _, instances in shown]


def there_and_back(length: int, rng: np.random.Generator, frames: int) -> np.ndarray:
    """(T,) indices into a sequence of `length`, forwards and backwards in turn, from a random place."""
    lap = np.concatenate([np.arange(length), np.arange(length - 2, 0, -1)])
    return lap[(rng.integers(len(lap)) + np.arange(frames)) % len(lap)]


def draw_path(rng: np.random.Generator, frames: int, size: tuple[int, int]) -> Path2D:
    """A curved way across the frame that passes a place within it, slow turning and growth, and maybe a stop."""
    height, width = size
    pace = np.ones(frames)
    if rng.random() < _STILL_SHARE:
        length = int(rng.integers(8, 20))
        first = int(rng.integers(0, max(1, frames - length)))
        pace[first : first + length] = 0
    pace = smooth_over_time(pace[:, None], 1.0)[:, 0]
    time = np.cumsum(pace) - pace[0]
    speed = _OVERSIZE * rng.uniform(*_SPEED)
    heading = rng.uniform(0, 2 * np.pi) + rng.uniform(-0.03, 0.03) * time
    heading += rng.uniform(0, 0.6) * np.sin(2 * np.pi * time / rng.uniform(20, 60) + rng.uniform(0, 2 * np.pi))
    step = speed * pace[:, None] * np.stack([np.cos(heading), 0.6 * np.sin(heading)], -1)
    travelled = np.cumsum(step, 0)
    middle = travelled[rng.integers(frames)]
    place = np.array([width, height]) * rng.uniform(0.15, 0.85, 2)
    turn = rng.uniform(-0.02, 0.02) if rng.random() < 0.5 else 0.0
    growth = rng.uniform(-0.006, 0.006) if rng.random() < 0.5 else 0.0
    since = time - time[frames // 2]
    return Path2D(place + travelled - middle, turn * since, np.exp(growth * since))


def smooth_over_time(values: np.ndarray, sigma: float) -> np.ndarray:
    """(T, C) blurred along T."""
    window = (1, 2 * round(3 * sigma) + 1)
    return cv2.GaussianBlur(values, window, sigmaX=1e-6, sigmaY=sigma, borderType=cv2.BORDER_REPLICATE)


def pan_plate(plate: np.ndarray, rng: np.random.Generator, frames: int) -> np.ndarray:
    """(T, 2H, 2W, 3) uint8: a picture under a slow camera path (pan, zoom, shake) that never leaves it."""
    height, width = plate.shape[:2]
    time = np.arange(frames)
    zoom = 1.35 + 0.12 * np.sin(2 * np.pi * time / rng.uniform(60, 160) + rng.uniform(0, 2 * np.pi))
    swing = np.stack(
        [np.sin(2 * np.pi * time / rng.uniform(80, 200) + rng.uniform(0, 2 * np.pi)) for _ in range(2)], -1
    )
    shake = rng.uniform(0, 0.6) * smooth_over_time(rng.normal(size=(frames, 2)), 1.0)
    room = np.array([width, height]) * (1.23 - 1) / 2 - 4
    shift = rng.uniform(0.2, 1.0) * room * swing + _OVERSIZE * shake
    shown = []
    for t in time:
        matrix = np.array([[zoom[t], 0, 0], [0, zoom[t], 0]])
        matrix[:, 2] = np.array([width, height]) / 2 * (1 - zoom[t]) + shift[t]
        shown.append(
            cv2.warpAffine(plate, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
        )
    return np.stack(shown)


def cut_object(sequence: Davis, rng: np.random.Generator, path: Path2D) -> Layer:
    """The object of a sequence, in its own frames, carried along `path` instead of its own way."""
    order = there_and_back(len(sequence.frames), rng, len(path.scale))
    flip = bool(rng.random() < 0.5)
    target = np.sqrt(np.prod(sequence.frames.shape[1:3]) * np.exp(rng.uniform(*np.log(_AREA))))
    factor = target / np.sqrt(np.median(sequence.masks.sum((1, 2))))
    boxes = np.array([[*cv2.boundingRect(mask.astype(np.uint8))] for mask in sequence.masks], float)
    centres = boxes[:, :2] + boxes[:, 2:] / 2
    # Smoothed, so that the outline's own trembling does not shake the object.
    centres = smooth_over_time(centres, 3.0)
    reach = np.ceil(boxes[:, 2:].max(0) / 2 + 6).astype(int)
    pictures, alphas = [], []
    for index in range(len(sequence.frames)):
        picture = crop_about(sequence.frames[index].astype(np.float32), centres[index], reach)
        alpha = crop_about(sequence.masks[index].astype(np.float32), centres[index], reach)
        pictures.append(picture[:, ::-1] if flip else picture)
        alphas.append(feather(alpha[:, ::-1] if flip else alpha))
    return Layer(pictures, alphas, order, Path2D(path.centre, path.angle, path.scale * factor))


def cut_blob(plate: np.ndarray, rng: np.random.Generator, path: Path2D) -> Layer:
    """A smooth random shape filled with a piece of `plate`."""
    side = 120
    angle = np.linspace(0, 2 * np.pi, 72, endpoint=False)
    waves = [rng.uniform(0, 0.35 / k) * np.sin(k * angle + rng.uniform(0, 2 * np.pi)) for k in range(2, 6)]
    radius = 1 + np.sum(waves, axis=0)
    radius = 0.8 * side / 2 * radius / radius.max()
    stretch = rng.uniform(0.6, 1.0, 2)
    outline = np.stack([np.cos(angle) * radius * stretch[0], np.sin(angle) * radius * stretch[1]], -1) + side / 2
    alpha = np.zeros((side, side), np.float32)
    cv2.fillPoly(alpha, [np.rint(outline).astype(np.int32)], 1.0)
    y, x = rng.integers(0, plate.shape[0] - side), rng.integers(0, plate.shape[1] - side)
    picture = plate[y : y + side, x : x + side].astype(np.float32)[..., rng.permutation(3)]
    picture = np.clip((picture - 127.5) * rng.uniform(0.9, 1.4) + 127.5 + rng.uniform(-40, 40), 0, 255)
    target = np.sqrt(plate.shape[0] * plate.shape[1] * np.exp(rng.uniform(*np.log(_AREA))))
    factor = target / np.sqrt(alpha.sum())
    scaled = Path2D(path.centre, path.angle, path.scale * factor)
    return Layer([picture], [feather(alpha)], np.zeros(len(path.scale), int), scaled)


def crop_about(image: np.ndarray, centre: np.ndarray, reach: np.ndarray) -> np.ndarray:
    """The window of half-size `reach` (x, y) about `centre` (x, y), zero outside the image."""
    matrix = np.array([[1, 0, reach[0] - centre[0]], [0, 1, reach[1] - centre[1]]], float)
    return cv2.warpAffine(image, matrix, (2 * int(reach[0]), 2 * int(reach[1])), flags=cv2.INTER_LINEAR)


def feather(alpha: np.ndarray) -> np.ndarray:
    """Soft edge of about two oversize pixels, drawn inwards so that little of the old background comes along."""
    inner = cv2.erode(alpha, np.ones((3, 3), np.uint8))
    return cv2.GaussianBlur(inner, (0, 0), 1.0)


def paste(ground: np.ndarray, own: np.ndarray | None, layers: list[Layer], t: int) -> tuple[np.ndarray, Instances]:
    """Frame t: later layers in front. own: (2H, 2W) bool, the ground's own object, track 0; layers are 1 and up."""
    height, width = ground.shape[:2]
    picture = ground.astype(np.float32)
    visible: list[np.ndarray] = [] if own is None else [own.astype(np.float32)]
    for layer in layers:
        index = layer.order[t]
        shown, alpha = layer.pictures[index], layer.alphas[index]
        matrix = similarity(layer.path, t, (alpha.shape[1] / 2, alpha.shape[0] / 2))
        # Shrinking by much would alias: smooth first by what is lost.
        blur = 0.4 * (1 / layer.path.scale[t] - 1)
        shown = cv2.GaussianBlur(shown, (0, 0), blur) if blur > 0.2 else shown
        placed = cv2.warpAffine(shown, matrix, (width, height), borderMode=cv2.BORDER_REPLICATE)
        cover = cv2.warpAffine(alpha, matrix, (width, height))
        picture = cover[..., None] * placed + (1 - cover[..., None]) * picture
        visible = [part * (1 - cover) for part in visible] + [cover]
    covers = [shrink(np.asarray(part), SIZE) > 0.5 for part in visible]
    masks = np.stack(covers) if covers else np.zeros((0, *SIZE), bool)
    ids = np.arange(len(masks)) + (own is None)
    seen = masks.sum((1, 2)) >= _LEAST_VISIBLE
    final = np.clip(np.rint(shrink(picture, SIZE)), 0, 255).astype(np.uint8)
    return final, Instances.from_masks(torch.from_numpy(masks[seen]), track_ids=torch.from_numpy(ids[seen]))


def similarity(path: Path2D, t: int, pivot: tuple[float, float]) -> np.ndarray:
    """(2, 3) matrix that turns and scales about `pivot` and brings it to the path's centre."""
    matrix = cv2.getRotationMatrix2D(pivot, float(np.degrees(path.angle[t])), float(path.scale[t]))
    matrix[:, 2] += path.centre[t] - np.array(pivot)
    return matrix
