"""Motion of regions as polynomials of position, fitted in closed form: Gauss-Newton on brightness (Lucas-Kanade).

A motion is theta (N, 2, Q): u and v are theta @ basis, whose Q rows are 1, x, y (affine, Q = 3) and, for a plane seen
from a moving camera, x^2, xy, y^2 (Q = 6, which holds the eight-parameter planar flow). x and y are taken from an
item's own origin in units of its own scale, so that every coefficient is a motion in pixels at about its rim.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

ROBUST = 0.04
"""Error of grey (range 1) at which a pixel's weight has fallen to a quarter."""
RIDGE = 0.02
"""Added to the normal equations, as a share of their mean diagonal: flat regions keep the motion they had."""
STIFFNESS = 0.01
"""Cost of a square pixel of rotation, scale or shear, in square grey: where nothing tells, it stays a translation."""
_LONGEST_STEP = 2.0
"""Pixels that one iteration may change a coefficient by."""


class Origin(NamedTuple):
    """Origin and unit of N bases: centre (N, 2) pixels x, y; scale (N,) pixels."""

    centre: Tensor
    scale: Tensor


def every(step: int, size: tuple[int, int], device: torch.device | str = "cpu") -> Tensor:
    """(2, h, w) pixels: the middles of the step x step blocks of an image of `size` = (H, W), multiples of step."""
    rows, columns = (torch.arange(side // step, device=device) * step + (step - 1) / 2 for side in size)
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack((x, y))


def basis(points: Tensor, origin: Origin, order: int) -> Tensor:
    """Rows 1, x, y, x^2, xy, y^2 as far as `order` (0, 1 or 2) goes: points (2, h, w) -> (N, Q, h, w)."""
    local = (points - origin.centre[:, :, None, None]) / origin.scale[:, None, None, None]
    x, y = local.unbind(1)
    rows = [torch.ones_like(x)]
    if order >= 1:
        rows += [x, y]
    if order >= 2:
        rows += [x * x, x * y, y * y]
    return torch.stack(rows, dim=1)


def flow(theta: Tensor, rows: Tensor) -> Tensor:
    """Motion field: theta (N, 2, Q), rows (N, Q, h, w) -> flow_uv (N, 2, h, w) pixels."""
    count, _, height, width = rows.shape
    return (theta @ rows.flatten(2)).view(count, 2, height, width)


def sample(images: Tensor, xy: Tensor) -> Tensor:
    """Bilinear values of images (N, C, H, W) at pixels xy (N, 2, h, w) -> (N, C, h, w); the border repeats outside."""
    height, width = images.shape[-2:]
    unit = xy * xy.new_tensor([2 / max(width - 1, 1), 2 / max(height - 1, 1)])[:, None, None] - 1
    return F.grid_sample(images, unit.permute(0, 2, 3, 1), mode="bilinear", padding_mode="border", align_corners=True)


def within(xy: Tensor, images: Tensor) -> Tensor:
    """(N, h, w) bool: whether pixels xy (N, 2, h, w) lie in the pictures of images (..., H, W)."""
    x, y = xy.unbind(1)
    return (x >= 0) & (x <= images.shape[-1] - 1) & (y >= 0) & (y <= images.shape[-2] - 1)


def gradient(images: Tensor) -> Tensor:
    """Central differences of (N, 1, H, W) -> (N, 2, H, W), per pixel in x and y."""
    wide = F.pad(images, (1, 1, 1, 1), mode="replicate")
    dx = (wide[:, :, 1:-1, 2:] - wide[:, :, 1:-1, :-2]) / 2
    dy = (wide[:, :, 2:, 1:-1] - wide[:, :, :-2, 1:-1]) / 2
    return torch.cat((dx, dy), dim=1)


class Match(NamedTuple):
    """What a motion is fitted to, N items. here: (N, h, w) grey at the points, slopes: (N, 2, h, w) its gradient per
    pixel, there: (N, 1, H, W) grey, xy: (N, 2, h, w) pixels of `there` where the points lie if nothing moves."""

    here: Tensor
    slopes: Tensor
    there: Tensor
    xy: Tensor


def fit(
    match: Match, weights: Tensor, theta: Tensor, rows: Tensor, steps: int, *, stiffness: float = STIFFNESS
) -> Tensor:
    """theta (N, 2, Q) refined by `steps` of robust, weighted Gauss-Newton, so that there(xy + F) is here.

    weights: (N, h, w) >= 0. rows: (N, Q, h, w). Minimises over theta
    sum_x w(x) rho(there(xy + theta @ rows) - here) + stiffness |theta without its first column|^2,
    rho Geman-McClure's with scale ROBUST; the slopes of `here` stand for those of `there`.
    """
    terms = rows.shape[1]
    jacobian = (match.slopes.flatten(2)[:, :, None] * rows.flatten(2)[:, None]).flatten(1, 2)  # (N, 2Q, hw)
    stiff = torch.full((2, terms), stiffness, device=theta.device)
    stiff[:, 0] = 0
    stiff = stiff.flatten()
    for _ in range(steps):
        places = match.xy + flow(theta, rows)
        error = sample(match.there, places)[:, 0] - match.here
        trusted = weights * within(places, match.there) / (1 + (error / ROBUST).square()).square()
        weighted = jacobian * trusted.flatten(1)[:, None]
        normal = weighted @ jacobian.transpose(1, 2)  # (N, 2Q, 2Q)
        ridge = stiff + RIDGE * normal.diagonal(dim1=1, dim2=2).mean(1, keepdim=True) + 1e-6
        slope = (weighted @ error.flatten(1)[:, :, None])[..., 0] + stiff * theta.flatten(1)
        step = torch.linalg.solve(normal + torch.diag_embed(ridge), slope)
        theta = theta - step.view_as(theta).clamp(-_LONGEST_STEP, _LONGEST_STEP)
    return theta


def robust_error(match: Match, theta: Tensor, rows: Tensor) -> Tensor:
    """Mean of Geman-McClure's rho over the points, in [0, 1]: what motion theta leaves unexplained, (N,)."""
    squared = ((sample(match.there, match.xy + flow(theta, rows))[:, 0] - match.here) / ROBUST).square()
    return (squared / (1 + squared)).mean((1, 2))
