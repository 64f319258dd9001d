"""Closed-form motion of the em objective: bases, Lucas-Kanade, cost volumes, the background."""

from __future__ import annotations

import math
from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.interface import Batch
from models.mosis.config import MosisConfig, MotionModel
from models.mosis.em.background import background_places, fit_background
from models.mosis.em.grid import biggest, blur, box_sums, dilate, halve, mean3
from models.mosis.em.motion import (
    STIFFNESS,
    Match,
    Origin,
    basis,
    every,
    fit,
    flow,
    gradient,
    robust_error,
    sample,
    within,
)
from models.mosis.em.scene import CELL, look, observe
from models.mosis.em.segments import Segments, refit
from models.mosis.em.step import find_instances
from models.mosis.em.volume import CAP, argmin_motion, cost_volume, vertex
from models.mosis.model import Mosis


def waves(points: Tensor) -> Tensor:
    """A smooth texture, (..., 2, h, w) pixels -> (..., h, w) in [0, 1], known between pixels, too."""
    x, y = points.unbind(-3)
    return 0.5 + 0.2 * torch.sin(x / 3 + y / 7) + 0.2 * torch.cos(y / 4 - x / 9 + 1)


def seen(theta: Tensor, origin: Origin, size: int = 48) -> tuple[Match, Tensor]:
    """A frame that moved by theta (1, 2, Q) from `here` to `there`: here(x) = there(x + F(x)) exactly."""
    points = every(1, (size, size))
    rows = basis(points, origin, order={1: 0, 3: 1, 6: 2}[theta.shape[2]])
    there = waves(points)[None, None]
    here = waves(points[None] + flow(theta, rows))
    return Match(here, gradient(here[:, None]), there, points[None]), rows


MIDDLE = Origin(torch.tensor([[20.0, 24.0]]), torch.tensor([10.0]))


def test_points_are_the_middles_of_cells() -> None:
    points = every(2, (4, 6))
    assert points.shape == (2, 2, 3)
    assert points[0, 0].tolist() == [0.5, 2.5, 4.5]
    assert points[1, :, 0].tolist() == [0.5, 2.5]


def test_basis_rows_are_polynomials_about_the_origin() -> None:
    rows = basis(torch.tensor([[[30.0]], [[14.0]]]), MIDDLE, order=2)  # x = 1, y = -1 in units of the scale
    assert rows[0, :, 0, 0].tolist() == [1, 1, -1, 1, -1, 1]
    assert basis(torch.zeros(2, 1, 1), MIDDLE, order=0).shape == (1, 1, 1, 1)


def test_flow_of_an_affine_motion() -> None:
    theta = torch.tensor([[[1.0, 2.0, 0.0], [0.0, 0.0, 3.0]]])  # u = 1 + 2 x, v = 3 y
    uv = flow(theta, torch.tensor([1.0, 0.5, -1.0]).view(1, 3, 1, 1))
    assert uv.flatten().tolist() == [2.0, -3.0]


def test_sampling_between_pixels_and_beyond_the_border() -> None:
    image = torch.tensor([[0.0, 1.0], [2.0, 3.0]])[None, None]
    xy = torch.tensor([[[0.5, 5.0]], [[0.5, 1.0]]])[None]
    assert sample(image, xy)[0, 0, 0].tolist() == pytest.approx([1.5, 3.0])
    assert within(xy, image)[0, 0].tolist() == [True, False]


def test_gradient_of_a_ramp() -> None:
    x = torch.arange(5.0)
    ramp = (2 * x[None, :] + 3 * x[:, None])[None, None]
    slopes = gradient(ramp)
    assert slopes[0, 0, 1:-1, 1:-1].unique().tolist() == [2]
    assert slopes[0, 1, 1:-1, 1:-1].unique().tolist() == [3]


@pytest.mark.parametrize("coefficients", [[1.3], [0.4, 0.8, -0.5], [0.4, 0.8, -0.5, 0.2, -0.1, 0.1]])
def test_fit_finds_translation_affine_and_planar_motion(coefficients: list[float]) -> None:
    true = torch.tensor([[coefficients, [-c / 2 for c in coefficients]]])
    match, rows = seen(true, MIDDLE)
    weights = ((every(1, (48, 48)) - 24).abs().amax(0) < 18).float()[None]
    found = fit(match, weights, torch.zeros_like(true), rows, 8)
    assert (found - true).abs().max() < 0.05


