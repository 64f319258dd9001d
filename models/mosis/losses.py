"""The literal objective, eq. 9-16: photometric reconstruction both ways, and photometric targets for objectness.

README.md beside this file says what every option settles; the thesis' own reading is always the one named `literal`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..common.photometric import absolute_error, ssim
from ..common.warp import warp
from .config import ErrorScale, ObjectnessTarget, Photometric, TargetNormalisation, WarpDirection
from .fusion import EPSILON, partition, pool_motion, segment_flow
from .motion import CostFeatures, MotionNetwork

GAIN_EPSILON = 1e-3
"""Keeps the gain at 0 where the background's motion leaves no error to explain; above the rounding noise of SSIM."""
SSIM_SHARE = 0.85
"""Of SSIM in "ssim_l1"; the rest is L1's (Godard et al., 2017, section 3.3)."""


class Reading(NamedTuple):
    """How the text is read where it is open or wrong."""

    target: ObjectnessTarget
    direction: WarpDirection
    normalisation: TargetNormalisation
    scale: ErrorScale
    photometric: Photometric = "ssim"


class SegmentMotions(NamedTuple):
    """What moves how from one frame of a pair to the other, on the first one's grid."""

    segments: Tensor
    """S of eq. 4: (B, K+1, H, W), index 0 the background."""
    motions: Tensor
    """F^m of eq. 7: (B, K+1, 2) pixels."""

    @property
    def flow_uv(self) -> Tensor:
        """F~ of eq. 8: (B, 2, H, W) pixels."""
        return segment_flow(self.segments, self.motions)

    @property
    def background_flow_uv(self) -> Tensor:
        """(B, 2, H, W) pixels: the background's motion everywhere, as if there were no instances."""
        batch, _, height, width = self.segments.shape
        return self.motions[:, 0, :, None, None].expand(batch, 2, height, width)


def mosis_loss(
    frame_a: Tensor,
    frame_b: Tensor,
    masks_a: Tensor,
    masks_b: Tensor,
    logits_a: Tensor,
    logits_b: Tensor,
    motion_network: MotionNetwork | CostFeatures,
    segment_motion: nn.Module,
    *,
    objectness_target: ObjectnessTarget = "gain",
    warp_direction: WarpDirection = "consistent",
    target_normalisation: TargetNormalisation = "minmax",
    error_scale: ErrorScale = "half",
    photometric: Photometric = "ssim",
    lambda_obj: float = 0.2,
) -> dict[str, Tensor]:
    """The thesis' loss of a batch of frame pairs.

    frame_a, frame_b: (B, 3, H, W) RGB in [0, 1], frames t and t+1.
    masks_a, masks_b: (B, K, H, W) in [0, 1], times objectness; gradients flow through them. K may be 0.
    logits_a, logits_b: (B, K) objectness of the same proposals.
    Returns scalars "total", "photo_forward", "photo_backward" and "objectness" (unweighted).
    """
    reading = Reading(objectness_target, warp_direction, target_normalisation, error_scale, photometric)
    features_ab, features_ba = motion_network.both_ways(frame_a, frame_b)  # eq. 5
    with torch.autocast(frame_a.device.type, enabled=False):  # sub-pixel motion and SSIM do not fit half precision
        a_to_b = _fuse(masks_a.float(), features_ab.float(), segment_motion)
        b_to_a = _fuse(masks_b.float(), features_ba.float(), segment_motion)
        photo_forward, objectness_a = _compare(frame_a, frame_b, a_to_b, logits_a.float(), reading)
        photo_backward, objectness_b = _compare(frame_b, frame_a, b_to_a, logits_b.float(), reading)
        objectness = (objectness_a + objectness_b) / 2
        return combine(photo_forward, photo_backward, objectness, lambda_obj=lambda_obj)


def _fuse(masks: Tensor, features: Tensor, segment_motion: nn.Module) -> SegmentMotions:
    segments = partition(masks)  # eq. 3, 4
    motions = segment_motion(pool_motion(segments, features))  # eq. 6, 7
    return SegmentMotions(segments, motions)


def _compare(
    frame: Tensor, other: Tensor, there: SegmentMotions, logits: Tensor, reading: Reading
) -> tuple[Tensor, Tensor]:
    """Photometric and objectness loss of one direction."""
    rebuilt, goal = reconstruct(frame, other, there.flow_uv, direction=reading.direction)  # eq. 9 or 10
    error = error_map(rebuilt, goal, photometric=reading.photometric)
    targets = explain_segments(error.detach(), frame, other, there, reading)
    return photometric_loss(error), objectness_loss(logits, targets)


