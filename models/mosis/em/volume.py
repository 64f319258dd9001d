"""Cost volumes: the colour error of every displacement, and motions read off them in closed form (argmin)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

CAP = 0.15
"""Largest colour error (range 1) that a cell counts: beyond it, it is wrong, however much."""
NOTHING = 9.0
"""Stands where there is no picture: it resembles no colour."""


def cost_volume(here: Tensor, after: Tensor, radius: int, *, before: Tensor | None = None) -> Tensor:
    """Capped mean absolute difference of here(x) and after(x + d), for every displacement d.

    here, after, before: (B, C, h, w). With `before`, the lesser of that and |here(x) - before(x - d)|: a motion goes
    on, and what is hidden in one direction of time is seen in the other. Returns (B, (2r + 1)^2, h, w) in [0, CAP],
    channel (dy + r)(2r + 1) + dx + r, CAP where there is no picture.
    """
    height, width = here.shape[-2:]
    side = 2 * radius + 1
    views = [F.pad(view, (radius,) * 4, value=NOTHING) for view in (after, before) if view is not None]
    volume = here.new_empty(len(here), side * side, height, width)
    for shift in range(side * side):
        row, column = divmod(shift, side)
        places = ((row, column), (side - 1 - row, side - 1 - column))
        errors = [
            (here - view[:, :, y : y + height, x : x + width]).abs_().mean(1)
            for view, (y, x) in zip(views, places, strict=False)
        ]
        least = errors[0] if len(errors) == 1 else torch.minimum(errors[0], errors[1])
        torch.clamp(least, max=CAP, out=volume[:, shift])
    return volume


def argmin_motion(costs: Tensor, radius: int) -> Tensor:
    """The displacement of least cost, to a fraction of a cell by a parabola each way: (N, D) -> (N, 2) cells.

    The argmin of a cost volume pooled under a mask is a segment's motion in closed form; it stands for eq. 6 and 7.
    """
    side = 2 * radius + 1
    best = costs.argmin(1)
    grid = F.pad(costs.view(-1, 1, side, side), (1, 1, 1, 1), mode="replicate")[:, 0]
    row, column = best // side + 1, best % side + 1
    item = torch.arange(len(costs), device=costs.device)
    centre = grid[item, row, column]
    dx = vertex(grid[item, row, column - 1], centre, grid[item, row, column + 1])
    dy = vertex(grid[item, row - 1, column], centre, grid[item, row + 1, column])
    return torch.stack((column - 1 - radius + dx, row - 1 - radius + dy), dim=1)


def vertex(low: Tensor, middle: Tensor, high: Tensor) -> Tensor:
    """Where the parabola through (-1, low), (0, middle), (1, high) is least, in [-0.5, 0.5]; 0 if it has no least."""
    bend = low + high - 2 * middle
    return torch.where(bend > 1e-9, (low - high) / (2 * bend.clamp(min=1e-9)), 0.0).clamp(-0.5, 0.5)
