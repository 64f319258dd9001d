"""Instances in the making: a mask and a motion each, of all images of a batch in one list."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..config import MotionModel
from .candidates import Candidates
from .grid import biggest, dilate, halve
from .layers import layer_costs, share_out
from .motion import Match, Origin, basis, fit, flow, gradient
from .moves import find_hosts, merge
from .scene import CELL, Scene, View

REACH = 4
"""Cells, or pixels in the end, that an outline may move by when it is drawn anew."""
PRIOR = 1.5
"""Votes of the network where it is certain, and its proposal is the instance to the pixel."""
_MATCHED = 0.4
"""IoU from which on a proposal of the network speaks of an instance."""
_SMALLEST = 5
"""Cells of an instance that is worth going on with."""
_ITERATIONS = 2


class Proposed(NamedTuple):
    """What the network proposes. masks: (B, M, H, W) probabilities; objectness: (B, M) in [0, 1]."""

    masks: Tensor
    objectness: Tensor


class Segments(NamedTuple):
    """N instances. image: (N,) int64, sorted. masks: (N, h, w) bool, in cells. theta: (2N, 2, 3), their affine motion
    against the background's, to the frame after, then to the one before, about `origin` (of N)."""

    image: Tensor
    masks: Tensor
    theta: Tensor
    origin: Origin

    def both(self, images: int) -> Tensor:
        """(2N,) which of `Scene.others` of so many images are each instance's two."""
        return torch.cat((self.image, self.image + images))

    def rows(self, points: Tensor) -> Tensor:
        """(2N, 3, h, w) basis of the motions at `points` (2, h, w)."""
        return basis(points, self.origin, order=1).repeat(2, 1, 1, 1)

    def select(self, kept: Tensor) -> Segments:
        """Those of `kept`, (N,) bool."""
        origin = Origin(self.origin.centre[kept], self.origin.scale[kept])
        return Segments(self.image[kept], self.masks[kept], self.theta[kept.repeat(2)], origin)


def start(candidates: Candidates, chosen: Tensor, view: View) -> Segments:
    """Segments from the candidates `chosen` (B, R), -1 for none: their masks, and their motions forth and back."""
    image, rank = torch.nonzero(chosen >= 0, as_tuple=True)
    pick = chosen[image, rank]
    masks, shift = candidates.masks[image, pick], CELL * candidates.motions[image, pick]
    theta = torch.cat((shift, -shift))[:, :, None] * shift.new_tensor([1.0, 0.0, 0.0])
    weights = masks.flatten(1).to(shift.dtype)
    area = weights.sum(1).clamp(min=1)
    return Segments(image, masks, theta, Origin(weights @ view.points.flatten(1).T / area[:, None], CELL * area.sqrt()))


def refit(
    scene: Scene, view: View, segments: Segments, *, translate: bool = False, motion_model: MotionModel = "affine"
) -> Segments:
    """The motions fitted anew under the masks; with `translate` their translation first.

    motion_model: with "translation" only their first column is fitted, and the others stay as they are, 0 from `start`.
    """
    image, both = segments.image, segments.both(len(scene.colour))
    here, slopes = halve(scene.grey)[:, 0], halve(gradient(scene.grey))
    match = Match(
        here[image].repeat(2, 1, 1), slopes[image].repeat(2, 1, 1, 1),
        scene.grey_others[both], view.places[both],
    )  # fmt: skip
    weights, rows, theta = segments.masks.to(here.dtype).repeat(2, 1, 1), segments.rows(view.points), segments.theta
    if translate or motion_model == "translation":
        theta = torch.cat((fit(match, weights, theta[:, :, :1], rows[:, :1], _ITERATIONS), theta[:, :, 1:]), dim=2)
    if motion_model == "affine":
        theta = fit(match, weights, theta, rows, _ITERATIONS)
    return segments._replace(theta=theta)


def explain(scene: Scene, view: View, segments: Segments) -> Tensor:
    """Colour error (N, h, w) that every instance's motion, on top of the background's, leaves everywhere."""
    both = segments.both(len(scene.colour))
    places = view.places[both] + flow(segments.theta, segments.rows(view.points))
    return layer_costs(view.colour[segments.image], scene.others[both], places)


def opinion(segments: Segments, proposed: Proposed | None, like: Tensor) -> Tensor:
    """Votes (N, h, w) of the network against every instance, negative where it sees one; `like` says h and w.

    The proposal that matches best speaks, PRIOR IoU^2 objectness (1 - 2 p): the more, the better it fits and the surer
    the network is, so that an untrained one hardly counts. 0 where none matches.
    """
    if proposed is None or not len(segments.image):
        return torch.zeros_like(like)
    theirs = proposed.masks > 0.5
    if theirs.shape[-1] != segments.masks.shape[-1]:
        theirs = theirs[..., ::CELL, ::CELL]
    ours, of_image = segments.masks.flatten(1).to(like.dtype), theirs.flatten(2).to(like.dtype)[segments.image]
    shared = (of_image @ ours[:, :, None])[..., 0]  # (N, M)
    iou, best = (shared / (ours.sum(1, keepdim=True) + of_image.sum(2) - shared).clamp(min=1)).max(1)
    weight = PRIOR * iou.square() * proposed.objectness[segments.image, best] * (iou > _MATCHED)
    return weight[:, None, None] * (1 - 2 * proposed.masks[segments.image, best])


def join_alike(view: View, segments: Segments, costs: Tensor) -> tuple[Segments, Tensor]:
    """Segments and costs (N, h, w) with those that touch and move alike made one: against splitting."""
    host = find_hosts(segments.masks, costs, view.still[segments.image], segments.image)
    stays = host == torch.arange(len(host), device=host.device)
    return segments._replace(masks=merge(segments.masks, host)).select(stays), costs[stays]


def redraw(view: View, segments: Segments, costs: Tensor, proposed: Proposed | None) -> Segments:
    """Masks drawn anew from costs (N, h, w), near the old ones, each in one piece; what has shrunk to nothing goes."""
    near = dilate(segments.masks, REACH)
    masks = biggest(share_out(costs, view.still, near, segments.image, opinion(segments, proposed, costs)))
    return segments._replace(masks=masks).select(masks.flatten(1).sum(1) >= _SMALLEST)


def outline(view: View, segments: Segments, costs: Tensor, proposed: Proposed | None) -> Tensor:
    """Masks (N, H, W) bool to the pixel: `view` and costs (N, H, W) are of single pixels."""
    near = enlarge(dilate(segments.masks, REACH // CELL))
    masks = share_out(costs, view.still, near, segments.image, opinion(segments, proposed, costs))
    core = biggest(halve(masks.to(costs.dtype)) > 0.5)
    return masks & enlarge(dilate(core, 1))


def enlarge(masks: Tensor) -> Tensor:
    """Masks in cells (N, h, w) -> in pixels (N, H, W)."""
    return masks.repeat_interleave(CELL, 1).repeat_interleave(CELL, 2)
