"""Three frames, the background's motion among them, and how well it explains the middle one."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .background import background_places, fit_background
from .grid import blur, halve
from .layers import layer_costs
from .motion import every, sample, within
from .volume import NOTHING, cost_volume

CELL = 2
"""Pixels of a cell, in which instances are searched for before their outline is drawn."""


class Scene(NamedTuple):
    """B frames, each with one after and one before.

    colour: (B, 3, H, W) RGB in [0, 1]. others: (2B, 3, H, W), the frames after, then those before. grey, grey_others:
    (B or 2B, 1, H, W), a little blurred, which motions are fitted to; outlines need colours that are not, or masks grow
    by the blur. background: (2B, 2, 6), its motion to the others (`fit_background`).
    """

    colour: Tensor
    others: Tensor
    grey: Tensor
    grey_others: Tensor
    background: Tensor

    @property
    def size(self) -> tuple[int, int]:
        return int(self.colour.shape[-2]), int(self.colour.shape[-1])


class View(NamedTuple):
    """A scene seen in cells of some pixels.

    points: (2, h, w) pixels, the cells' middles. colour: (B, 3, h, w). places: (2B, 2, h, w) pixels of the other
    frames, where the background takes the points. still: (B, h, w), the colour error that its motion leaves.
    """

    points: Tensor
    colour: Tensor
    places: Tensor
    still: Tensor


def observe(frame: Tensor, after: Tensor, before: Tensor) -> Scene:
    """(B, 3, H, W) RGB in [0, 1] each."""
    colour, others = frame.contiguous(), torch.cat((after, before)).contiguous()
    grey, grey_others = blur(colour.mean(1, keepdim=True)), blur(others.mean(1, keepdim=True))
    return Scene(colour, others, grey, grey_others, fit_background(grey, grey_others))


def look(scene: Scene, cell: int) -> View:
    """The scene in cells of `cell` pixels, 1 or CELL."""
    points = every(cell, scene.size, scene.colour.device)
    colour = scene.colour if cell == 1 else halve(scene.colour)
    places = background_places(scene.background, points, scene.size)
    return View(points, colour, places, layer_costs(colour, scene.others, places))


def stabilised_volume(scene: Scene, view: View, radius: int) -> Tensor:
    """Cost volume (B, (2r + 1)^2, h, w) of motion against the background's, in cells, both ways in time.

    Standing still is the background's own motion, whose error is known more exactly than a search finds it.
    """
    steady = sample(scene.others, view.places)
    steady = torch.where(within(view.places, scene.others)[:, None], steady, NOTHING)
    after, before = steady.chunk(2)
    volume = cost_volume(view.colour, after, radius, before=before)
    volume[:, volume.shape[1] // 2] = view.still
    return volume
