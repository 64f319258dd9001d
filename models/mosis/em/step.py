"""The E-step: which instances of each image, with which masks and motions, explain it best.

Expectation-maximisation on the thesis' photometric reconstruction: here the instances are found from three frames and
from what the network proposes for the middle one, in closed form; the M-step teaches them to the network.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ...common.instances import Instances
from .background import background_places, fit_background
from .candidates import Candidates, anchor_candidates, choose, join, mask_candidates
from .grid import biggest, blur, dilate, halve
from .layers import layer_costs, share_out
from .motion import Match, Origin, basis, every, fit, flow, gradient, sample, within
from .moves import find_hosts, gain, mean_under, merge
from .volume import NOTHING, cost_volume

CELL = 2
"""Pixels of a cell, in which instances are searched for before their outline is drawn."""
RADIUS = 5
"""Of the cost volume, cells: motion against the background that can be found at all."""
MOST = 8
"""Instances of an image."""
REACH = 4
"""Cells or pixels that an outline may move by in one round."""
PRIOR = 1.0
"""Of the network's opinion against the votes, where it is certain."""
_MATCHED = 0.4
"""IoU from which on a proposal of the network speaks of an instance."""
MIN_AREA = 40
"""Pixels."""
MIN_GAIN = 0.2


class Proposed(NamedTuple):
    """What the network proposes. masks: (B, M, H, W) probabilities; objectness: (B, M) in [0, 1]."""

    masks: Tensor
    objectness: Tensor


class Scene(NamedTuple):
    """B frames, each with one after and one before, blurred a little: bilinear sampling blurs, too, and unevenly.

    colour (B, 3, H, W), others (2B, 3, H, W): those after, then those before. background: (2B, 2, 6) its motion.
    """

    colour: Tensor
    others: Tensor
    background: Tensor

    @property
    def size(self) -> tuple[int, int]:
        return int(self.colour.shape[-2]), int(self.colour.shape[-1])


class View(NamedTuple):
    """A scene looked at in cells of some pixels. points (2, h, w): their middles. colour (B, 3, h, w). places
    (2B, 2, h, w): where the background takes them. still (B, h, w): the background's error."""

    points: Tensor
    colour: Tensor
    places: Tensor
    still: Tensor


class Segments(NamedTuple):
    """N instances of all images. image (N,) sorted. masks (N, h, w) bool, cells. theta (2N, 2, 3): affine motion
    against the background's, to the frame after, then to the one before, about `origin` (N,)."""

    image: Tensor
    masks: Tensor
    theta: Tensor
    origin: Origin

    def both(self, images: int) -> Tensor:
        """(2N,) index of each instance's two other frames among `Scene.others` of `images` images."""
        return torch.cat((self.image, self.image + images))

    def rows(self, points: Tensor) -> Tensor:
        """(2N, 3, h, w) basis of the motions at `points` (2, h, w)."""
        return basis(points, self.origin, order=1).repeat(2, 1, 1, 1)

    def select(self, kept: Tensor) -> Segments:
        """Those of bool or int (N,)."""
        theta = torch.cat([half[kept] for half in self.theta.chunk(2)])
        return Segments(self.image[kept], self.masks[kept], theta, Origin(*(field[kept] for field in self.origin)))


@torch.no_grad()
def find_instances(frame: Tensor, after: Tensor, before: Tensor, proposed: Proposed | None) -> list[Instances]:
    """Instances of each of `frame` (B, 3, H, W) RGB in [0, 1], sides multiples of 4; scores are gains.

    after, before: the frames next to it. proposed: what the network thinks; None finds them from motion alone.
    """
    if len(frame) == 0:
        return []
    scene = observe(frame.float(), after.float(), before.float())
    coarse = look(scene, CELL)
    volume = stabilised_volume(scene, coarse)
    parts = [anchor_candidates(volume, RADIUS)]
    certain = None
    if proposed is not None:
        certain = halve(proposed.masks.float())
        parts.append(mask_candidates(volume, certain > 0.5, 1 + proposed.objectness.float(), RADIUS))
    candidates = join(parts)
    segments = start_segments(candidates, choose(candidates, coarse.still, coarse.still, MOST), coarse)
    segments = refit(scene, coarse, segments, translate=True)
    costs = explain(scene, coarse, segments)
    segments = redraw(coarse, segments, costs, certain)
    segments = join_split(coarse, segments, explain(scene, coarse, segments))
    segments = refit(scene, coarse, segments)
    segments = redraw(coarse, segments, explain(scene, coarse, segments), certain)
    segments = refit(scene, coarse, segments)
    return outline(scene, segments, None if proposed is None else proposed.masks.float())


def observe(frame: Tensor, after: Tensor, before: Tensor) -> Scene:
    colour, others = blur(frame.contiguous()), blur(torch.cat((after, before)).contiguous())
    return Scene(colour, others, fit_background(colour.mean(1, keepdim=True), others.mean(1, keepdim=True)))


