"""AMD: the choice of channels by hand, motion pooled and rebuilt, gradients, the loader and the stages."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny_synthetic
from torch import Tensor

import models
from models.amd.appearance import AppearanceNetwork
from models.amd.channels import ChannelRecord, choose_channels, find_instances, split_pieces
from models.amd.config import AmdConfig
from models.amd.model import Amd
from models.common.instances import Instances
from models.interface import Batch
from models.mosis.fusion import segment_flow
from tasks import evaluate, ingest, pairs, train
from tasks import params as parameters
from tasks.files import read_json

SIZE = (64, 64)
RULE = {"min_coverage": 0.01, "min_contrast": 0.5}

pytestmark = pytest.mark.usefixtures("one_thread")


def build(**settings: object) -> Amd:
    torch.manual_seed(0)
    return Amd(AmdConfig(**settings), SIZE)


def a_batch(seed: int = 0) -> Batch:
    a, b = torch.rand(2, 2, 3, *SIZE, generator=torch.Generator().manual_seed(seed))
    return Batch(a, b, torch.zeros(2))


def winners_of(text: str) -> np.ndarray:
    """A picture of digits, one a pixel: its channel."""
    return np.array([[int(digit) for digit in line] for line in text.split()])


def masks_of(winners: np.ndarray, channels: int, probability: float) -> Tensor:
    """(C, H, W): each pixel's channel has `probability`, the others share the rest."""
    one_hot = torch.nn.functional.one_hot(torch.from_numpy(winners), channels).permute(2, 0, 1).float()
    return one_hot * probability + (1 - one_hot) * (1 - probability) / (channels - 1)


@pytest.mark.parametrize(
    ("coverage", "contrast", "expected"),
    [
        ([0.9, 0.1, 0.0], [0.0, 2.0, 3.0], [False, True, False]),  # an empty channel's motion means nothing
        ([0.1, 0.5, 0.4], [2.0, 0.0, 0.1], [True, False, False]),  # a second channel of the background moves with it
        ([0.8, 0.1, 0.1], [0.0, 0.9, 0.6], [False, True, True]),
        ([1.0, 0.0, 0.0], [0.0, 0.0, 0.0], [False, False, False]),  # collapsed
        ([0.6, 0.4, 0.0], [9.0, 0.1, 0.0], [False, False, False]),  # the largest never, whatever it does
    ],
)
def test_the_choice_of_channels(coverage: list[float], contrast: list[float], expected: list[bool]) -> None:
    found = choose_channels(torch.tensor(coverage), torch.tensor(contrast), **RULE)
    assert found.tolist() == expected


def test_permuting_channels_permutes_the_choice() -> None:
    order = torch.tensor([2, 0, 1])
    coverage, contrast = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.0, 0.7, 0.2])
    found = choose_channels(coverage, contrast, **RULE)
    assert torch.equal(choose_channels(coverage[order], contrast[order], **RULE), found[order])


def test_the_record_is_a_mean_at_first_and_forgets_later() -> None:
    record = ChannelRecord(2)
    masks = masks_of(winners_of("0001 0001"), 2, 0.9)[None]
    motions = torch.tensor([[[1.0, 0.0], [4.0, 4.0]]])
    record.update(masks, motions)
    assert record.coverage.tolist() == [0.75, 0.25]
    assert record.contrast.tolist() == [0.0, 5.0]
    record.update(masks, motions * 0)  # nothing moves
    assert record.contrast.tolist() == [0.0, 2.5]
    for _ in range(1000):
        record.update(masks, motions * 0)
    assert record.contrast[1].item() < 1e-3


def test_pieces_are_connected_by_sides_and_of_a_size() -> None:
    winners = winners_of("11000 11000 00100 00001")
    pieces = split_pieces(winners, 1, min_pixels=0)
    assert [int(piece.sum()) for piece in pieces] == [4, 1, 1]  # a corner does not connect
    assert [int(piece.sum()) for piece in split_pieces(winners, 1, min_pixels=2)] == [4]
    assert split_pieces(winners, 3, min_pixels=0).shape == (0, 4, 5)


def test_instances_are_the_pieces_of_chosen_channels_best_first() -> None:
    winners = winners_of("1100 1100 0022 0022")
    masks = masks_of(winners, 3, 0.6)
    masks[:, 2:, 2:] = masks_of(winners, 3, 0.8)[:, 2:, 2:]
    found = find_instances(masks, torch.tensor([False, True, True]), min_area=0.0)
    assert found.boxes.tolist() == [[2, 2, 4, 4], [0, 0, 2, 2]]
    assert found.scores.tolist() == pytest.approx([0.8, 0.6])
    assert len(find_instances(masks, torch.tensor([False, False, False]), min_area=0.0)) == 0
    assert len(find_instances(masks, torch.tensor([False, True, True]), min_area=0.5)) == 0