def reconstruct(frame: Tensor, other: Tensor, flow_uv: Tensor, *, direction: WarpDirection) -> tuple[Tensor, Tensor]:
    """(reconstruction, what it should look like), eq. 9; with the frames exchanged, eq. 10.

    frame, other: (B, 3, H, W). flow_uv: (B, 2, H, W) pixels, motion from `frame` to `other` on `frame`'s grid.
    literal: samples `frame` to look like `other`, with a flow that lives on the wrong grid and points the wrong way.
    consistent: samples `other` to look like `frame`.
    """
    if direction == "literal":
        return warp(frame, flow_uv), other  # eq. 9: I^_t+1 = warp(I_t, F_t->t+1)
    return warp(other, flow_uv), frame  # eq. 9, mended: I_t(x) ~ I_t+1(x + F_t->t+1(x))


def error_map(rebuilt: Tensor, goal: Tensor, *, photometric: Photometric = "ssim") -> Tensor:
    """Eq. 13: (B, C, H, W) images in [0, 1] -> (B, H, W) in [0, 2].

    ssim: as written. ssim_l1: twice Godard's error, so that half the map is the error of eq. 11 in either case.
    """
    error = 1 - ssim(rebuilt, goal).mean(1)  # eq. 13
    if photometric == "ssim":
        return error
    return SSIM_SHARE * error + 2 * (1 - SSIM_SHARE) * absolute_error(rebuilt, goal)


def photometric_loss(error: Tensor) -> Tensor:
    """Eq. 11 from the map of eq. 13: half its mean over pixels and batch, a scalar in [0, 1]."""
    return error.mean() / 2  # eq. 11


def mean_error(segments: Tensor, *errors: Tensor) -> Tensor:
    """Eq. 14: each error map (B, H, W) averaged over every instance of `segments` (B, K+1, H, W), not the background.

    Returns (B, K), or (E, B, K) for E maps, which read the segments but once.
    """
    weights = segments[:, 1:].flatten(2)  # (B, K, HW)
    maps = torch.stack((*errors, torch.ones_like(errors[0])), dim=-1).flatten(1, 2)  # (B, HW, E + 1)
    *totals, areas = (weights @ maps).unbind(2)
    means = [total / (areas + EPSILON) for total in totals]  # eq. 14
    return means[0] if len(means) == 1 else torch.stack(means)


@torch.no_grad()  # the network must not improve its own targets
def explain_segments(error: Tensor, frame: Tensor, other: Tensor, there: SegmentMotions, reading: Reading) -> Tensor:
    """Targets t (B, K) of eq. 15 from the error map (B, H, W) that the segments' motions leave; without gradient."""
    factor = 0.5 if reading.scale == "half" else 1.0
    if reading.target != "gain":
        own = factor * mean_error(there.segments, error)
        return error_targets(own, inverted=reading.target == "inverted", normalisation=reading.normalisation)
    rebuilt, goal = reconstruct(frame, other, there.background_flow_uv, direction=reading.direction)
    alone = error_map(rebuilt, goal, photometric=reading.photometric)
    return gain_targets(*(factor * mean_error(there.segments, error, alone)))


def gain_targets(error: Tensor, background_error: Tensor) -> Tensor:
    """Share of the background-only error that each segment's own motion explains: (B, K) each -> (B, K) in [0, 1].

    Never normalised: stretching it would call something an object in every frame where nothing moves.
    """
    return ((background_error - error) / (background_error + GAIN_EPSILON)).clamp(0, 1)


def error_targets(error: Tensor, *, inverted: bool, normalisation: TargetNormalisation) -> Tensor:
    """t~ (B, K) of eq. 14, normalised: badly explained masks score high, as written; inverted, one minus that."""
    normalised = normalise_per_image(error, kind=normalisation)
    return 1 - normalised if inverted else normalised


def normalise_per_image(values: Tensor, *, kind: TargetNormalisation) -> Tensor:
    """ "Normalise per image" between eq. 14 and 15: (B, K) not negative -> (B, K) in [0, 1]."""
    if values.shape[1] == 0:
        return values
    high = values.amax(1, keepdim=True)
    if kind == "minmax":
        low = values.amin(1, keepdim=True)
        return (values - low) / (high - low + EPSILON)
    if kind == "max":
        return values / (high + EPSILON)
    return values.clamp(0, 1)  # with the literal scale an error may exceed 1


def objectness_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Eq. 15, averaged over proposals; 0 where there are none."""
    if logits.numel() == 0:
        return logits.sum()
    return F.binary_cross_entropy_with_logits(logits, targets)  # eq. 15


def combine(
    photo_forward: Tensor, photo_backward: Tensor, objectness: Tensor, *, lambda_obj: float
) -> dict[str, Tensor]:
    """Eq. 12 and 16: the named terms and their total."""
    photo = photo_forward + photo_backward  # eq. 12
    return {
        "total": photo + lambda_obj * objectness,  # eq. 16
        "photo_forward": photo_forward,
        "photo_backward": photo_backward,
        "objectness": objectness,
    }
