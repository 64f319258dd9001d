"""The em objective's E-step: choice of regions, layers, merging, and the whole on pictures made by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from models.common.instances import Instances
from models.interface import Batch
from models.mosis.config import MosisConfig
from models.mosis.em.candidates import (
    TIGHTNESS,
    Candidates,
    choose,
    fill_boxes,
    mask_candidates,
    peaks,
    pooled_motion,
    window_boxes,
)
from models.mosis.em.layers import (
    HIDDEN,
    VOTE_CAP,
    layer_costs,
    number_within,
    settle,
    share_out,
    to_layers,
    votes,
)
from models.mosis.em.motion import Origin, every
from models.mosis.em.moves import find_hosts, gain, mean_under, merge
from models.mosis.em.segments import Proposed, Segments, opinion
from models.mosis.em.step import find_instances, unpack
from models.mosis.em.volume import cost_volume
from models.mosis.model import Mosis
from tasks.errors import NothingLeftError
from tasks.frames import FrameStore
from tasks.training.batches import triplet_samples

SIZE = 64


def rectangle(*box: int, size: int = 8) -> Tensor:
    mask = torch.zeros(size, size, dtype=torch.bool)
    x1, y1, x2, y2 = box
    mask[y1:y2, x1:x2] = True
    return mask


def candidates(masks: list[Tensor], costs: list[float], trust: list[float] | None = None) -> Candidates:
    """Of one image; the cost under a candidate's motion is the same everywhere."""
    stacked = torch.stack(masks)[None]
    levels = torch.tensor(costs).view(1, -1, 1, 1).expand(stacked.shape)
    return Candidates(stacked, torch.zeros(1, len(masks), 2), levels, torch.tensor([trust or [1.0] * len(masks)]))


def test_the_motion_of_a_mask_is_the_argmin_of_the_costs_under_it() -> None:
    here = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    after = here.clone()
    after[:, :, 5:9, 7:11] = here[:, :, 4:8, 4:8]  # a patch moves by (3, 1)
    masks = torch.stack((rectangle(4, 4, 8, 8, size=16), rectangle(0, 12, 16, 16, size=16)))[None]
    volume = cost_volume(here, after, 4)
    found = pooled_motion(volume, masks, 4)[0]
    assert found.round().tolist() == [[3, 1], [0, 0]]
    again = mask_candidates(volume, masks, torch.ones(1, 2), 4)
    assert again.costs[0, 0][masks[0, 0]].max() == 0


def test_overlapping_regions_do_not_explain_the_same_error_twice() -> None:
    still = torch.full((1, 8, 8), 0.1)
    found = candidates([rectangle(0, 0, 6, 6), rectangle(0, 0, 5, 6), rectangle(6, 6, 8, 8)], [0.0, 0.0, 0.0])
    assert choose(found, still, 4).tolist() == [[0, 2, -1, -1]]


def test_what_explains_nothing_is_not_chosen() -> None:
    still = torch.full((1, 8, 8), 0.1)
    assert choose(candidates([rectangle(0, 0, 6, 6)], [0.1 - TIGHTNESS]), still, 1).tolist() == [[-1]]


def test_trust_decides_between_like_regions() -> None:
    still = torch.full((1, 8, 8), 0.1)
    found = candidates([rectangle(0, 0, 6, 6), rectangle(0, 0, 6, 5)], [0.0, 0.0], trust=[1.0, 2.0])
    assert choose(found, still, 1).tolist() == [[1]]


def test_windows_and_their_masks() -> None:
    boxes = window_boxes(2, 2)
    assert boxes[0].tolist() == [-1.0, -1.0, 2.0, 2.0]
    mask = fill_boxes(torch.tensor([2.0, 2.0, 6.0, 6.0]), (8, 8))  # widened to 1 .. 7
    assert torch.equal(mask, rectangle(1, 1, 7, 7))


def test_one_window_speaks_for_its_neighbours() -> None:
    values = torch.zeros(1, 7, 12)
    values[0, 3, 3], values[0, 3, 4], values[0, 2, 9] = 5.0, 4.0, 1.0
    kept = peaks(values)
    assert (kept[0, 3, 3], kept[0, 3, 4], kept[0, 2, 9]) == (5, -1, 1)


