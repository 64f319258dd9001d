"""Pictures for people: masks over frames, panels side by side, optical flow as colour, small JPEG files."""

from __future__ import annotations

import colorsys
from collections.abc import Collection, Sequence
from pathlib import Path

import cv2
import numpy as np

from models.common.instances import Instances
from tasks.files import atomic_path

MAX_WIDTH = 640
"""Of a written picture, pixels: fits a phone, and a report that embeds dozens of them."""
_GAP = 4
_FILL = 0.45
_TEXT_SCALE = 0.35
_WHEEL_STEPS = (15, 6, 4, 11, 13, 6)
"""Hues between red, yellow, green, cyan, blue, magenta and red again: spaced as people tell them apart."""

Box = tuple[int, int, int, int]
"""x1, y1, x2, y2 in pixels."""


def overlay(frame: np.ndarray, instances: Instances, *, scale: int = 1, show_scores: bool = False) -> np.ndarray:
    """The frame (H, W, 3) uint8 RGB with masks filled and outlined: (H * scale, W * scale, 3) uint8.

    Colours go by track id where there are track ids, else by rank. `scale` repeats pixels, so that small frames can be
    seen and outlines stay thin. Scores stand clear of each other at their object, underlined in its colour, the best
    first; one without room is left out.
    """
    canvas = enlarge(frame, scale)
    masks = instances.masks.cpu().numpy()
    ids = range(len(instances)) if instances.track_ids is None else instances.track_ids.tolist()
    corners: dict[int, list[tuple[int, int]]] = {}
    # The best is painted last, on top of the others.
    for index, identity in reversed(list(enumerate(ids))):
        mask = enlarge(masks[index].astype(np.uint8), scale)
        colour = np.array(instance_colour(identity), np.float32)
        inside = mask.astype(bool)
        canvas[inside] = ((1 - _FILL) * canvas[inside] + _FILL * colour).astype(np.uint8)
        outlines, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(canvas, outlines, -1, colour.tolist(), 1)
        if show_scores and outlines:
            x, y, _, height = cv2.boundingRect(mask)
            corners[index] = [(x, y), (x, y + height // 2), (x, y + height)]
    taken: dict[int, Box] = {}
    # At their upper corners first, all of them: a place within one object's box is at another's corner.
    for places in (slice(0, 1), slice(1, None)):
        for index in sorted(corners.keys() - taken.keys()):
            place = find_room(
                text_size(_score_text(instances, index)), corners[index][places], canvas.shape[:2], taken.values()
            )
            if place is not None:
                taken[index] = place
    for index, place in taken.items():
        _write_text(canvas, _score_text(instances, index), place, instance_colour(ids[index]))
    return canvas


def _score_text(instances: Instances, index: int) -> str:
    return f"{float(instances.scores[index]):.2f}"


def find_room(
    size: tuple[int, int], corners: Sequence[tuple[int, int]], canvas: tuple[int, int], taken: Collection[Box]
) -> Box | None:
    """The first place for a text of `size` (width, height), its lower left corner at one of `corners` (x, y), that
    covers none of `taken`; None where there is none. Places are moved into the canvas (height, width)."""
    for x, y in corners:
        left = min(max(x, 0), max(canvas[1] - size[0], 0))
        bottom = min(max(y, size[1]), max(canvas[0] - 1, size[1]))
        place = (left, bottom - size[1], left + size[0], bottom)
        if not any(_meet(place, other) for other in taken):
            return place
    return None


def _meet(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def instance_colour(identity: int) -> tuple[int, int, int]:
    """RGB of a track id or rank: bright, the same in every picture, neighbours far apart (golden angle)."""
    hue = (0.05 + identity * 0.618034) % 1.0
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.85 if identity % 2 else 1.0, 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)


def side_by_side(panels: Sequence[np.ndarray], *, max_width: int = MAX_WIDTH) -> np.ndarray:
    """Panels (h, w, 3) uint8 in a row with white gaps, at most `max_width` wide; lower ones are padded with white."""
    if not panels:
        raise ValueError("no panels to show")
    height = max(panel.shape[0] for panel in panels)
    row: list[np.ndarray] = []
    for panel in panels:
        if row:
            row.append(np.full((height, _GAP, 3), 255, np.uint8))
        row.append(np.pad(panel, ((0, height - panel.shape[0]), (0, 0), (0, 0)), constant_values=255))
    picture = np.concatenate(row, axis=1)
    if picture.shape[1] <= max_width:
        return picture
    height = max(1, round(picture.shape[0] * max_width / picture.shape[1]))
    return cv2.resize(picture, (max_width, height), interpolation=cv2.INTER_AREA)


def scale_for(width: int, panels: int, *, max_width: int = MAX_WIDTH) -> int:
    """How often to repeat each pixel of frames of this width, so that `panels` of them about fill the picture: at least
    1. What comes out a little too wide is shrunk again by `side_by_side`.
    """
    return max(1, round((max_width - (panels - 1) * _GAP) / (panels * width)))


def enlarge(image: np.ndarray, scale: int) -> np.ndarray:
    """Repeat pixels: (H, W) or (H, W, C) -> a copy `scale` times as high and wide."""
    return np.ascontiguousarray(image.repeat(scale, axis=0).repeat(scale, axis=1))


def detection_panels(frame: np.ndarray, found: Instances, truth: Instances | None) -> np.ndarray:
    """Frame | detections | truth in a row, or frame | detections where there is no truth."""
    panels = 2 if truth is None else 3
    frame, (found, *rest) = shrink_to_panel(frame, [found] if truth is None else [found, truth], panels)
    scale = scale_for(frame.shape[1], panels)
    painted = [overlay(frame, found, scale=scale, show_scores=True)] + [overlay(frame, t, scale=scale) for t in rest]
    return side_by_side([enlarge(frame, scale), *painted])


def flow_panels(frame: np.ndarray, fields: Sequence[np.ndarray]) -> np.ndarray:
    """Frame | optical flow (H, W, 2) as colour | ..., all fields on one scale, that of the fastest motion."""
    panels = 1 + len(fields)
    speeds = [np.hypot(field[..., 0], field[..., 1]) for field in fields]
    limit = max((float(np.nanmax(speed, initial=0)) for speed in speeds), default=0.0)
    frames = [frame, *(flow_to_colour(field, max_motion=limit) for field in fields)]
    scale = scale_for(frame.shape[1], panels)
    return side_by_side([enlarge(shrink_to_panel(panel, [], panels)[0], scale) for panel in frames])


def stack_rows(rows: Sequence[np.ndarray]) -> np.ndarray:
    """Rows (h, w, 3) uint8 above each other with white gaps; narrower ones are padded with white."""
    width = max(row.shape[1] for row in rows)
    padded = [
        np.pad(row, ((0, _GAP if index < len(rows) - 1 else 0), (0, width - row.shape[1]), (0, 0)), constant_values=255)
        for index, row in enumerate(rows)
    ]
    return np.concatenate(padded)


def shrink_to_panel(
    frame: np.ndarray, instances: Sequence[Instances], panels: int
) -> tuple[np.ndarray, list[Instances]]:
    """Frame and masks no wider than a panel, so that outlines are drawn at the size at which they are seen."""
    import torch

    limit = (MAX_WIDTH - (panels - 1) * _GAP) // panels
    height, width = frame.shape[:2]
    if width <= limit:
        return frame, list(instances)
    size = (max(1, round(height * limit / width)), limit)
    small = cv2.resize(frame, (size[1], size[0]), interpolation=cv2.INTER_AREA)
    shrunk = []
    for found in instances:
        masks = [
            cv2.resize(mask.astype(np.uint8), (size[1], size[0]), interpolation=cv2.INTER_NEAREST)
            for mask in found.masks.cpu().numpy()
        ]
        stacked = np.array(masks, dtype=bool).reshape(len(found), *size)
        shrunk.append(Instances(found.boxes, found.scores, torch.from_numpy(stacked), found.track_ids))
    return small, shrunk


def flow_to_colour(flow_uv: np.ndarray, *, max_motion: float | None = None) -> np.ndarray:
    """Optical flow (H, W, 2) in pixels -> (H, W, 3) uint8 RGB, in the coding of Baker et al., IJCV 2011, section 4.2.

    Direction is hue, speed is saturation: white stands still. What is faster than `max_motion` (default: the fastest
    in the field) is darkened, unknown (NaN) is black.
    """
    known = np.isfinite(flow_uv).all(-1)
    u, v = (np.where(known, flow_uv[..., axis], 0).astype(np.float64) for axis in (0, 1))
    speed = np.hypot(u, v)
    limit = float(speed.max(initial=0)) if max_motion is None else max_motion
    radius = speed / max(limit, 1e-6)
    wheel = colour_wheel()
    position = (np.arctan2(-v, -u) / np.pi + 1) / 2 * (len(wheel) - 1)
    low = np.floor(position).astype(int)
    share = (position - low)[..., None]
    hue = (1 - share) * wheel[low] + share * wheel[(low + 1) % len(wheel)]
    slow = radius <= 1
    colour = np.where(slow[..., None], 1 - radius[..., None] * (1 - hue), hue * 0.75)
    return (255 * colour * known[..., None]).astype(np.uint8)


def colour_wheel() -> np.ndarray:
    """(55, 3) float64 RGB in [0, 1]: the hues of Baker et al., red first."""
    corners = np.array([(1, 0, 0), (1, 1, 0), (0, 1, 0), (0, 1, 1), (0, 0, 1), (1, 0, 1), (1, 0, 0)], np.float64)
    parts = [
        start + np.arange(steps)[:, None] / steps * (end - start)
        for start, end, steps in zip(corners[:-1], corners[1:], _WHEEL_STEPS, strict=True)
    ]
    return np.concatenate(parts)


def write_jpeg(path: Path, picture: np.ndarray, *, quality: int = 88) -> None:
    """Write (H, W, 3) uint8 RGB whole or not at all. Raises StorageError."""
    done, data = cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
    assert done
    with atomic_path(path) as temporary:
        temporary.write_bytes(data.tobytes())


def text_size(text: str) -> tuple[int, int]:
    """(width, height) in pixels of a small text with its ground."""
    (width, height), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, _TEXT_SCALE, 1)
    return width, height + 3


def _write_text(canvas: np.ndarray, text: str, place: Box, colour: tuple[int, int, int]) -> None:
    """Small white text on black, underlined in `colour`."""
    left, top, right, bottom = place
    cv2.rectangle(canvas, (left, top), (right, bottom), (0, 0, 0), -1)
    cv2.line(canvas, (left, bottom), (right, bottom), colour, 1)
    cv2.putText(
        canvas, text, (left, bottom - 2), cv2.FONT_HERSHEY_SIMPLEX, _TEXT_SCALE, (255, 255, 255), 1, cv2.LINE_AA
    )