@pytest.mark.parametrize("preset", ["small", "resnet50"])
def test_masks_share_every_pixel(preset: str) -> None:
    torch.manual_seed(0)
    logits = AppearanceNetwork(preset, 5)(torch.rand(2, 3, *SIZE))
    assert logits.shape == (2, 5, *SIZE)
    model = build(channels=3)
    masks = model.masks(torch.rand(2, 3, *SIZE))
    assert masks.shape == (2, 3, *SIZE)
    assert torch.allclose(masks.sum(1), torch.ones(2, *SIZE), atol=1e-5)


def silence(model: Amd) -> None:
    """Let the MLP say nothing, so that motions are the pooled estimate alone."""
    with torch.no_grad():
        for parameter in model.segment_motion.parameters():
            parameter.zero_()


def test_a_channels_motion_is_the_mean_estimate_under_its_mask() -> None:
    model = build(readout="flow", channels=2, motion_stride=2)
    silence(model)
    features = torch.zeros(1, model.motion.channels, 2, 2)
    features[0, -2] = torch.tensor([[1.0, 3.0], [1.0, 1.0]])  # u in pixels of the shrunk frame
    half = torch.zeros(1, 4, 4)
    half[:, :2, :2], half[:, :2, 2:] = 1.0, 1.0  # the upper half
    masks = torch.stack((half, 1 - half), dim=1)
    assert model.motions(masks, features)[0].tolist() == [pytest.approx([4.0, 0.0]), pytest.approx([2.0, 0.0])]


def test_true_motion_rebuilds_the_frame_and_wrong_motion_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(readout="flow", motion_stride=1)
    silence(model)
    wide = torch.rand(1, 3, SIZE[0], SIZE[1] + 2, generator=torch.Generator().manual_seed(2))
    batch = Batch(wide[..., 2:], wide[..., :-2], torch.zeros(1))  # what is at x in a is at x + 2 in b

    def photo(u: float) -> float:
        features = torch.zeros(1, model.motion.channels, *SIZE)
        features[:, -2] = u
        monkeypatch.setattr(model, "features", lambda a, b: features)
        return model.loss(batch)["photo"].item()

    assert photo(2.0) < 0.02  # the two columns that left the frame
    assert photo(-2.0) > 0.2


def test_l1_by_hand() -> None:
    grey = torch.full((1, 3, *SIZE), 0.2)
    losses = build(photometric="l1").loss(Batch(grey, grey + 0.3, torch.zeros(1)))
    assert losses["photo"].item() == pytest.approx(0.3, abs=1e-5)
    assert losses["total"].item() == pytest.approx(0.3, abs=1e-5)
    assert losses["dense"].item() == 0  # neither computed nor learnt where it does not count
    weighted = build(photometric="l1", dense_weight=0.5).loss(Batch(grey, grey + 0.3, torch.zeros(1)))
    assert weighted["total"].item() == pytest.approx(0.45, abs=1e-5)


