"""Layered compositing: what every layer's motion makes of every pixel, and whose pixel it therefore is."""

from __future__ import annotations

import torch
from torch import Tensor

from .grid import blur, mean3
from .motion import sample, within

VOTE_CAP = 0.02
"""Largest difference of colour error (range 1) that one pixel's vote may count."""
HIDDEN = 0.15
"""Error of a pixel where a layer's motion leads out of the picture."""
BIAS = 0.25
"""In votes, for the background against every instance."""
SMOOTHNESS = 1.0
"""Weight of agreement with the 3 x 3 around a pixel against its own votes."""
_SWEEPS = 3
_BARRED = 1e3


def layer_costs(here: Tensor, others: Tensor, places: Tensor) -> Tensor:
    """Colour error of explaining pixels by a motion: the least over both directions of time.

    here: (N, 3, h, w). others: (2N, 3, H, W), the frames after, then those before. places: (2N, 2, h, w) pixels, where
    the motion takes every point. Returns (N, h, w). The least, because what something hides in one frame is seen in
    the other.
    """
    error = (sample(others, places) - here.repeat(2, 1, 1, 1)).abs_().mean(1)
    after, before = torch.where(within(places, others), error, HIDDEN).chunk(2)
    return torch.minimum(after, before)


def to_layers(values: Tensor, image: Tensor, background: Tensor, fill: float) -> tuple[Tensor, Tensor]:
    """Instances packed in a list to layers: values (N, h, w), image (N,) sorted, background (B, h, w).

    Returns (B, L, h, w), the background first, `fill` where an image has fewer, and each instance's layer (N,).
    """
    layer = number_within(image) + 1
    most = int(layer.max()) if len(layer) else 0
    layers = background.new_full((len(background), most + 1, *background.shape[1:]), fill)
    layers[:, 0] = background
    layers[image, layer] = values
    return layers, layer


def number_within(image: Tensor) -> Tensor:
    """0, 1, 2 ... for the instances of each image: image (N,) sorted -> (N,)."""
    return torch.arange(len(image), device=image.device) - torch.searchsorted(image, image)


def votes(costs: Tensor) -> Tensor:
    """How much worse each layer explains a pixel than the best: costs (B, L, h, w) -> the same, 0 to 1.

    Capped before it is smoothed: smoothed costs would make masks fat, as wide as the smoothing.
    """
    worse = (costs - costs.amin(1, keepdim=True)) / VOTE_CAP
    return blur(worse.clamp_(max=1))


def settle(unary: Tensor) -> Tensor:
    """Labels (B, h, w) int64 that lower the Potts energy of unary (B, L, h, w), by parallel sweeps (mean field)."""
    labels = _least(unary)
    index = torch.arange(unary.shape[1], device=unary.device)[:, None, None]
    for _ in range(_SWEEPS):
        agree = mean3((labels[:, None] == index).to(unary.dtype))
        labels = _least(torch.sub(unary, agree, alpha=SMOOTHNESS))
    return labels


def _least(layers: Tensor) -> Tensor:
    """argmin over dimension 1, the first of equals; layers are few, and torch's own is slow there."""
    least = layers[:, 0]
    labels = torch.zeros_like(least, dtype=torch.int64)
    for index in range(1, layers.shape[1]):
        lower = layers[:, index] < least
        labels.masked_fill_(lower, index)
        least = torch.minimum(least, layers[:, index])
    return labels


def share_out(costs: Tensor, still: Tensor, near: Tensor, image: Tensor, prior: Tensor) -> Tensor:
    """Each instance's pixels by votes, prior and neighbours: (N, h, w) bool, no pixel to two instances of an image.

    costs: (N, h, w) of the instances' motions, still: (B, h, w) of the backgrounds'. near: (N, h, w) bool, where an
    instance may lie at all. prior: (N, h, w) votes against an instance, negative where the network sees one.
    """
    layers, layer = to_layers(torch.where(near, costs, _BARRED), image, still, _BARRED)
    unary = votes(layers)
    unary[image, layer] += torch.where(near, prior + BIAS, _BARRED)
    return settle(unary)[image] == layer[:, None, None]
