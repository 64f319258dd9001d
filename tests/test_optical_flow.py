"""Optical flow: every loss by hand, augmentation of the field, the estimators, and that training moves the error."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torchvision.models.optical_flow import raft_small
from training_toy import toy_recipe, toy_store

from models import OPTICAL_FLOW
from models.interface import Batch
from models.optical_flow.config import DisConfig, PwcLiteConfig, RaftConfig
from models.optical_flow.losses import (
    census_distance,
    census_error,
    edge_aware_smoothness,
    end_point_error,
    find_visible,
    photometric_error,
    robust_error,
    squared_error,
    trust_visible,
)
from models.optical_flow.pwc_lite import PwcLite, crop_batch
from models.optical_flow.raft import Raft
from models.optical_flow.sizes import estimate_resized
from tasks.errors import NothingLeftError
from tasks.frames import FrameStore
from tasks.training.augment import Augmentation, grey_table
from tasks.training.batches import flow_samples, make_batch
from tasks.training.loop import Hooks, fit

NAN = float("nan")

pytestmark = pytest.mark.usefixtures("one_thread")


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def field(u: list[list[float]], v: list[list[float]]) -> Tensor:
    return torch.tensor([[u, v]])


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """(H, W, 3) uint8 with structure at several scales."""
    rng = np.random.default_rng(seed)
    rough = rng.integers(0, 256, (height // 4 + 2, width // 4 + 2, 3)).astype(np.uint8)
    return cv2.resize(rough, (width, height), interpolation=cv2.INTER_CUBIC)


def as_tensor(*frames: np.ndarray) -> Tensor:
    return torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).float() / 255


# ---- losses


def test_end_point_error_is_the_length_of_the_difference_and_unknown_where_the_truth_is() -> None:
    error = end_point_error(field([[3, 0]], [[4, 1]]), field([[0, NAN]], [[0, NAN]]))
    assert error[0, 0, 0] == 5
    assert error[0, 0, 1].isnan()


def test_squared_error_is_the_mean_over_components_of_known_pixels() -> None:
    error = squared_error(field([[3, 9]], [[4, 9]]), field([[0, NAN]], [[0, NAN]]))
    assert error == pytest.approx((9 + 16) / 2)


@pytest.mark.parametrize("size", [(16, 24), (64, 64)])
def test_no_pairs_have_no_flow(size: tuple[int, int]) -> None:
    nothing = torch.zeros(0, 3, *size)
    assert OPTICAL_FLOW["pwc_lite"](PwcLiteConfig()).estimate(nothing, nothing).shape == (0, 2, *size)


def test_robust_error_counts_an_outlier_less() -> None:
    small = robust_error(field([[0.5]], [[0.25]]), field([[0]], [[0]]))
    assert float(small) == pytest.approx((0.75 + 0.01) ** 0.4)
    mixed = robust_error(field([[0, 100]], [[0, 0]]), field([[0, 0]], [[0, 0]]))
    assert float(mixed) == pytest.approx((0.01**0.4 + 100.01**0.4) / 2)


@pytest.mark.parametrize("penalty", [squared_error, robust_error])
def test_unknown_motion_gives_no_gradient_and_no_loss(penalty: Any) -> None:
    flow_uv = torch.zeros(1, 2, 1, 2, requires_grad=True)
    penalty(flow_uv, field([[1, NAN]], [[1, NAN]])).backward()
    assert flow_uv.grad is not None
    assert (flow_uv.grad[..., 1] == 0).all()
    assert (flow_uv.grad[..., 0] < 0).all()
    nothing = penalty(flow_uv, torch.full((1, 2, 1, 2), NAN))
    assert nothing == 0


def test_photometric_error_looks_at_visible_pixels_only() -> None:
    frame, rebuilt = torch.full((1, 3, 8, 8), 0.5), torch.full((1, 3, 8, 8), 0.5)
    rebuilt[..., 6:] = 0.9
    visible = torch.ones(1, 8, 8, dtype=torch.bool)
    assert photometric_error(frame, rebuilt, visible) > 0.01
    visible[..., 5:] = False  # SSIM's window reaches one pixel
    assert photometric_error(frame, rebuilt, visible) < 1e-6
    assert photometric_error(frame, rebuilt, torch.zeros_like(visible)) == 0


def test_photometric_error_by_hand() -> None:
    """Flat pictures 0 and 1: SSIM = C1 C2 / ((1 + C1) C2), L1 = 1."""
    black, white = torch.zeros(1, 3, 4, 4), torch.ones(1, 3, 4, 4)
    ssim = 1e-4 / (1 + 1e-4)
    error = photometric_error(black, white, torch.ones(1, 4, 4, dtype=torch.bool))
    assert float(error) == pytest.approx(0.85 * (1 - ssim) / 2 + 0.15, rel=1e-5)


def test_census_ignores_brightness_and_sees_structure() -> None:
    frame = noise(1, 3, 12, 12)
    brighter = census_distance(frame, frame + 0.1, radius=1)
    assert brighter[..., 1:-1, 1:-1].max() < 1e-6
    assert census_distance(frame, 1 - frame, radius=1).mean() > 1


def test_census_distance_by_hand() -> None:
    """One neighbour brighter by 1 of 255 in one picture alone, radius 1: its step is 1 / sqrt(1.81), the others' 0."""
    flat, dotted = torch.zeros(1, 3, 3, 3), torch.zeros(1, 3, 3, 3)
    dotted[..., 1, 2] = 1 / 255
    step = 1 / math.sqrt(1.81)
    expected = step**2 / (0.1 + step**2)
    assert float(census_distance(flat, dotted, radius=1)[0, 1, 1]) == pytest.approx(expected, rel=1e-4)


