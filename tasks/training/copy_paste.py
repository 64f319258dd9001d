"""Copy-paste: labelled objects of a batch's other images, laid over an image, their masks known by construction.

A few dozen videos hold a few dozen objects, each before one background only, and a network learns them by heart.
Pasted, an object meets other backgrounds, and hides others (after Ghiasi et al., "Simple Copy-Paste is a Strong Data
Augmentation Method for Instance Segmentation", CVPR 2021). One draw is a pure function of a numpy Generator.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

SHARE = 0.75
"""Of images that something is pasted into."""
MOST = 4
"""Objects pasted into one image, drawn evenly from 1 to this."""
SCALES = (0.6, 1.6)
"""Sides of a pasted object against its own, drawn evenly in the logarithm."""
SMALLEST = 24
"""Pixels that an object keeps in view: a smaller rest is no label any more."""


@dataclass(frozen=True)
class Cutout:
    """An object with nothing around it: picture (h, w, 3) uint8, mask (h, w) bool, score: its label's weight."""

    picture: np.ndarray
    mask: np.ndarray
    score: float


def cut_out(frame: np.ndarray, mask: np.ndarray, score: float) -> Cutout:
    """The extent of a mask (H, W) that is not empty, with a border of one pixel where the frame has it."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    place = (
        slice(max(rows[0] - 1, 0), rows[-1] + 2),
        slice(max(columns[0] - 1, 0), columns[-1] + 2),
    )
    return Cutout(frame[place], mask[place], score)


def resize(cutout: Cutout, scale: float) -> Cutout:
    """The same at `scale` times its sides, at least one pixel each."""
    height, width = (max(1, round(side * scale)) for side in cutout.mask.shape)
    kind = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    picture = cv2.resize(cutout.picture, (width, height), interpolation=kind)
    cover = cv2.resize(cutout.mask.astype(np.float32), (width, height), interpolation=kind)
    return Cutout(picture, cover > 0.5, cutout.score)


def lay_over(frame: np.ndarray, cutout: Cutout, centre: tuple[int, int]) -> np.ndarray:
    """Draw the object on `frame` (H, W, 3) uint8, in place, its middle at `centre` (row, column).

    Returns what it covers, (H, W) bool: parts outside the frame are lost, and where fewer than SMALLEST pixels are left
    nothing is drawn. Its outline is mixed half and half, since a hard edge would give a pasted object away.
    """
    covered = np.zeros(frame.shape[:2], bool)
    into, out_of = [], []
    for middle, side, limit in zip(centre, cutout.mask.shape, frame.shape[:2], strict=True):
        start = middle - side // 2
        into.append(slice(min(max(start, 0), limit), min(max(start + side, 0), limit)))
        out_of.append(slice(into[-1].start - start, into[-1].stop - start))
    place, part = tuple(into), tuple(out_of)
    mask, picture = cutout.mask[part], cutout.picture[part]
    if mask.sum() < SMALLEST:
        return covered
    inner = cv2.erode(mask.astype(np.uint8), np.ones((3, 3), np.uint8), borderType=cv2.BORDER_REPLICATE) > 0
    here = frame[place]
    mixed = ((here.astype(np.uint16) + picture) // 2).astype(np.uint8)
    here[mask] = np.where(inner[..., None], picture, mixed)[mask]
    covered[place] = mask
    return covered


@dataclass(frozen=True)
class Paste:
    """One object laid over an image. source: its place among the labels of the batch. scale: as for `resize`. centre:
    as for `lay_over`.
    """

    source: int
    scale: float
    centre: tuple[int, int]


def draw_pastes(
    areas: np.ndarray, scores: np.ndarray, counts: np.ndarray, size: tuple[int, int], rng: np.random.Generator
) -> list[list[Paste]]:
    """What is pasted into each image of a batch, from its other images; no picture is needed to say so.

    areas (M,) pixels, scores (M,), counts (B,): of the labels of all images in order. size: (height, width) of images.
    Labels of less than SMALLEST pixels, or without weight, are not pasted.
    """
    images = np.repeat(np.arange(len(counts)), counts)
    able = np.flatnonzero((scores > 0) & (areas >= SMALLEST))
    drawn: list[list[Paste]] = [[] for _ in counts]
    for image, pastes in enumerate(drawn):
        others = able[images[able] != image]
        if len(others) and rng.random() < SHARE:
            for _ in range(rng.integers(1, MOST + 1)):
                source = int(others[rng.integers(len(others))])
                scale = float(np.exp(rng.uniform(*np.log(SCALES))))
                pastes.append(Paste(source, scale, (int(rng.integers(size[0])), int(rng.integers(size[1])))))
    return drawn


def paste_objects(
    frames: np.ndarray,
    masks: np.ndarray,
    scores: np.ndarray,
    counts: np.ndarray,
    pastes: Sequence[Sequence[Paste]],
    own: slice,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Paste into the images `own` of a batch what was drawn for them; frames (B, H, W, 3) uint8 change in place.

    masks (M, H, W) bool, scores (M,), counts (B,): the labels of all images in order. Returns the same three for the
    new pictures: what is hidden is cut from the masks below, and what is left of an object in fewer than SMALLEST
    pixels is dropped. Cut-outs are taken before anything is pasted, so that none carries another with it.
    Of the other images only those are looked at that something is taken from.
    """
    ends, images = np.cumsum(counts), np.repeat(np.arange(len(counts)), counts)
    chosen = {paste.source for drawn in pastes[own] for paste in drawn}
    cutouts = {source: _copy_out(frames[images[source]], masks[source], float(scores[source])) for source in chosen}
    by_image: list[tuple[list[np.ndarray], list[float]]] = []
    for image in range(*own.indices(len(counts))):
        part = slice(ends[image] - counts[image], ends[image])
        layers, weights = list(masks[part]), scores[part].tolist()
        for paste in pastes[image]:
            _paste_one(frames[image], layers, weights, resize(cutouts[paste.source], paste.scale), paste.centre)
        by_image.append((layers, weights))
    new_counts = np.array([len(layers) for layers, _ in by_image], counts.dtype)
    new_masks = [mask for layers, _ in by_image for mask in layers]
    new_scores = np.array([weight for _, weights in by_image for weight in weights], scores.dtype)
    return np.stack(new_masks) if new_masks else masks[:0], new_scores, new_counts


def _copy_out(frame: np.ndarray, mask: np.ndarray, score: float) -> Cutout:
    cutout = cut_out(frame, mask, score)
    return Cutout(cutout.picture.copy(), cutout.mask.copy(), score)


def _paste_one(
    frame: np.ndarray, layers: list[np.ndarray], weights: list[float], cutout: Cutout, centre: tuple[int, int]
) -> None:
    covered = lay_over(frame, cutout, centre)
    if not covered.any():
        return
    visible = [mask & ~covered for mask in layers]
    kept = [index for index, mask in enumerate(visible) if mask.sum() >= SMALLEST]
    layers[:] = [visible[index] for index in kept] + [covered]
    weights[:] = [weights[index] for index in kept] + [cutout.score]