def test_one_step_without_robust_weights_is_lucas_kanade_by_hand() -> None:
    # One pixel row, slope s = 0.1, here lags by 0.02: d = 0.02 / 0.1, shrunk by the ridge alone.
    match = Match(
        torch.full((1, 4, 4), 0.5),
        torch.full((1, 2, 4, 4), 0.1),
        torch.full((1, 1, 4, 4), 0.501),
        every(1, (4, 4))[None],
    )
    found = fit(match, torch.ones(1, 4, 4), torch.zeros(1, 2, 1), torch.ones(1, 1, 4, 4), 1)
    trust = 1 / (1 + (0.001 / 0.04) ** 2) ** 2
    diagonal = 16 * 0.1 * 0.1 * trust
    expected = -(16 * 0.1 * 0.001 * trust) / (2 * diagonal + 0.02 * diagonal + 1e-6)
    assert found.flatten().tolist() == pytest.approx([expected, expected], rel=1e-4)


def test_outliers_do_not_pull() -> None:
    true = torch.tensor([[[1.0], [0.5]]])
    match, rows = seen(true, MIDDLE)
    here = match.here.clone()
    here[:, 16:32, 16:32] = 0.0  # something else stands there
    found = fit(match._replace(here=here), torch.ones_like(here), torch.zeros_like(true), rows, 8)
    assert (found - true).abs().max() < 0.05


def test_a_flat_region_keeps_its_motion_and_loses_its_rotation() -> None:
    flat = Match(torch.zeros(1, 8, 8), torch.zeros(1, 2, 8, 8), torch.zeros(1, 1, 8, 8), every(1, (8, 8))[None])
    start = torch.tensor([[[3.0, 1.0, -1.0], [2.0, 0.5, 0.0]]])
    rows = basis(every(1, (8, 8)), Origin(torch.full((1, 2), 4.0), torch.full((1,), 4.0)), order=1)
    found = fit(flat, torch.ones(1, 8, 8), start, rows, 2)
    assert STIFFNESS > 0
    assert found[0, :, 0].tolist() == [3.0, 2.0]
    assert found[0, :, 1:].abs().max() < 1e-4


def test_robust_error_is_zero_where_the_motion_is_right() -> None:
    true = torch.tensor([[[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]]])
    match, rows = seen(true, MIDDLE)
    assert robust_error(match, true, rows) < 0.1 * robust_error(match, torch.zeros_like(true), rows)


def test_cost_volume_is_zero_at_the_true_displacement() -> None:
    here = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    after = torch.roll(here, (1, -2), dims=(2, 3))  # what is at x is at x - 2, y + 1 afterwards
    volume = cost_volume(here, after, 2)
    assert volume.shape == (1, 25, 8, 8)
    channel = (1 + 2) * 5 + (-2 + 2)
    assert volume[0, channel, 1:-1, 2:-1].max() == 0
    expected = (here[0, :, 3, 4] - after[0, :, 4, 4]).abs().mean().clamp(max=CAP)  # d = (0, 1)
    assert volume[0, 3 * 5 + 2, 3, 4] == pytest.approx(float(expected))


def test_cost_volume_takes_the_better_direction_of_time() -> None:
    here = torch.rand(1, 1, 6, 6, generator=torch.Generator().manual_seed(1))
    noise = torch.rand(1, 1, 6, 6, generator=torch.Generator().manual_seed(2)) + 2
    before = torch.roll(here, 1, dims=3)  # moves by -1 a frame, so it came from x + 1
    volume = cost_volume(here, noise, 1, before=before)
    assert volume[0, 3, :, :-1].max() == 0  # d = (-1, 0)
    assert volume[0, 5].min() > 0


def test_beyond_the_picture_costs_the_cap() -> None:
    volume = cost_volume(torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 4), 1)
    assert volume[0, 5, :, -1].unique().tolist() == pytest.approx([CAP])  # d = (1, 0) leads out to the right
    assert volume[0, 5, :, :-1].max() == 0