def look(scene: Scene, cell: int) -> View:
    points = every(cell, scene.size, scene.colour.device)
    colour = scene.colour if cell == 1 else halve(scene.colour)
    places = background_places(scene.background, points, scene.size)
    return View(points, colour, places, layer_costs(colour, scene.others, places))


def stabilised_volume(scene: Scene, view: View) -> Tensor:
    """Cost volume (B, D, h, w) of motion against the background's; the background's own error is exact."""
    steady = sample(scene.others, view.places)
    steady = torch.where(within(view.places, scene.others)[:, None], steady, NOTHING)
    after, before = steady.chunk(2)
    volume = cost_volume(view.colour, after, RADIUS, before=before)
    volume[:, volume.shape[1] // 2] = view.still
    return volume


def start_segments(candidates: Candidates, chosen: Tensor, view: View) -> Segments:
    image, rank = torch.nonzero(chosen >= 0, as_tuple=True)
    pick = chosen[image, rank]
    masks = candidates.masks[image, pick]
    shift = CELL * candidates.motions[image, pick]
    theta = torch.cat((shift, -shift))[:, :, None] * shift.new_tensor([1.0, 0.0, 0.0])
    weights = masks.flatten(1).float()
    area = weights.sum(1).clamp(min=1)
    centre = weights @ view.points.flatten(1).T / area[:, None]
    return Segments(image, masks, theta, Origin(centre, CELL * area.sqrt() / 2))


def refit(scene: Scene, view: View, segments: Segments, *, translate: bool = False) -> Segments:
    """Motions fitted anew under the masks; with `translate` their translation first."""
    image, both = segments.image, segments.both(len(scene.colour))
    grey = scene.colour.mean(1, keepdim=True)
    here, slopes = halve(grey)[:, 0], halve(gradient(grey))
    match = Match(
        here[image].repeat(2, 1, 1), slopes[image].repeat(2, 1, 1, 1),
        scene.others.mean(1, keepdim=True)[both], view.places[both],
    )  # fmt: skip
    weights, rows, theta = segments.masks.float().repeat(2, 1, 1), segments.rows(view.points), segments.theta
    if translate:
        theta = torch.cat((fit(match, weights, theta[:, :, :1], rows[:, :1], 2), theta[:, :, 1:]), dim=2)
    return segments._replace(theta=fit(match, weights, theta, rows, 2))


def explain(scene: Scene, view: View, segments: Segments) -> Tensor:
    """Error (N, h, w) of every instance's motion everywhere."""
    both = segments.both(len(scene.colour))
    places = view.places[both] + flow(segments.theta, segments.rows(view.points))
    return layer_costs(view.colour[segments.image], scene.others[both], places)


def opinion(segments: Segments, certain: Tensor | None, like: Tensor) -> Tensor:
    if certain is None or not certain.shape[1]:
        return torch.zeros_like(like)
    half = certain if certain.shape[-1] == segments.masks.shape[-1] else halve(certain)
    theirs = (half > 0.5).flatten(2).float()[segments.image]
    ours = segments.masks.flatten(1).float()
    shared = (theirs @ ours[:, :, None])[..., 0]
    iou = shared / (ours.sum(1, keepdim=True) + theirs.sum(2) - shared).clamp(min=1)
    best = iou.max(1)
    return torch.where(
        (best.values > _MATCHED)[:, None, None], PRIOR * (1 - 2 * certain[segments.image, best.indices]), 0.0
    )


def redraw(view: View, segments: Segments, costs: Tensor, certain: Tensor | None) -> Segments:
    near = dilate(segments.masks, REACH)
    masks = biggest(share_out(costs, view.still, near, segments.image, opinion(segments, certain, costs)))
    segments = segments._replace(masks=masks)
    return segments.select(masks.flatten(1).sum(1) * CELL**2 >= MIN_AREA / 2)


def join_split(view: View, segments: Segments, costs: Tensor) -> Segments:
    host = find_hosts(segments.masks, costs, view.still[segments.image], segments.image)
    merged = segments._replace(masks=merge(segments.masks, host))
    return merged.select(host == torch.arange(len(host), device=host.device))


def outline(scene: Scene, segments: Segments, certain: Tensor | None) -> list[Instances]:
    view = look(scene, 1)
    costs = explain(scene, view, segments)
    rough = segments.masks.repeat_interleave(CELL, 1).repeat_interleave(CELL, 2)
    masks = share_out(costs, view.still, dilate(rough, REACH), segments.image, opinion(segments, certain, costs))
    core = biggest(halve(masks.float()) > 0.5)
    masks &= dilate(core, 1).repeat_interleave(CELL, 1).repeat_interleave(CELL, 2)
    gains = gain(mean_under(masks, costs), mean_under(masks, view.still[segments.image]))
    kept = (masks.flatten(1).sum(1) >= MIN_AREA) & (gains >= MIN_GAIN)
    counts = torch.bincount(segments.image[kept], minlength=len(scene.colour)).tolist()
    found = Instances.from_masks(masks[kept], gains[kept])
    parts = [field.split(counts) for field in (found.boxes, found.scores, found.masks)]
    return [Instances(*fields) for fields in zip(*parts, strict=True)]