def test_hidden_pixels_are_judged_by_the_other_direction() -> None:
    points = every(1, (4, 4))
    here = torch.full((1, 3, 4, 4), 0.5)
    after, before = here.clone(), here.clone()
    after[..., :2] = 0.9  # hidden in the frame after
    before[..., 3:] = 0.6
    places = torch.stack((points, points))
    costs = layer_costs(here, torch.cat((after, before)), places)[0]
    assert costs.max() == 0
    assert layer_costs(here, torch.cat((after, after)), places)[0, :, :2].unique().tolist() == pytest.approx([0.4])
    assert layer_costs(here, torch.cat((here, here)), places + 9).unique().tolist() == pytest.approx([HIDDEN])


def test_layers_of_images_with_different_numbers() -> None:
    image = torch.tensor([0, 2, 2])
    assert number_within(image).tolist() == [0, 0, 1]
    values = torch.arange(1.0, 4.0)[:, None, None]
    layers, layer = to_layers(values, image, torch.zeros(3, 1, 1), 9.0)
    assert layers[..., 0, 0].tolist() == [[0, 1, 9], [0, 9, 9], [0, 2, 3]]
    assert layer.tolist() == [1, 1, 2]
    empty, _ = to_layers(values[:0], image[:0], torch.zeros(3, 1, 1), 9.0)
    assert empty.shape == (3, 1, 1, 1)


def test_votes_are_capped_before_they_are_smoothed() -> None:
    costs = torch.zeros(1, 2, 5, 5)
    costs[0, 0, 2, 2] = 50 * VOTE_CAP
    cast = votes(costs)
    assert cast[0, 0, 2, 2] == pytest.approx(0.25)  # a single pixel of one vote under the 1 2 1 blur
    assert cast[0, 1].max() == 0


def test_neighbours_overrule_a_single_weak_vote_but_not_a_region() -> None:
    unary = torch.zeros(1, 2, 9, 9)
    unary[0, 1] = 0.3
    unary[0, 0, 4, 4] = 0.5
    assert settle(unary).sum() == 0
    unary[0, 0, 2:7, 2:7] = 2.0
    assert settle(unary)[0, 2:7, 2:7].sum() >= 21


def test_a_prior_moves_an_outline_only_where_the_votes_are_silent() -> None:
    costs, still = torch.full((1, 12, 12), 0.05), torch.full((1, 12, 12), 0.05)
    still[0, :, :4] = 0.2  # the instance's motion is better in the left third, equal elsewhere
    costs[0, :, 8:] = 0.2  # and worse in the right third
    near, image = torch.ones(1, 12, 12, dtype=torch.bool), torch.zeros(1, dtype=torch.int64)
    silent = share_out(costs, still, near, image, torch.zeros_like(costs))[0]
    urged = share_out(costs, still, near, image, torch.full_like(costs, -0.5))[0]
    assert silent[:, :4].all()
    assert not silent[:, 5:].any()
    assert urged[6, :7].all()
    assert not urged[:, 9:].any()
    assert not share_out(costs, still, ~near, image, torch.full_like(costs, -0.5)).any()


def test_gain_is_the_share_of_the_error_explained() -> None:
    assert gain(torch.tensor([0.0, 0.05, 0.2]), torch.tensor([0.1, 0.1, 0.1])).tolist() == pytest.approx(
        [0.1 / 0.101, 0.05 / 0.101, 0.0]
    )
    mask = rectangle(0, 0, 2, 1, size=2)[None]
    assert mean_under(mask, torch.tensor([[[1.0, 3.0], [9.0, 9.0]]])).tolist() == [2.0]
    assert mean_under(~mask & mask, torch.ones(1, 2, 2)).tolist() == [0.0]


