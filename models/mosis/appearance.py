"""The appearance network, section 3.3: one image -> proposals (eq. 2) and an instance mask for any box."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..common.boxes import widen_boxes
from ..common.regions import pool_regions
from .config import ANCHORS, STRIDES, NetworkSpec
from .darknet import ConvBlock, Darknet

MASK_STRIDE = 4
"""Of the shared features that masks are made from, pixels."""
MAX_LOG_SIZE = math.log(32.0)
"""Boxes grow or shrink by at most this factor from their anchor: exp stays finite whatever the weights."""
ANCHORS_PER_CELL = 3


class AnchorGrid(NamedTuple):
    """Where each of the A proposals of an image stands, in the order of the raw outputs: scale, row, column, anchor."""

    centres: Tensor
    """(A, 2) x, y of each cell's centre, pixels."""
    strides: Tensor
    """(A,) side of each cell, pixels."""
    sizes: Tensor
    """(A, 2) width and height of each anchor, pixels."""


@dataclass(frozen=True)
class Proposals:
    """SM of eq. 2 for a batch, before any selection. A = 1,008 at 128 x 128."""

    boxes: Tensor
    """(B, A, 4) float32 x1 y1 x2 y2 pixels, not cut at the image's border."""
    logits: Tensor
    """(B, A) float32 objectness logits; s of eq. 2 is their sigmoid."""
    mask_features: Tensor
    """(B, C, H / 4, W / 4) shared features for the mask head."""
    grid: AnchorGrid
    image_size: tuple[int, int]
    """(H, W) pixels."""


class AppearanceNetwork(nn.Module):
    """f_yolo of eq. 2 with an instance mask head. Image sides must be multiples of 32.

    objectness_prior: probability that an untrained proposal is given. 0.5 leaves random weights as they are; where
        labels are learnt, a small one spares the first iterations, which would only learn that most is background.
    """

    def __init__(self, spec: NetworkSpec, *, objectness_prior: float = 0.5) -> None:
        super().__init__()
        self.region_side = spec.region_side
        self.region_samples = spec.region_samples
        self.region_margin = spec.region_margin
        self.centre_reach = spec.centre_reach
        self.backbone = Darknet(spec.stem, spec.stem_stride, spec.widths, spec.blocks)
        self.neck = Neck(self.backbone.channels[::-1], spec.neck_widths, spec.neck_depth)
        self.heads = nn.ModuleList(_Head(width, objectness_prior) for width in spec.neck_widths[:3])
        self.mask_head = MaskHead(spec.neck_widths[3])

    def forward(self, images: Tensor) -> Proposals:
        """images (B, 3, H, W) RGB in [0, 1]. Raises ValueError where H or W is no multiple of 32."""
        size = (int(images.shape[-2]), int(images.shape[-1]))
        if size[0] % STRIDES[0] or size[1] % STRIDES[0]:
            raise ValueError(f"image sides {size} must be multiples of {STRIDES[0]}")
        # The one place where images are normalised: [0, 1] to [-1, 1].
        *scales, mask_features = self.neck(self.backbone(2 * images - 1)[::-1])
        raw = [_flatten(head(features)) for head, features in zip(self.heads, scales, strict=True)]
        output = torch.cat(raw, dim=1).float()  # (B, A, 5); half precision does not hold pixels
        grid = anchor_grid(size, images.device)
        boxes = decode_boxes(output[..., :4], grid, self.centre_reach)
        return Proposals(boxes, output[..., 4], mask_features, grid, size)

    def regions(self, boxes: Tensor) -> Tensor:
        """Boxes (..., 4) with the margin in which masks are looked for: what `mask_logits` and pasting take."""
        return widen_boxes(boxes, self.region_margin)

    def mask_logits(self, mask_features: Tensor, regions: Sequence[Tensor]) -> Tensor:
        """M~ before its sigmoid: per image regions (R_i, 4) pixels -> (sum R_i, S, S) logits, in that order.

        RoIAlign passes no gradient to the regions; `paste_masks` does.
        """
        side = self.region_side
        features = pool_regions(
            mask_features.float(),  # half precision does not hold where the regions lie
            regions,
            stride=MASK_STRIDE,
            side=side,
            samples=self.region_samples,
        )
        if len(features) == 0:
            return features[:, 0]
        return self.mask_head(features).float()


