"""Eq. 9-16: which way frames are warped, what becomes a target, and how the terms add up."""

from __future__ import annotations

import dataclasses
import importlib
import operator
import re
from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import Tensor, nn

import models.mosis
from models.interface import Batch
from models.mosis.config import (
    MosisConfig,
    ObjectnessTarget,
    Photometric,
    Preset,
    TargetNormalisation,
    WarpDirection,
)
from models.mosis.fusion import partition, pool_motion, segment_flow
from models.mosis.losses import (
    Reading,
    SegmentMotions,
    combine,
    error_map,
    error_targets,
    explain_segments,
    gain_targets,
    mean_error,
    mosis_loss,
    normalise_per_image,
    objectness_loss,
    photometric_loss,
    reconstruct,
)
from models.mosis.model import Mosis
from models.mosis.motion import ArgminMotion, CostFeatures, MotionNetwork, SegmentMotion

GAIN = Reading("gain", "consistent", "minmax", "half")


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def moving_square() -> tuple[Tensor, Tensor, Tensor]:
    """A textured 8x8 square goes 3 px right and 2 px down over a textured background that stands still.

    Returns frames t and t+1 (1, 3, 32, 32) and the square's mask in frame t (32, 32).
    """
    background, square = noise(1, 3, 32, 32), noise(1, 3, 8, 8, seed=1)
    frame_a, frame_b = background.clone(), background.clone()
    frame_a[..., 8:16, 8:16] = square
    frame_b[..., 10:18, 11:19] = square
    mask = torch.zeros(32, 32)
    mask[8:16, 8:16] = 1
    return frame_a, frame_b, mask


class KnownMotion(nn.Module):
    """Stands in for both networks: features that carry the true motion of each pixel, and a readout that copies it."""

    def __init__(self, there: Tensor, back: Tensor) -> None:
        super().__init__()
        self.there, self.back = there, back

    def both_ways(self, frame_a: Tensor, frame_b: Tensor) -> tuple[Tensor, Tensor]:
        return self.there, self.back

    def forward(self, pooled: Tensor) -> Tensor:
        return pooled


def known_motion(u: float, v: float, *shape: int) -> KnownMotion:
    there = torch.tensor([u, v]).view(1, 2, 1, 1).expand(*shape)
    return KnownMotion(there, -there)


def translated_pair(u: int, v: int) -> tuple[Tensor, Tensor]:
    """The whole frame moves by (u, v): frame t+1 at x + (u, v) shows what frame t shows at x."""
    coarse = nn.functional.interpolate(noise(1, 3, 8, 8), size=48, mode="bicubic").clamp(0, 1)
    return coarse[..., 8:40, 8:40], coarse[..., 8 - v : 40 - v, 8 - u : 40 - u]


def losses_of_translation(u: float, v: float, direction: WarpDirection) -> float:
    """Photometric loss of a frame that moves by (2, -1), under the motion (u, v)."""
    frame_a, frame_b = translated_pair(2, -1)
    motion = known_motion(u, v, 1, 2, 32, 32)
    masks, logits = torch.zeros(1, 0, 32, 32), torch.zeros(1, 0)
    terms = mosis_loss(frame_a, frame_b, masks, masks, logits, logits, motion, motion, warp_direction=direction)  # type: ignore[arg-type]
    return float(terms["photo_forward"] + terms["photo_backward"])


def test_the_right_motion_reconstructs_in_the_consistent_direction() -> None:
    right, still = losses_of_translation(2, -1, "consistent"), losses_of_translation(0, 0, "consistent")
    assert right < 0.2 * still  # what is left is the strip that only one frame shows
    assert losses_of_translation(-2, 1, "consistent") > still


def test_the_literal_direction_wants_the_opposite_motion() -> None:
    still = losses_of_translation(0, 0, "literal")
    assert losses_of_translation(-2, 1, "literal") < 0.2 * still
    assert losses_of_translation(2, -1, "literal") > still