def test_census_error_leaves_out_the_border_and_what_is_hidden() -> None:
    frame, rebuilt = noise(1, 3, 9, 9), noise(1, 3, 9, 9)
    rebuilt[..., 0, :] = 0  # at row 4, the only row whose 7x7 windows are whole with radius 3, this is out of sight
    visible = torch.ones(1, 9, 9, dtype=torch.bool)
    assert float(census_error(frame, rebuilt, visible, radius=3)) > 0.01**0.4 * 1.01  # rows 3 to 5 are whole
    visible[..., 3, :] = False
    assert float(census_error(frame, rebuilt, visible, radius=3)) == pytest.approx(0.01**0.4, rel=1e-4)


def test_smoothness_by_hand_and_where_the_frame_has_an_edge() -> None:
    """u steps by 2 between columns 1 and 2 of a 2x4 field: 2 of 2*3 horizontal differences of u, 0 of v's."""
    flow_uv = field([[0, 0, 2, 2], [0, 0, 2, 2]], [[1] * 4, [1] * 4]).float()
    flat = torch.zeros(1, 3, 2, 4)
    assert float(edge_aware_smoothness(flow_uv, flat, sharpness=10)) == pytest.approx((4 / 12 + 0) / 2)
    edge = flat.clone()
    edge[..., 2:] = 0.1
    expected = (4 * math.exp(-1) / 12) / 2
    assert float(edge_aware_smoothness(flow_uv, edge, sharpness=10)) == pytest.approx(expected)


def test_visible_is_where_there_and_back_agree_within_the_frame() -> None:
    """Everything moves right by 2, but the flow back is 0 at column 3."""
    forward, backward = torch.zeros(1, 2, 2, 6), torch.zeros(1, 2, 2, 6)
    forward[:, 0], backward[:, 0] = 2, -2
    backward[..., 3] = 0
    visible = find_visible(forward, backward)
    # Column 1 lands on column 3, where the way back is another; 4 and 5 land outside.
    assert visible[0].tolist() == [[True, False, True, True, False, False]] * 2


def test_where_hardly_anything_is_visible_everything_counts() -> None:
    visible = torch.tensor([[[True, False], [False, False]], [[True, True], [True, False]]])
    assert trust_visible(visible).tolist() == [[[True, True], [True, True]], [[True, True], [True, False]]]