def test_argmin_reads_a_parabola_to_a_fraction_of_a_cell() -> None:
    r = torch.arange(-3.0, 4.0)
    costs = (r[None, :] - 1.25) ** 2 + (r[:, None] + 0.75) ** 2
    assert argmin_motion(costs.reshape(1, -1), 3)[0].tolist() == pytest.approx([1.25, -0.75])
    assert argmin_motion(torch.zeros(0, 49), 3).shape == (0, 2)


def test_vertex_of_a_flat_line_is_its_middle() -> None:
    one = torch.ones(1)
    assert vertex(one, one, one).item() == 0
    assert vertex(2 * one, 0 * one, 2 * one).item() == 0
    assert vertex(0 * one, 0 * one, 2 * one).item() == -0.5


def scene(theta: Tensor, size: int = 64) -> tuple[Tensor, Tensor]:
    """Grey frames (1, 1, H, W): the background moves by theta (1, 2, 6) of `whole_frame`; a square goes its own way."""
    points = every(1, (size, size))
    here, there = waves(background_places(theta, points, (size, size))), waves(points)[None]
    here[:, 10:22, 30:42], there[:, 16:28, 24:36] = 0.1, 0.1
    return here[:, None], there[:, None]


@pytest.mark.parametrize("coefficients", [[2.5, 0, 0, 0, 0, 0], [1.0, 1.5, -1.0, 0, 0, 0], [-1.0, 1, -1, 1.5, 0.5, -1]])
def test_background_motion_in_spite_of_an_object(coefficients: list[float]) -> None:
    true = torch.tensor([[coefficients, [-c for c in coefficients]]])
    found = fit_background(*scene(true))
    points = every(8, (64, 64))
    error = background_places(found, points, (64, 64)) - background_places(true, points, (64, 64))
    assert error[:, :, 1:-1, 1:-1].abs().max() < 0.3


def test_what_does_not_move_or_has_no_texture_stays_put() -> None:
    flat = torch.full((2, 1, 32, 32), 0.5)
    assert fit_background(flat[:1], flat).abs().max() < 1e-4
    assert fit_background(flat[:0], flat[:0]).shape == (0, 2, 6)


def test_two_neighbours_of_each_frame_are_fitted_at_once() -> None:
    here, there = scene(torch.tensor([[[2.0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]]]))
    both = fit_background(here, torch.cat((there, here)))
    assert both[0, 0, 0] == pytest.approx(2.0, abs=0.1)
    assert both[1, 0, 0] == pytest.approx(0.0, abs=0.05)


def test_shifted_sums_equal_pooling() -> None:
    maps = torch.rand(2, 3, 6, 8, generator=torch.Generator().manual_seed(3))
    assert torch.allclose(mean3(maps), F.avg_pool2d(maps, 3, 1, 1), atol=1e-6)
    assert torch.allclose(halve(maps), F.avg_pool2d(maps, 2), atol=1e-6)
    assert torch.allclose(box_sums(maps, 5), F.avg_pool2d(maps, 5, 1, 2) * 25, atol=1e-5)
    kernel = torch.outer(torch.tensor([1.0, 2, 1]), torch.tensor([1.0, 2, 1]))[None, None] / 16
    padded = F.pad(maps[:, :1], (1, 1, 1, 1), mode="replicate")
    assert torch.allclose(blur(maps[:, :1]), F.conv2d(padded, kernel), atol=1e-6)


@pytest.mark.parametrize("reach", [0, 1, 2, 4, 5])
def test_dilation_reaches_as_far_as_it_says(reach: int) -> None:
    mask = torch.zeros(1, 13, 15, dtype=torch.bool)
    mask[0, 6, 7] = True
    rows, columns = torch.nonzero(dilate(mask, reach)[0], as_tuple=True)
    assert (rows.min(), rows.max()) == (6 - reach, 6 + reach)
    assert (columns.min(), columns.max()) == (7 - reach, 7 + reach)
    assert len(rows) == (2 * reach + 1) ** 2


