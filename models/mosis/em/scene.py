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
    """B frames, each with one after and one before, blurred a little: bilinear sampling blurs, too, and unevenly.

    colour: (B, 3, H, W) RGB in [0, 1]. others: (2B, 3, H, W), the frames after, then those before. background:
    (2B, 2, 6), its motion to them (`fit_background`).
    """

    colour: Tensor
    others: Tensor
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
    colour, others = blur(frame.contiguous()), blur(torch.cat((after, before)).contiguous())
    return Scene(colour, others, fit_background(colour.mean(1, keepdim=True), others.mean(1, keepdim=True)))


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