@pytest.mark.parametrize("name", ["squared", "robust", "photometric", "census", "smoothness"])
def test_gradients(name: str) -> None:
    truth, frame = noise(1, 2, 8, 8).double() * 3, noise(1, 3, 8, 8, seed=1).double()
    visible = torch.ones(1, 8, 8, dtype=torch.bool)
    functions: dict[str, tuple[Any, Tensor]] = {
        "squared": (lambda x: squared_error(x, truth), noise(1, 2, 8, 8, seed=2)),
        "robust": (lambda x: robust_error(x, truth), noise(1, 2, 8, 8, seed=2) - 2),
        "photometric": (lambda x: photometric_error(frame, x, visible), noise(1, 3, 8, 8, seed=2)),
        "smoothness": (lambda x: edge_aware_smoothness(x, frame, sharpness=3), noise(1, 2, 8, 8, seed=2)),
    }
    if name == "census":  # computed in float32, so finite differences are taken wide
        point = noise(1, 3, 8, 8, seed=2).requires_grad_()
        target, direction = frame.float(), noise(1, 3, 8, 8, seed=3) - 0.5
        (slope,) = torch.autograd.grad(census_error(target, point, visible, radius=2), point)
        with torch.no_grad():
            ends = [float(census_error(target, point + s * 1e-4 * direction, visible, radius=2)) for s in (1, -1)]
        assert float((slope * direction).sum()) == pytest.approx((ends[0] - ends[1]) / 2e-4, rel=0.02)
        return
    function, point = functions[name]
    assert torch.autograd.gradcheck(function, point.double().requires_grad_())


# ---- augmentation and batches


@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("flip_x", [False, True])
@pytest.mark.parametrize("flip_y", [False, True])
def test_augmented_motion_still_leads_from_frame_to_frame(transpose: bool, flip_x: bool, flip_y: bool) -> None:  # noqa: FBT001
    """A dot at (2, 1) that moves by (3, 1): after any move of the frames the field leads from dot to dot."""
    frames, flow_uv = np.zeros((2, 8, 8, 3), np.uint8), np.zeros((8, 8, 2), np.float32)
    frames[0, 1, 2], frames[1, 2, 5], flow_uv[1, 2] = 255, 255, (3, 1)
    moves = Augmentation(transpose, flip_x, flip_y, (0, 1, 2), grey_table(1, 0, invert=False))
    moved, moved_uv = moves.frames(frames), moves.optical_flow(flow_uv)
    (start,), (end,) = (np.argwhere(frame[..., 0]) for frame in moved)
    u, v = moved_uv[tuple(start)]
    assert (start + (v, u)).tolist() == end.tolist()
    assert np.count_nonzero(np.abs(moved_uv).sum(-1)) == 1


def moving_store(splits: tuple[str, ...] = ("train", "test")) -> FrameStore:
    """Pictures of 32x32 that pan by whole pixels, per clip another motion, with its true optical flow."""
    clips, fields = [], []
    for number, (u, v) in enumerate([(2, -1), (-1, 2)][: len(splits)]):
        wide = picture(64, 64, seed=number)
        clips.append(np.stack([wide[16 - v * t : 48 - v * t, 16 - u * t : 48 - u * t] for t in range(5)]))
        fields.append(np.broadcast_to(np.array([u, v], np.float16), (5, 32, 32, 2)))
    return FrameStore.from_arrays(clips, list(splits), 24.0, optical_flow=fields)


def test_batches_hold_the_motion_of_their_own_pairs() -> None:
    store = moving_store(("train", "train"))
    samples = flow_samples(store)
    assert len(samples) == 8
    make: dict[str, Any] = {"batch_size": 8, "seed": 0, "iteration": 0}
    raw = make_batch(store, samples, None, **make, augment=False, optical_flow=store.optical_flow)
    batch = raw.to(torch.device("cpu"))
    assert batch.optical_flow is not None
    assert batch.optical_flow.shape == (8, 2, 32, 32)
    for a, b, flow_uv in zip(batch.frame_a, batch.frame_b, batch.optical_flow, strict=True):
        u, v = (int(value) for value in flow_uv[:, 16, 16])
        torch.testing.assert_close(a[:, 8:24, 8:24], b[:, 8 + v : 24 + v, 8 + u : 24 + u])
    assert make_batch(store, samples, None, **make, augment=True).optical_flow is None


def test_augmented_batches_stay_consistent() -> None:
    store = moving_store(("train", "train"))
    make: dict[str, Any] = {"batch_size": 8, "seed": 3, "iteration": 0, "augment": True}
    batch = make_batch(store, flow_samples(store), None, **make, optical_flow=store.optical_flow).to(
        torch.device("cpu")
    )
    assert batch.optical_flow is not None
    motions = set()
    for a, b, flow_uv in zip(batch.frame_a, batch.frame_b, batch.optical_flow, strict=True):
        u, v = (int(value) for value in flow_uv[:, 16, 16])
        motions.add((u, v))
        torch.testing.assert_close(a[:, 8:24, 8:24], b[:, 8 + v : 24 + v, 8 + u : 24 + u])
    assert len(motions) > 2


