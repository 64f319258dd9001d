"""Outlines to the pixel: beside an outline that motion drew, a pixel belongs to the side whose colours are nearest by.

Motion cannot place an outline better than about half a pixel: the pixels of an edge are a mixture of both sides that
moves with the object, and warping blurs it further. Outlines from motion alone are therefore too fat, which costs
small objects most. A mixed pixel lies between the colours of its sides, so the nearer one is the one that covers more.
"""

from __future__ import annotations

import cv2
import numpy as np
import torch

from .instances import Instances

_INSIDE = 1
"""How far in from its outline a mask is open to doubt, pixels beyond the outermost."""
_OUTSIDE = 2
"""How far beyond its outline a mask may grow, pixels."""
_REACH = 5
"""How far beyond the doubtful band colours are looked for, pixels."""
_NOISE = 4.0
"""Colour distance in grey levels of 255 that says nothing. Colour counts by the share of the two sides' distances:
where a texture has every colour on both sides, neither is near, and colour is not asked."""
_COLOUR = 0.7
"""Weight of sure colour against the mask, which is 1 well within and 0 well outside."""
_LEVEL = 0.55
"""Where the smoothed mask is cut if colour says nothing: above a half, because outlines from motion are fat."""
_CORE = 6
"""Fewest undoubted pixels of an object that show its colours."""
_NO_COLOUR = np.int16(10_000)
"""Stands for pixels that are no member, farther from every colour than any two are; three of it fit into an int16."""
_SQUARE = np.ones((3, 3), np.uint8)


def settle_outlines(frame: np.ndarray, labels: Instances) -> Instances:
    """The same instances with their outlines settled by colour; frame (H, W, 3) uint8 RGB.

    No pixel of one mask goes to another. A mask that loses every pixel is left out.
    """
    if not len(labels):
        return labels
    masks = labels.masks.numpy()
    taken = masks.any(0)
    settled = np.stack([settle_outline(frame, mask, blocked=taken & ~mask) for mask in masks])
    found = Instances.from_masks(torch.from_numpy(settled), labels.scores, labels.track_ids)
    return found[found.masks.flatten(1).any(1)]


def settle_outline(frame: np.ndarray, mask: np.ndarray, *, blocked: np.ndarray) -> np.ndarray:
    """`mask` (H, W) bool with its outline moved by up to _OUTSIDE pixels out and _INSIDE + 1 in.

    blocked: (H, W) bool, pixels that it must not take. An object without enough undoubted pixels is only thinned.
    """
    place = _crop(mask, _OUTSIDE + _INSIDE + _REACH + 2)
    if place is None:
        return mask.copy()
    inner = mask[place]
    # The frame's border is no outline: beyond it the object goes on.
    core = cv2.erode(inner.astype(np.uint8), _SQUARE, iterations=_INSIDE + 1, borderType=cv2.BORDER_REPLICATE) > 0
    wide = cv2.dilate(inner.astype(np.uint8), _SQUARE, iterations=_OUTSIDE) > 0
    level = cv2.GaussianBlur(inner.astype(np.float32), (0, 0), 1.0, borderType=cv2.BORDER_REPLICATE) - _LEVEL
    band = wide & ~core
    if core.sum() >= _CORE and (~wide).any():
        within = nearest_colour(frame[place], core, band, _INSIDE + 1 + _REACH)
        around = nearest_colour(frame[place], ~wide, band, _OUTSIDE + _REACH)
        level[band] += _COLOUR * (around - within) / (around + within + _NOISE)
    settled = np.zeros_like(mask)
    settled[place] = (core | (band & (level > 0))) & ~blocked[place]
    return settled


def nearest_colour(colours: np.ndarray, members: np.ndarray, wanted: np.ndarray, reach: int) -> np.ndarray:
    """Least colour distance of each wanted pixel to a member within `reach` rows and columns of it.

    colours: (H, W, 3) uint8; members, wanted: (H, W) bool; reach: at least 1. Returns (number wanted,) float32, the
    mean absolute difference over the channels in grey levels; 255 where no member is in reach.
    """
    levels = colours.astype(np.int16)
    apart = np.where(members[..., None], levels, _NO_COLOUR)
    apart = np.pad(apart, ((reach, reach), (reach, reach), (0, 0)), constant_values=_NO_COLOUR)
    windows = np.lib.stride_tricks.sliding_window_view(apart, (2 * reach + 1, 2 * reach + 1), (0, 1))
    distance = np.zeros((int(wanted.sum()), *windows.shape[3:]), np.int16)
    for channel in range(3):  # one at a time: several times faster, as what is in work stays small
        difference = windows[:, :, channel][wanted]
        difference -= levels[wanted, channel][:, None, None]
        distance += np.abs(difference, out=difference)
    least: np.ndarray = distance.min((1, 2), initial=3 * 255).astype(np.float32) / np.float32(3)
    return least


def _crop(mask: np.ndarray, margin: int) -> tuple[slice, slice] | None:
    """The mask's extent and `margin` pixels around it, None for an empty mask."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return None
    return (
        slice(max(rows[0] - margin, 0), rows[-1] + margin + 1),
        slice(max(columns[0] - margin, 0), columns[-1] + margin + 1),
    )