def test_two_that_touch_and_move_alike_are_one() -> None:
    masks = torch.stack((rectangle(0, 0, 3, 4), rectangle(3, 0, 7, 4), rectangle(0, 6, 4, 8), rectangle(0, 0, 3, 4)))
    still = torch.full((4, 8, 8), 0.1)
    image = torch.tensor([0, 0, 0, 1])
    alike = torch.zeros(4, 8, 8)  # each motion explains everything
    assert find_hosts(masks, alike, still, image).tolist() == [1, 1, 2, 3]  # the third is apart, the last elsewhere
    own_only = torch.full((4, 8, 8), 0.1).masked_fill(masks, 0.0)
    assert find_hosts(masks, own_only, still, image).tolist() == [0, 1, 2, 3]
    merged = merge(masks, torch.tensor([1, 1, 2, 3]))
    assert torch.equal(merged[1], rectangle(0, 0, 7, 4))
    assert merged.flatten(1).sum(1).tolist() == [0, 28, 8, 12]
    assert find_hosts(masks[:0], alike[:0], still[:0], image[:0]).shape == (0,)


def test_the_network_speaks_up_as_it_gets_surer() -> None:
    mask = rectangle(2, 2, 6, 6)[None]
    segments = Segments(
        torch.zeros(1, dtype=torch.int64), mask, torch.zeros(2, 2, 3), Origin(torch.zeros(1, 2), torch.ones(1))
    )
    like = torch.zeros(1, 8, 8)
    sure = Proposed(mask[None].float(), torch.full((1, 1), 0.8))
    assert opinion(segments, sure, like)[0, 3, 3] == pytest.approx(-1.5 * 0.8)
    assert opinion(segments, sure, like)[0, 0, 0] == pytest.approx(1.5 * 0.8)
    half = Proposed(rectangle(2, 2, 6, 4)[None, None].float(), torch.full((1, 1), 0.8))  # IoU 1 / 2
    assert opinion(segments, half, like)[0, 3, 3] == pytest.approx(-1.5 * 0.8 / 4)
    elsewhere = Proposed(rectangle(5, 5, 8, 8)[None, None].float(), torch.ones(1, 1))
    assert opinion(segments, elsewhere, like).abs().max() == 0
    assert opinion(segments, None, like).abs().max() == 0


def test_instances_go_to_their_images() -> None:
    masks = torch.stack([rectangle(0, 0, 3, 3, size=8), rectangle(2, 2, 6, 7, size=8)])
    none, both, nothing = unpack(masks, torch.tensor([0.2, 0.7]), torch.tensor([1, 1]), 3)
    assert (len(none), len(nothing)) == (0, 0)
    assert both.boxes.tolist() == [[0, 0, 3, 3], [2, 2, 6, 7]]
    assert both.scores.tolist() == pytest.approx([0.2, 0.7])