def test_no_true_motion_is_said() -> None:
    store, _ = toy_store()
    with pytest.raises(NothingLeftError, match="dense_flow"):
        flow_samples(store)


# ---- training


@pytest.mark.parametrize(("readout", "penalty"), [("linear", "squared"), ("refined", "robust")])
def test_supervised_training_lowers_the_error_through_the_loop(readout: Any, penalty: Any) -> None:
    torch.manual_seed(0)
    model = PwcLite(PwcLiteConfig(search_range=2, readout=readout, penalty=penalty))
    lines: list[dict[str, float]] = []
    recipe = toy_recipe(iterations=30, learning_rate=5e-3, augment=True)
    fit(model, moving_store(), recipe, hooks=Hooks(on_log=lambda _, values: lines.append(values)))
    assert set(lines[0]) >= {"flow", "coarse", "mse", "total"}
    assert lines[-1]["mse"] < 0.6 * lines[0]["mse"]
    assert lines[-1]["total"] == pytest.approx(lines[-1]["flow"] + 0.1 * lines[-1]["coarse"], rel=1e-5)


def test_unsupervised_training_needs_pairs_alone_and_lowers_the_true_error() -> None:
    torch.manual_seed(0)
    model = PwcLite(PwcLiteConfig(objective="unsupervised", search_range=2))
    store = moving_store()
    store.optical_flow = None
    fit(model, store, toy_recipe(iterations=40, learning_rate=3e-3, batch_size=4))
    clip = store.clips[0]
    frames = as_tensor(*store.clip_frames(clip))
    with torch.no_grad():
        flow_uv = model.eval().estimate(frames[:-1], frames[1:])
    error = end_point_error(flow_uv, torch.tensor([2.0, -1.0]).view(1, 2, 1, 1).expand_as(flow_uv))
    assert float(error.mean()) < 0.5  # at rest it is the motion's length, 2.2


@pytest.mark.parametrize("occlusion", [False, True])
def test_hidden_pixels_count_only_where_occlusion_is_off(occlusion: bool) -> None:  # noqa: FBT001
    """A quarter of the frame is covered in the other one; with the true motion known, all of the error is there."""
    model = PwcLite(PwcLiteConfig(objective="unsupervised", occlusion=occlusion))
    frame, other = noise(1, 3, 16, 16), noise(1, 3, 16, 16)
    other[..., :8, :8] = 0
    still, back = torch.zeros(1, 2, 16, 16), torch.zeros(1, 2, 16, 16)
    back[..., :11, :11] = 5  # what covers came from elsewhere; windows of 7x7 reach 3 pixels further
    error, _, visible = model._explain(frame, other, still, back)
    assert float(visible) == (1 - 11 * 11 / 256 if occlusion else 1)
    assert (float(error) < 0.01**0.4 * 1.001) == occlusion


def test_a_crop_is_one_window_of_frames_and_motion() -> None:
    y, x = torch.meshgrid(torch.arange(24.0), torch.arange(40.0), indexing="ij")
    place = torch.stack((x, y, 0 * x))[None]
    batch = Batch(place, place + 1, torch.ones(1), None, place[:, :2])
    torch.manual_seed(1)
    cropped = crop_batch(batch, 20)
    assert cropped.frame_a.shape == (1, 3, 16, 16)  # 20 is no multiple of 8
    assert cropped.optical_flow is not None
    torch.testing.assert_close(cropped.frame_a[:, :2], cropped.optical_flow)
    torch.testing.assert_close(cropped.frame_b, cropped.frame_a + 1)
    assert not torch.equal(cropped.frame_a, crop_batch(batch, 20).frame_a)
    for side, shape in ((0, (24, 40)), (32, (24, 32)), (64, (24, 40))):
        assert crop_batch(batch, side).frame_a.shape[2:] == shape