@pytest.mark.parametrize("photometric", ["l1", "ssim"])
@pytest.mark.parametrize("direction", ["literal", "consistent"])
def test_gradients_of_the_loss_to_the_masks_and_motions(photometric: str, direction: str) -> None:
    model, generator = build(photometric=photometric, warp_direction=direction), torch.Generator().manual_seed(0)
    frames = [torch.rand(1, 2, 5, 6, generator=generator, dtype=torch.float64) for _ in range(2)]
    masks = torch.rand(1, 3, 5, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    motions = torch.rand(1, 3, 2, generator=generator, dtype=torch.float64, requires_grad=True)

    def loss(masks: Tensor, motions: Tensor) -> Tensor:
        return model._compare(*frames, segment_flow(masks.softmax(1), motions))

    assert torch.autograd.gradcheck(loss, (masks, motions))


def test_every_network_gets_a_gradient() -> None:
    model = build()
    model.loss(a_batch())["total"].backward()
    for part in (model.appearance.output, model.appearance.backbone, model.motion, model.segment_motion):
        gradients = [p.grad for p in part.parameters() if p.grad is not None]
        assert gradients
        assert all(torch.isfinite(gradient).all() for gradient in gradients)
        assert any(gradient.abs().sum() > 0 for gradient in gradients)


def test_permuting_the_channels_changes_no_loss() -> None:
    model = build().eval()
    before = model.loss(a_batch())["photo"].item()
    order = torch.tensor([3, 1, 4, 0, 2])
    with torch.no_grad():
        model.appearance.output.weight.copy_(model.appearance.output.weight[order].clone())
        assert model.appearance.output.bias is not None
        model.appearance.output.bias.copy_(model.appearance.output.bias[order].clone())
    assert model.loss(a_batch())["photo"].item() == pytest.approx(before, rel=1e-5)


def test_only_training_writes_the_record() -> None:
    model = build()
    model.eval()
    model.loss(a_batch())
    assert model.record.batches.item() == 0
    assert not model.chosen_channels().any()
    assert len(model.predict(torch.rand(1, 3, *SIZE), score_threshold=0.0)[0]) == 0
    model.train()
    model.loss(a_batch())
    assert model.record.batches.item() == 1


def test_predictions_are_of_the_size_and_score_that_was_asked_for() -> None:
    model = build(channels=2, min_area=0.0).eval()
    model.record.coverage.copy_(torch.tensor([0.9, 0.1]))
    model.record.contrast.copy_(torch.tensor([0.0, 1.0]))
    images = torch.rand(2, 3, *SIZE, generator=torch.Generator().manual_seed(4))
    found = model.predict(images, score_threshold=0.0, output_size=(96, 128))
    assert [one.size for one in found] == [(96, 128)] * 2
    assert sum(map(len, found)) > 0
    assert sum(map(len, model.predict(images, score_threshold=1.0))) == 0
    assert model.predict(images[:0]) == []


@pytest.mark.parametrize("method", ["yolo_supervised", "amd"])
def test_the_registered_models_loader_builds_the_method(method: str) -> None:
    from tasks.pyfunc_model import build_model, import_snapshot

    settings = parameters.to_dict(parameters.parse({"train": {"method": method}}).train)
    package = import_snapshot(Path(models.__file__).parent)
    loaded = build_model(package, settings, SIZE)
    own = models.METHODS[method](getattr(parameters.TrainParams(), method), SIZE)
    loaded.load_state_dict(own.state_dict(), strict=True)
    image = torch.rand(1, 3, *SIZE)
    expected, found = (one.eval().predict(image, score_threshold=0.0)[0] for one in (own, loaded))
    assert torch.equal(expected.masks, found.masks)


def test_the_stages_train_and_score_amd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOSIS_TRACKING", "off")
    document = tiny_synthetic(videos=4, frames=6)
    document["pairs"] |= {"workers": 1, "train_share": 0.5, "val_share": 0.25}
    document["train"] = {
        "method": "amd", "iterations": 2, "batch_size": 2, "warmup_iterations": 1, "validation_images": 2,
    }  # fmt: skip
    params = parameters.parse(document)
    for stage in (ingest, pairs, train, evaluate):
        stage.run(params, tmp_path)
    summary = read_json(tmp_path / "outputs" / "train" / "summary.json")
    assert (summary["method"], summary["labels"]) == ("amd", None)
    assert read_json(tmp_path / "outputs" / "evaluate" / "metrics.json")["images"] > 0


def test_the_oracle_gives_every_object_a_channel_of_its_own() -> None:
    from benchmarks.amd import best_iou, match_channels

    truth = Instances.from_masks(torch.from_numpy(np.stack([winners_of("1100 1100") > 0, winners_of("0011 0000") > 0])))
    masks = torch.from_numpy(np.stack([winners_of("1111 1100") > 0, winners_of("1100 1000") > 0]))
    # Both objects lie in channel 0: 4 of its 6 pixels and 2 of them. Apart, the objects get 3/4 and 2/6.
    found, ious = match_channels(masks, truth)
    assert ious.tolist() == pytest.approx([3 / 4, 2 / 6])
    assert sorted(found.scores.tolist()) == pytest.approx([2 / 6, 3 / 4])
    one_channel, left = match_channels(masks[:1], truth)
    assert (len(one_channel), left.tolist()) == (1, pytest.approx([4 / 6, 0.0]))
    assert best_iou([Instances.from_masks(masks)], [truth]) == pytest.approx((3 / 4 + 2 / 6) / 2)
    assert best_iou([Instances.empty(2, 4)], [truth]) == 0


def test_settings_are_checked() -> None:
    for name, value in (("channels", 1), ("motion_stride", 3), ("min_area", 2.0), ("min_contrast", -1.0)):
        with pytest.raises(ValueError, match=name):
            AmdConfig(**{name: value})
    with pytest.raises(ValueError, match="multiples of 32"):
        Amd(AmdConfig(), (64, 48))