def test_directions_sample_the_frame_they_say() -> None:
    a, b, flow = noise(1, 3, 4, 4), noise(1, 3, 4, 4, seed=1), torch.zeros(1, 2, 4, 4)
    rebuilt, goal = reconstruct(a, b, flow, direction="literal")
    torch.testing.assert_close(rebuilt, a)
    assert goal is b
    rebuilt, goal = reconstruct(a, b, flow, direction="consistent")
    torch.testing.assert_close(rebuilt, b)
    assert goal is a


def test_photometric_loss_lies_between_equal_and_opposite() -> None:
    checkers = torch.tensor([[0.0, 1.0], [1.0, 0.0]]).tile(4, 4).view(1, 1, 8, 8)
    assert photometric_loss(error_map(checkers, checkers)).item() == pytest.approx(0, abs=1e-6)
    assert 0.75 < photometric_loss(error_map(checkers, 1 - checkers)).item() <= 1  # 1 - SSIM itself would exceed 1


def test_mean_error_by_hand() -> None:
    segments = torch.zeros(1, 3, 1, 4)
    segments[0, 1, 0] = torch.tensor([1.0, 1.0, 0.0, 0.0])
    segments[0, 2, 0] = torch.tensor([0.0, 0.0, 0.5, 0.25])
    error = torch.tensor([[[0.2, 0.4, 0.6, 0.9]]])
    torch.testing.assert_close(mean_error(segments, error), torch.tensor([[0.3, 0.7]]), atol=1e-5, rtol=0)


def test_gain_is_one_for_a_moving_object_and_zero_for_background() -> None:
    frame_a, frame_b, mask = moving_square()
    elsewhere = torch.zeros(32, 32)
    elsewhere[22:30, 2:10] = 1
    segments = partition(torch.stack((mask, elsewhere))[None])
    right = SegmentMotions(segments, torch.tensor([[[0.0, 0.0], [3.0, 2.0], [0.0, 0.0]]]))
    error = error_map(*reconstruct(frame_a, frame_b, right.flow_uv, direction="consistent"))
    targets = explain_segments(error, frame_a, frame_b, right, GAIN)
    assert targets[0, 0].item() > 0.6  # not 1: at the rim, the 3x3 windows also see the background that is uncovered
    assert targets[0, 1].item() == 0
    inner = torch.zeros_like(segments)
    inner[:, 1, 10:14, 10:14] = 1
    targets = explain_segments(error, frame_a, frame_b, right._replace(segments=inner), GAIN)
    assert targets[0, 0].item() > 0.99


def test_gain_of_wrong_motion_and_of_nothing_to_explain_is_zero() -> None:
    assert gain_targets(torch.tensor([[0.4]]), torch.tensor([[0.3]])).item() == 0
    assert gain_targets(torch.tensor([[0.0]]), torch.tensor([[0.3]])).item() == pytest.approx(1, abs=0.01)
    assert gain_targets(torch.tensor([[0.1]]), torch.tensor([[0.2]])).item() == pytest.approx(0.5, abs=0.01)
    rounding = torch.tensor([[1e-5]])
    assert gain_targets(torch.zeros(1, 1), rounding).item() < 0.02


def test_literal_rewards_badly_explained_masks_and_inverted_the_others() -> None:
    error = torch.tensor([[0.1, 0.3, 0.5]])
    literal = error_targets(error, inverted=False, normalisation="minmax")
    torch.testing.assert_close(literal, torch.tensor([[0.0, 0.5, 1.0]]), atol=1e-4, rtol=0)
    torch.testing.assert_close(error_targets(error, inverted=True, normalisation="minmax"), 1 - literal)