def test_the_biggest_part_is_kept() -> None:
    mask = torch.zeros(2, 16, 16, dtype=torch.bool)
    mask[0, 1:7, 1:7] = True
    mask[0, 10:13, 10:13] = True
    kept = biggest(mask)
    assert kept[0, 1:7, 1:7].all()
    assert kept.sum() == 36
    assert biggest(mask[:0]).shape == (0, 16, 16)
    assert math.prod(biggest(mask).shape) == 512
    assert not kept[1].any()


def test_a_large_or_winding_part_is_kept_whole() -> None:
    mask = torch.zeros(3, 64, 64, dtype=torch.bool)
    mask[0, 2:62, 2:62] = True  # sixty cells from corner to corner
    mask[1, ::4] = True  # a snake
    mask[1, :, 0] = True
    mask[2, 0:9, 0:9] = True  # as solid as the larger one, and before it
    mask[2, 20:38, 20:38] = True
    kept = biggest(mask)
    assert torch.equal(kept[:2], mask[:2])
    assert (kept[2].sum(), kept[2, :9, :9].sum()) == (18 * 18, 0)
    touching = torch.ones(2, 4, 4, dtype=torch.bool)  # the end of one mask is not the beginning of the next
    assert torch.equal(biggest(touching), touching)


def growing(t: int, *, growth: float = 0.1, shift: float = 0.0) -> Tensor:
    """(1, 3, 64, 64): a square of 28 px about the middle grows and goes right as it says over what stands still."""
    points = every(1, (64, 64))
    local = (points - 31.5 - torch.tensor([shift * t, 0.0])[:, None, None]) / (1 + growth * t)
    frame = torch.where(local.abs().amax(0) < 14, waves(2 * local), waves(1.5 * points + 40))
    return frame.expand(1, 3, -1, -1)


def refitted(growth: float, shift: float, **settings: Any) -> Tensor:
    """theta (2, 2, 3) of the square, refitted from 1 px to the right and back."""
    views = [growing(t, growth=growth, shift=shift) for t in (0, 1, -1)]
    scene = observe(views[0], views[1], views[2])
    masks = torch.zeros(1, 32, 32, dtype=torch.bool)
    masks[:, 9:23, 9:23] = True
    theta = torch.zeros(2, 2, 3)
    theta[:, 0, 0] = torch.tensor([1.0, -1.0])
    origin = Origin(torch.full((1, 2), 31.5), torch.full((1,), 28.0))
    segments = Segments(torch.zeros(1, dtype=torch.int64), masks, theta, origin)
    return refit(scene, look(scene, CELL), segments, **settings).theta


@pytest.mark.parametrize("translate", [False, True])
def test_a_translation_neither_turns_nor_grows(translate: bool) -> None:  # noqa: FBT001
    affine = refitted(0.1, 0.0, translate=translate)
    assert 0.5 < affine[0, 0, 1] < 3.5  # on the way to u = 2.8 x, a tenth of 28 px
    assert 0.5 < affine[0, 1, 2] < 3.5
    assert refitted(0.1, 0.0, translate=translate, motion_model="translation")[:, :, 1:].abs().max() == 0
    moved = refitted(0.0, 1.6, translate=translate, motion_model="translation")
    assert moved[:, 0, 0].tolist() == pytest.approx([1.6, -1.6], abs=0.15)
    assert moved[:, 1, 0].abs().max() < 0.15


def test_the_motion_model_reaches_the_e_step(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(
        "models.mosis.em.step.refit", lambda *a, **k: seen.append(k.get("motion_model")) or refit(*a, **k)
    )
    views = [growing(t) for t in (0, 1, -1)]
    batch = Batch(views[0], views[1], torch.ones(1), frame_before=views[2])
    scores = {}
    for name in get_args(MotionModel):
        model = Mosis(MosisConfig(objective="em", motion_model=name), (64, 64)).eval()
        found = model.infer(batch, with_network=False)[0]
        assert torch.equal(found.scores, find_instances(*views, motion_model=name)[0].scores)
        scores[name] = float(found.scores.sum())
        assert set(seen[-4:]) == {name}  # two fits in each of two E-steps
    assert scores["translation"] < scores["affine"]