def texture(seed: int, size: int = 2 * SIZE) -> Tensor:
    """Smooth noise, (3, size, size) in [0, 1]."""
    noise = torch.rand(1, 3, size // 4, size // 4, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(noise, scale_factor=4, mode="bilinear", align_corners=False)[0]


def picture(t: int, *objects: tuple[int, int, int, int], pan: int = 1) -> Tensor:
    """(3, SIZE, SIZE) at time t = -1, 0, 1: a background that pans; squares of 20 px at (x, y), moving by (u, v)."""
    frame = texture(0)[:, 20 : 20 + SIZE, 20 + pan * t : 20 + pan * t + SIZE].clone()
    for number, (x, y, u, v) in enumerate(objects):
        left, top = x + u * t, y + v * t
        frame[:, top : top + 20, left : left + 20] = texture(number + 1)[:, :20, :20]
    return frame


def triplet(*objects: tuple[int, int, int, int]) -> tuple[Tensor, Tensor, Tensor]:
    now, after, before = (picture(t, *objects)[None] for t in (0, 1, -1))
    return now, after, before


def squares(*objects: tuple[int, int, int, int]) -> Tensor:
    return torch.stack([rectangle(x, y, x + 20, y + 20, size=SIZE) for x, y, _, _ in objects])


def overlaps(found: Instances, truth: Tensor) -> list[float]:
    a, b = found.masks.flatten(1).float(), truth.flatten(1).float()
    shared = b @ a.T
    return (shared / (b.sum(1)[:, None] + a.sum(1) - shared)).amax(1).tolist()


def test_a_moving_square_is_found_from_motion_alone() -> None:
    one = (12, 30, 4, -2)
    found = find_instances(*triplet(one), None)[0]
    assert len(found) == 1
    assert overlaps(found, squares(one))[0] > 0.85
    assert found.scores[0] > 0.6
    assert (found.boxes[0] - torch.tensor([12.0, 30.0, 32.0, 50.0])).abs().max() <= 3


@pytest.mark.parametrize("side", [44, 72])
def test_a_large_square_is_found_whole(side: int) -> None:
    size = 128
    frames = []
    for t in (0, 1, -1):
        frame = texture(0, 2 * size)[:, 20 : 20 + size, 20 + t : 20 + t + size].clone()
        frame[:, 30 - 2 * t : 30 - 2 * t + side, 20 + 4 * t : 20 + 4 * t + side] = texture(1, 2 * size)[:, :side, :side]
        frames.append(frame[None])
    found = find_instances(*frames, None)[0]
    truth = rectangle(20, 30, 20 + side, 30 + side, size=size)[None]
    assert len(found) == 1
    assert overlaps(found, truth)[0] > 0.95


def test_two_squares_that_touch_and_part_are_two() -> None:
    both = (10, 20, -3, 2), (30, 20, 4, -2)
    found = find_instances(*triplet(*both), None)[0]
    assert len(found) == 2
    assert min(overlaps(found, squares(*both))) > 0.75


def test_two_squares_that_move_as_one_are_one() -> None:
    both = (10, 20, 4, 2), (30, 20, 4, 2)
    found = find_instances(*triplet(*both), None)[0]
    assert len(found) == 1
    assert overlaps(found, squares(*both).any(0, keepdim=True))[0] > 0.8


def test_nothing_is_found_where_only_the_camera_moves() -> None:
    now, after, before = triplet()
    assert len(find_instances(now, after, before, None)[0]) == 0
    assert find_instances(now[:0], after[:0], before[:0], None) == []


def test_a_flash_that_no_motion_explains_is_no_instance() -> None:
    now, after, before = triplet((12, 30, 4, -2))
    now = now.clone()
    now[:, :, 44:60, 44:60] = 1 - now[:, :, 44:60, 44:60].round()
    found = find_instances(now, after, before)[0]
    assert len(found) == 1
    assert overlaps(found, squares((12, 30, 4, -2)))[0] > 0.8


def test_standing_still_costs_no_more_than_any_motion_can(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def watch(candidates: Candidates, still: Tensor, most: int) -> Tensor:
        seen.append((still.max(), candidates.costs.max()))
        return choose(candidates, still, most)

    monkeypatch.setattr("models.mosis.em.step.choose", watch)
    noise = torch.rand(3, 1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)).round()
    find_instances(noise[0], noise[1], noise[2])
    assert seen[0][0] <= seen[0][1] + 1e-6


def test_images_of_a_batch_do_not_disturb_each_other() -> None:
    first, second = triplet((12, 30, 4, -2)), triplet((30, 8, -3, 3), (8, 40, 4, 0))
    batch = [torch.cat(views) for views in zip(first, triplet(), second, strict=True)]
    together = find_instances(batch[0], batch[1], batch[2], None)
    alone = [find_instances(*views, None)[0] for views in (first, triplet(), second)]
    assert [len(found) for found in together] == [len(found) for found in alone] == [1, 0, 2]
    for a, b in zip(together, alone, strict=True):
        assert (a.masks != b.masks).sum() <= 4


def test_half_precision_around_it_changes_nothing() -> None:
    now, after, before = triplet((12, 30, 4, -2))
    alone = find_instances(now, after, before)[0]
    with torch.autocast("cpu", torch.bfloat16):
        within = find_instances(now, after, before)[0]
    assert torch.equal(alone.masks, within.masks)
    assert torch.equal(alone.scores, within.scores)


def test_a_square_that_turns_as_it_goes_is_one_instance() -> None:
    def view(t: int) -> Tensor:
        frame = texture(0)[:, 20 : 20 + SIZE, 20 : 20 + SIZE].clone()
        y, x = torch.meshgrid(torch.arange(SIZE) - 32.0 + 2 * t, torch.arange(SIZE) - 32.0 - 4 * t, indexing="ij")
        angle = torch.tensor(0.08 * t)
        u, v = x * angle.cos() + y * angle.sin(), y * angle.cos() - x * angle.sin()
        inside = (u.abs() < 13) & (v.abs() < 13)
        grid = torch.stack((u, v), dim=-1)[None] / SIZE
        square = torch.nn.functional.grid_sample(texture(1)[None], grid, align_corners=False)[0]
        return torch.where(inside, square, frame)[None]

    found = find_instances(view(0), view(1), view(-1))[0]
    truth = rectangle(20, 20, 45, 45, size=SIZE)[None]
    assert len(found) == 1
    assert overlaps(found, truth)[0] > 0.85


def test_a_square_that_only_translates_needs_no_more_than_that() -> None:
    one = (12, 30, 4, -2)
    found = find_instances(*triplet(one), motion_model="translation")[0]
    assert len(found) == 1
    assert overlaps(found, squares(one))[0] > 0.85
    assert find_instances(*(view[:0] for view in triplet(one)), motion_model="translation") == []


def test_a_mirrored_scene_has_mirrored_instances() -> None:
    one = (12, 30, 4, -2)
    views = triplet(one)
    now, after, before = (view.flip(3) for view in views)
    mirrored = find_instances(now, after, before, None)[0]
    assert overlaps(mirrored, find_instances(*views, None)[0].masks.flip(2))[0] > 0.9


def test_the_network_is_followed_where_motion_says_nothing() -> None:
    # A flat square's middle looks the same wherever it goes: the network knows that it has one.
    one = (12, 30, 4, -2)
    views = [view.clone() for view in triplet(one)]
    probabilities = torch.zeros(1, 1, SIZE, SIZE)
    probabilities[0, 0, 30:50, 12:32] = 1.0
    found = find_instances(views[0], views[1], views[2], Proposed(probabilities, torch.ones(1, 1)))[0]
    alone = find_instances(views[0], views[1], views[2], None)[0]
    assert overlaps(found, squares(one))[0] >= overlaps(alone, squares(one))[0]
    assert overlaps(found, squares(one))[0] > 0.9
    nowhere = Proposed(torch.zeros(1, 1, SIZE, SIZE), torch.ones(1, 1))
    assert overlaps(find_instances(views[0], views[1], views[2], nowhere)[0], squares(one))[0] > 0.85


def test_the_objective_infers_and_learns() -> None:
    torch.manual_seed(0)
    model = Mosis(MosisConfig(objective="em"), (SIZE, SIZE)).train()
    assert (model.needs, model.frame_gap, model.frame_step) == ("own_labels", 4, 4)
    assert (model.rounds, model.motion) == (2, None)
    now, after, before = triplet((12, 30, 4, -2))
    batch = Batch(now, after, torch.ones(1), frame_before=before)
    alone, together = (model.infer(batch, with_network=with_network) for with_network in (False, True))
    assert len(alone[0]) == len(together[0]) == 1
    losses = model.loss(Batch(now, now, torch.ones(1), labels=alone))
    losses["total"].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.appearance.parameters())
    with pytest.raises(ValueError, match="three frames"):
        model.infer(Batch(now, after, torch.ones(1)), with_network=False)


def store_of(lengths: list[int]) -> FrameStore:
    rng = np.random.default_rng(0)
    clips = [rng.integers(0, 255, (length, 32, 32, 3), dtype=np.uint8) for length in lengths]
    return FrameStore.from_arrays(clips, ["train"] * len(clips), 24.0)


def test_triplets_stay_within_their_clip() -> None:
    samples = triplet_samples(store_of([6, 5]), 2)
    assert samples.row_a.tolist() == [2, 3, 8]
    assert samples.row_b.tolist() == [4, 5, 10]
    assert samples.row_before is not None
    assert samples.row_before.tolist() == [0, 1, 6]
    assert samples.dt_s.tolist() == pytest.approx([2 / 24] * 3)
    with pytest.raises(NothingLeftError, match="5 good frames"):
        triplet_samples(store_of([4, 3]), 2)