def test_each_normalisation_by_hand() -> None:
    values = torch.tensor([[0.5, 1.0, 1.5], [0.2, 0.2, 0.2]])
    expected = {
        "minmax": [[0.0, 0.5, 1.0], [0.0, 0.0, 0.0]],
        "max": [[1 / 3, 2 / 3, 1.0], [1.0, 1.0, 1.0]],
        "none": [[0.5, 1.0, 1.0], [0.2, 0.2, 0.2]],
    }
    for kind in get_args(TargetNormalisation):
        result = normalise_per_image(values, kind=kind)
        torch.testing.assert_close(result, torch.tensor(expected[kind]), atol=1e-4, rtol=0)
        assert normalise_per_image(torch.zeros(2, 0), kind=kind).shape == (2, 0)


def test_error_scale_halves_targets() -> None:
    frame_a, frame_b, mask = moving_square()
    there = SegmentMotions(partition(mask[None, None]), torch.zeros(1, 2, 2))
    error = error_map(*reconstruct(frame_a, frame_b, there.flow_uv, direction="consistent"))
    literal, half = (
        explain_segments(error, frame_a, frame_b, there, Reading("literal", "consistent", "none", scale))
        for scale in ("literal", "half")
    )
    assert half.item() < 0.5
    torch.testing.assert_close(literal, (2 * half).clamp(max=1))


def test_error_with_l1_by_hand() -> None:
    # Flat images: SSIM is (2 ab + C1) / (a a + b b + C1), their variances being 0.
    a, b = torch.full((1, 3, 4, 4), 0.2), torch.full((1, 3, 4, 4), 0.6)
    ssim = (2 * 0.2 * 0.6 + 1e-4) / (0.2**2 + 0.6**2 + 1e-4)
    godard = 0.85 * (1 - ssim) / 2 + 0.15 * 0.4
    error = error_map(a, b, photometric="ssim_l1")
    assert error.shape == (1, 4, 4)
    torch.testing.assert_close(error, torch.full((1, 4, 4), 2 * godard))
    assert photometric_loss(error).item() == pytest.approx(godard, abs=1e-6)
    assert error_map(a, b).mean().item() == pytest.approx(1 - ssim, abs=1e-5)
    assert error_map(a, a, photometric="ssim_l1").abs().max() < 1e-6


def test_targets_are_of_the_error_that_is_trained() -> None:
    frame_a, frame_b, mask = moving_square()
    frame_b = frame_b * 0.8  # L1 sees what SSIM does not
    there = SegmentMotions(partition(mask[None, None]), torch.tensor([[[0.0, 0.0], [3.0, 2.0]]]))
    rebuilt, goal = reconstruct(frame_a, frame_b, there.flow_uv, direction="consistent")
    still, _ = reconstruct(frame_a, frame_b, torch.zeros(1, 2, 32, 32), direction="consistent")
    error, alone = (error_map(image, goal, photometric="ssim_l1") for image in (rebuilt, still))
    own, background = mean_error(there.segments, error, alone)
    targets = explain_segments(error, frame_a, frame_b, there, GAIN._replace(photometric="ssim_l1"))
    torch.testing.assert_close(targets, gain_targets(own / 2, background / 2))


@pytest.mark.parametrize("photometric", get_args(Photometric))
def test_the_photometric_error_reaches_the_loss(photometric: Photometric) -> None:
    torch.manual_seed(0)
    model = Mosis(MosisConfig(objective="literal", photometric=photometric, segment_motion="closed_form"), (32, 32))
    monochrome = torch.full((1, 3, 32, 32), 0.5)
    terms = model.loss(Batch(monochrome, 0.5 * monochrome, torch.ones(1)))
    expected = photometric_loss(error_map(monochrome, 0.5 * monochrome, photometric=photometric))
    torch.testing.assert_close(terms["photo_forward"], expected, atol=1e-5, rtol=0)