class Neck(nn.Module):
    """YOLOv3's top-down path, carried on to stride 4 for masks.

    inputs: channels of the backbone at strides 32, 16, 8, 4. widths: channels given out at the same strides.
    """

    def __init__(self, inputs: Sequence[int], widths: Sequence[int], depth: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList()
        self.reduce = nn.ModuleList()
        above = 0
        for index, (channels, width) in enumerate(zip(inputs, widths, strict=True)):
            self.blocks.append(_alternate(above + channels, width, depth))
            if index + 1 < len(widths):
                above = widths[index + 1]
                self.reduce.append(ConvBlock(width, above, 1))

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Features at strides 32, 16, 8, 4 -> as many, of `widths` channels."""
        outputs = [self.blocks[0](features[0])]
        for block, reduce, lateral in zip(self.blocks[1:], self.reduce, features[1:], strict=True):
            above = F.interpolate(reduce(outputs[-1]), scale_factor=2.0, mode="nearest")
            outputs.append(block(torch.cat((above, lateral), dim=1)))
        return outputs


class MaskHead(nn.Sequential):
    """Four 3x3 convolutions with ReLU and a 1x1 to one channel: (R, C, S, S) -> (R, S, S) logits."""

    def __init__(self, channels: int) -> None:
        layers: list[nn.Module] = []
        for _ in range(4):
            layers += [nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(inplace=True)]
        super().__init__(*layers, _Readout(channels, 1, 1))


class _Readout(nn.Conv2d):
    """A 1x1 convolution to one channel as the matrix product that it is: (R, C, S, S) -> (R, S, S).

    A map of one channel has no memory order of its own, and the convolution's gradient would come back in another
    order than the layers before it have.
    """

    def forward(self, features: Tensor) -> Tensor:
        assert self.bias is not None
        return features.permute(0, 2, 3, 1) @ self.weight.flatten() + self.bias


class _Head(nn.Module):
    """Per cell and anchor: offsets x and y, log sizes, objectness. (B, C, h, w) -> (B, 15, h, w)."""

    def __init__(self, channels: int, objectness_prior: float) -> None:
        super().__init__()
        self.features = ConvBlock(channels, 2 * channels, 3)
        self.output = nn.Conv2d(2 * channels, ANCHORS_PER_CELL * 5, 1)
        # Near zero at the start: untrained boxes are their anchors.
        nn.init.normal_(self.output.weight, std=0.01)
        prior = math.log(objectness_prior / (1 - objectness_prior))
        assert self.output.bias is not None
        with torch.no_grad():
            self.output.bias.copy_(torch.tensor([0.0, 0.0, 0.0, 0.0, prior]).repeat(ANCHORS_PER_CELL))

    def forward(self, features: Tensor) -> Tensor:
        return self.output(self.features(features))


@functools.lru_cache(maxsize=32)
@torch.inference_mode(mode=False)  # kept, and used in training, too
def anchor_grid(size: tuple[int, int], device: torch.device | str = "cpu") -> AnchorGrid:
    """Cells and anchors of every proposal of an image of `size` = (H, W) pixels, in the order of the raw outputs.

    Kept for the next image of that size: not to be written to.
    """
    centres, strides, sizes = [], [], []
    for stride, anchors in zip(STRIDES, ANCHORS, strict=True):
        rows, columns = size[0] // stride, size[1] // stride
        y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
        cells = (torch.stack((x, y), dim=-1).reshape(-1, 2) + 0.5) * stride  # (rows * columns, 2)
        centres.append(cells.repeat_interleave(len(anchors), dim=0))
        strides.append(torch.full((len(cells) * len(anchors),), float(stride)))
        sizes.append(torch.tensor(anchors).repeat(len(cells), 1))
    return AnchorGrid(torch.cat(centres).to(device), torch.cat(strides).to(device), torch.cat(sizes).to(device))


def decode_boxes(raw: Tensor, grid: AnchorGrid, centre_reach: float) -> Tensor:
    """Boxes from raw outputs: sigmoid offsets, log sizes relative to anchors (section 9.3).

    raw: (B, A, 4) t_x t_y t_w t_h. Returns (B, A, 4) x1 y1 x2 y2 pixels.
    A centre lies within its cell, or up to `centre_reach` cells beyond it.
    """
    offset = (raw[..., :2].sigmoid() - 0.5) * (1 + 2 * centre_reach)  # in cells, from the cell's centre
    centres = grid.centres + offset * grid.strides[:, None]
    half = grid.sizes * raw[..., 2:4].clamp(-MAX_LOG_SIZE, MAX_LOG_SIZE).exp() / 2
    return torch.cat((centres - half, centres + half), dim=-1)


def _flatten(output: Tensor) -> Tensor:
    """(B, 15, h, w) -> (B, h * w * 3, 5): rows, columns, anchors in turn."""
    batch, channels, rows, columns = output.shape
    return output.permute(0, 2, 3, 1).reshape(batch, rows * columns * channels // 5, 5)


def _alternate(inputs: int, width: int, depth: int) -> nn.Sequential:
    """`depth` (odd) convolutions: 1x1 to `width`, 3x3 to twice that, and so on, ending at `width`."""
    layers = [ConvBlock(inputs, width, 1)]
    for _ in range(depth // 2):
        layers += [ConvBlock(width, 2 * width, 3), ConvBlock(2 * width, width, 1)]
    return nn.Sequential(*layers)