def test_every_parameter_learns() -> None:
    torch.manual_seed(0)
    model = PwcLite(PwcLiteConfig(search_range=2))
    frames = noise(1, 3, 32, 32), noise(1, 3, 32, 32, seed=1)
    model.loss(Batch(*frames, torch.ones(1), None, torch.ones(1, 2, 32, 32)))["total"].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_what_has_nothing_to_train_is_refused() -> None:
    with pytest.raises(ValueError, match="Dis has nothing to train"):
        fit(OPTICAL_FLOW["dis"](DisConfig()), moving_store(), toy_recipe())


# ---- estimators


def test_dis_finds_a_pan() -> None:
    wide = picture(80, 96)
    a, b = as_tensor(wide[8:72, 8:72]), as_tensor(wide[9:73, 5:69])  # what was at x is now at x + (3, -1)
    flow_uv = OPTICAL_FLOW["dis"](DisConfig()).estimate(a, b)
    assert flow_uv.shape == (1, 2, 64, 64)
    assert flow_uv.dtype == torch.float32
    assert flow_uv[0, :, 12:-12, 12:-12].mean((1, 2)).tolist() == pytest.approx([3, -1], abs=0.1)
    nothing = torch.zeros(0, 3, 64, 64)
    assert OPTICAL_FLOW["dis"](DisConfig()).estimate(nothing, nothing).shape == (0, 2, 64, 64)


def test_pwc_lite_takes_frames_of_any_size() -> None:
    torch.manual_seed(0)
    model = OPTICAL_FLOW["pwc_lite"](PwcLiteConfig(search_range=2)).eval()
    for size in ((32, 40), (37, 21), (5, 9)):
        with torch.no_grad():
            flow_uv = model.estimate(noise(2, 3, *size), noise(2, 3, *size, seed=1))
        assert flow_uv.shape == (2, 2, *size)
        assert flow_uv.dtype == torch.float32


def test_motion_found_on_resized_frames_is_in_the_frames_own_pixels() -> None:
    def two_right_four_down(frames_a: Tensor, frames_b: Tensor) -> Tensor:
        assert frames_a.shape == frames_b.shape == (1, 3, 32, 16)
        return torch.tensor([2.0, 4.0]).view(1, 2, 1, 1).expand(1, 2, 32, 16)

    flow_uv = estimate_resized(two_right_four_down, noise(1, 3, 20, 8), noise(1, 3, 20, 8), multiple=16, least=16)
    torch.testing.assert_close(flow_uv, torch.tensor([1.0, 2.5]).view(1, 2, 1, 1).expand(1, 2, 20, 8))


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_raft_reads_a_local_file(tmp_path: Path, suffix: str) -> None:
    torch.manual_seed(0)
    network = raft_small(weights=None)
    path = tmp_path / f"raft{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(network.state_dict(), path)
    model = OPTICAL_FLOW["raft"](RaftConfig(weights=str(path), updates=2))
    assert isinstance(model, Raft)
    torch.testing.assert_close(model.network.state_dict()["feature_encoder.conv.weight"],
                               network.state_dict()["feature_encoder.conv.weight"])  # fmt: skip
    flow_uv = model.estimate(noise(1, 3, 40, 130), noise(1, 3, 40, 130, seed=1))
    assert flow_uv.shape == (1, 2, 40, 130)
    assert not any(p.requires_grad for p in model.parameters())


def test_raft_of_a_missing_or_wrong_file_is_one_clear_line(tmp_path: Path) -> None:
    broken, other, listed = tmp_path / "broken.pt", tmp_path / "other.safetensors", tmp_path / "list.pt"
    torn = tmp_path / "torn.safetensors"
    broken.write_bytes(b"not weights")
    torn.write_bytes(b"not weights at all")
    save_file({"weight": torch.zeros(2)}, other)
    torch.save([1, 2], listed)
    cases = {tmp_path / "none.pt": "no weight file", broken: "cannot be read", torn: "cannot be read",
             other: "does not fit RAFT small", listed: "is no state"}  # fmt: skip
    for path, reason in cases.items():
        with pytest.raises(ValueError, match=reason) as caught:
            OPTICAL_FLOW["raft"](RaftConfig(weights=str(path)))
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_settings_out_of_range_are_refused() -> None:
    for config, changes in (
        (PwcLiteConfig, {"search_range": 0}), (PwcLiteConfig, {"smoothness": -1.0}), (DisConfig, {"enlarge": 0.0}),
        (RaftConfig, {"weights": "x", "updates": 0}),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=list(changes)[-1]):
            config(**changes)