def closed_form(frame_a: Tensor, frame_b: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """(motions there, motions back) of `masks` (B, K, H, W) and the background, in closed form."""
    there, back = CostFeatures().both_ways(frame_a, frame_b)
    segments = partition(masks)
    return ArgminMotion()(pool_motion(segments, there)), ArgminMotion()(pool_motion(segments, back))


def test_closed_form_motion_of_a_square_and_of_what_stands_still() -> None:
    coarse = nn.functional.interpolate(noise(2, 3, 16, 16), size=64, mode="bilinear")
    frame_a, frame_b = coarse[:1].clone(), coarse[:1].clone()
    frame_a[..., 16:32, 24:40], frame_b[..., 22:38, 12:28] = coarse[1:, :, :16, :16], coarse[1:, :, :16, :16]
    masks = torch.zeros(1, 3, 64, 64)
    masks[0, 0, 16:32, 24:40] = masks[0, 1, 48:, :16] = 1  # the third is empty
    there, _ = closed_form(frame_a, frame_b, masks)
    torch.testing.assert_close(there[0, 1], torch.tensor([-12.0, 6.0]), atol=0.5, rtol=0)
    assert there[0, [0, 2]].abs().max() < 0.5
    assert there[0, 3].abs().max() == 0
    _, back = closed_form(frame_b, frame_a, masks)  # the frames exchanged: the way back is the way there
    torch.testing.assert_close(back, there)


def test_where_every_displacement_looks_alike_nothing_moves() -> None:
    flat = torch.full((2, 3, 64, 64), 0.5)
    there, back = closed_form(flat, flat, torch.zeros(2, 0, 64, 64))
    assert there.shape == back.shape == (2, 1, 2)
    assert there.abs().max() == back.abs().max() == 0


def test_in_closed_form_masks_learn_through_the_segment_flow_alone() -> None:
    frame_a, frame_b, mask = moving_square()
    masks, logits = (0.2 + 0.6 * mask[None, None]).requires_grad_(), torch.zeros(1, 1, requires_grad=True)
    terms = mosis_loss(frame_a, frame_b, masks, masks, logits, logits, CostFeatures(), ArgminMotion())
    (gradient,) = torch.autograd.grad(terms["photo_forward"], masks)
    assert gradient.abs().sum() > 0
    segments = partition(masks)
    motions = ArgminMotion()(pool_motion(segments, CostFeatures().both_ways(frame_a, frame_b)[0]))
    assert not motions.requires_grad
    by_hand = photometric_loss(error_map(*reconstruct(frame_a, frame_b, segment_flow(segments, motions),
                                                      direction="consistent")))  # fmt: skip
    torch.testing.assert_close(gradient, torch.autograd.grad(by_hand, masks)[0])


def test_terms_add_up() -> None:
    terms = combine(torch.tensor(0.1), torch.tensor(0.2), torch.tensor(0.5), lambda_obj=0.2)
    assert terms["total"].item() == pytest.approx(0.4)
    logits, targets = torch.tensor([[0.0, 2.0]]), torch.tensor([[1.0, 0.25]])
    by_hand = (0.693147 + (2.0 - 0.25 * 2.0 + 0.126928)) / 2  # softplus(0); l - t l + log(1 + e^-l)
    assert objectness_loss(logits, targets).item() == pytest.approx(by_hand, abs=1e-5)


@pytest.mark.parametrize("target", get_args(ObjectnessTarget))
@pytest.mark.parametrize("direction", get_args(WarpDirection))
def test_every_reading_trains_every_part(target: ObjectnessTarget, direction: WarpDirection) -> None:
    torch.manual_seed(0)
    network, readout = MotionNetwork(2, widths=(4, 4), channels=6), SegmentMotion(6)
    masks = [noise(2, 3, 16, 16, seed=seed).requires_grad_() for seed in (2, 3)]
    logits = [noise(2, 3, seed=seed).requires_grad_() for seed in (4, 5)]
    terms = mosis_loss(
        noise(2, 3, 16, 16),
        noise(2, 3, 16, 16, seed=1),
        masks[0],
        masks[1],
        logits[0],
        logits[1],
        network,
        readout,
        objectness_target=target,
        warp_direction=direction,
    )
    assert set(terms) == {"total", "photo_forward", "photo_backward", "objectness"}
    expected = terms["photo_forward"] + terms["photo_backward"] + 0.2 * terms["objectness"]
    torch.testing.assert_close(terms["total"], expected)
    terms["total"].backward()
    for leaf in (*masks, *logits, *network.parameters(), *readout.parameters()):
        assert leaf.grad is not None
        assert leaf.grad.isfinite().all()
        assert leaf.grad.abs().sum() > 0


@pytest.mark.parametrize("target", get_args(ObjectnessTarget))
def test_targets_carry_no_gradient(target: ObjectnessTarget) -> None:
    masks, logits = noise(1, 2, 16, 16, seed=2).requires_grad_(), torch.zeros(1, 2)
    motion = known_motion(1, 0, 1, 2, 16, 16)
    a, b = noise(1, 3, 16, 16), noise(1, 3, 16, 16, seed=1)
    terms = mosis_loss(a, b, masks, masks, logits, logits, motion, motion, objectness_target=target)  # type: ignore[arg-type]
    assert not terms["objectness"].requires_grad


def test_without_proposals_the_background_still_learns() -> None:
    torch.manual_seed(0)
    network, readout = MotionNetwork(2, widths=(4, 4), channels=6), SegmentMotion(6)
    none, logits = torch.zeros(2, 0, 16, 16), torch.zeros(2, 0)
    terms = mosis_loss(noise(2, 3, 16, 16), noise(2, 3, 16, 16, seed=1), none, none, logits, logits, network, readout)
    assert terms["objectness"].item() == 0
    terms["total"].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


def test_half_precision_forward_leaves_the_loss_in_single_precision() -> None:
    network, readout = MotionNetwork(2, widths=(4, 4), channels=6), SegmentMotion(6)
    masks, logits = noise(1, 2, 16, 16), torch.zeros(1, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = mosis_loss(
            noise(1, 3, 16, 16),
            noise(1, 3, 16, 16, seed=1),
            masks.bfloat16(),
            masks.bfloat16(),
            logits.bfloat16(),
            logits.bfloat16(),
            network,
            readout,
        )
    assert all(term.dtype == torch.float32 and term.isfinite() for term in terms.values())


def test_the_readme_names_functions_that_exist() -> None:
    text = (Path(models.mosis.__file__).parent / "README.md").read_text(encoding="utf-8")
    table = text[text.index("## Equation") : text.index("## Faults")]
    names = re.findall(r"`((?:common\.)?\w+)\.([\w.]+)`", table)
    assert len(names) > 15
    for module, path in names:
        package = "models" if module.startswith("common.") else "models.mosis"
        operator.attrgetter(path)(importlib.import_module(f"{package}.{module}"))
    options = text[text.index("## Faults") : text.index("## Deviations")]
    fields = {field.name for field in dataclasses.fields(MosisConfig)}
    assert {"objectness_target", "warp_direction", "target_normalisation", "error_scale"} <= fields
    named = ("objectness", "warp", "target", "error", "segment_motion", "photometric")
    assert all(f"`{name}`" in options for name in fields if name.startswith(named))
    assert all(
        f"`{name}`" in text or f"`{name}: " in text for name in ("motion_model", "frame_gap", "frame_step", "rounds")
    )


@pytest.mark.parametrize("preset", get_args(Preset))
def test_the_readme_counts_parameters_right(preset: Preset) -> None:
    text = (Path(models.mosis.__file__).parent / "README.md").read_text(encoding="utf-8")
    with torch.device("meta"):
        model = Mosis(MosisConfig(preset=preset, objective="literal"), (128, 128))
    assert model.motion is not None
    for part in (model.appearance, model.motion):
        assert f"{sum(p.numel() for p in part.parameters()) / 1e6:.1f} M" in text
