"""Weights and resolved parameters to a function of frames, and what broken ones say."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from clip_toy import find_orange, make_clip
from conftest import moving_square
from safetensors.torch import save_file
from torch import Tensor

import models
from models.common.instances import Instances
from models.interface import Segmenter
from tasks import params as parameters
from tasks.clips import ClipReader
from tasks.errors import DataError, ParamsError
from tasks.precision import choose_device
from tasks.predict import Predictor, predict_frames, shared_cores
from tasks.pyfunc_model import Snapshot

SIZE = (64, 96)
# An untrained network is sure of nothing: without this all its masks are empty.
UNTRAINED = {"train": {"mosis": {"mask_threshold": 0.2}}}


class BrightSegmenter(Segmenter):
    """Finds what is brighter than one half, with its mean brightness as the score."""

    def predict(
        self, images: Tensor, *, score_threshold: float | None = None, output_size: tuple[int, int] | None = None
    ) -> list[Instances]:
        self.seen = images
        threshold = 0.6 if score_threshold is None else score_threshold
        big = torch.nn.functional.interpolate(images, output_size or images.shape[-2:]).mean(1)
        found = [Instances.from_masks(image[None] > 0.5, image.max()[None]) for image in big]
        return [instances[instances.scores >= threshold] for instances in found]


def half_bright(height: int, width: int, level: int = 255) -> np.ndarray:
    frame = np.zeros((height, width, 3), np.uint8)
    frame[:, width // 2 :] = level
    return frame


def test_each_frame_is_answered_in_its_own_pixels_and_in_order() -> None:
    model = BrightSegmenter()
    frames = [half_bright(32, 32), half_bright(20, 64), half_bright(32, 32, level=200)]
    found = Predictor(model, SIZE)(frames)
    assert [f.size for f in found] == [(32, 32), (20, 64), (32, 32)]
    assert found[1].boxes.tolist() == [[32, 0, 64, 20]]
    assert found[2].scores.tolist() == pytest.approx([200 / 255])
    assert model.seen.shape[-2:] == SIZE


def test_threshold_is_the_methods_own_unless_given() -> None:
    predictor = Predictor(BrightSegmenter(), SIZE)
    dim = half_bright(16, 16, level=140)
    assert [len(f) for f in predictor([dim])] == [0]
    assert [len(f) for f in predictor([dim], 0.5)] == [1]


def test_frames_of_a_clip_come_in_order_and_large_ones_in_smaller_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = moving_square(7)
    clip = make_clip(tmp_path, "a", frames)
    batches: list[int] = []

    def predict(frames: Sequence[np.ndarray], threshold: float | None) -> list[Instances]:
        batches.append(len(frames))
        return find_orange(frames, threshold)

    def walk(indices: Sequence[int]) -> list[tuple[int, float]]:
        batches.clear()
        with ClipReader(clip.path) as reader:
            found = list(predict_frames(predict, reader, indices, batch_size=3, score_threshold=0.5))
            for index, frame, _ in found:
                assert np.array_equal(frame, reader.frame(index))
        return [(index, float(instances.boxes[0, 0])) for index, _, instances in found]

    assert [index for index, _ in walk(range(7))] == list(range(7))
    assert batches == [3, 3, 1]
    assert [(index, round(left)) for index, left in walk([1, 2, 5, 6])] == [(1, 2), (2, 4), (5, 10), (6, 12)]
    assert walk([]) == []
    monkeypatch.setattr("tasks.predict.PIXELS_AT_ONCE", 2 * 48 * 64)
    assert len(walk(range(7))) == 7
    assert batches == [2, 2, 2, 1]


def test_an_error_while_decoding_ahead_reaches_the_caller(tmp_path: Path) -> None:
    clip = make_clip(tmp_path, "a", moving_square(4))
    with ClipReader(clip.path) as reader, pytest.raises(IndexError):
        list(predict_frames(find_orange, reader, [0, 9], batch_size=1))


def test_half_the_cores_are_left_and_given_back() -> None:
    before = torch.get_num_threads()
    with shared_cores():
        assert torch.get_num_threads() == max(1, before // 2)
    assert torch.get_num_threads() == before


def test_no_frames_give_no_answers() -> None:
    assert Predictor(BrightSegmenter(), SIZE)([]) == []


def write_weights(folder: Path, **changes: Any) -> tuple[Path, Path]:
    """An untrained small network as the train stage leaves it; `changes` go into the resolved document."""
    params = parameters.parse(UNTRAINED)
    torch.manual_seed(0)
    model = models.METHODS["mosis"](params.train.mosis, SIZE)
    weights, resolved = folder / "weights.safetensors", folder / "params.resolved.yaml"
    save_file(model.state_dict(), weights)
    document = {"format": 1, "size": list(SIZE), "params": parameters.to_dict(params), **changes}
    resolved.write_text(yaml.safe_dump(document))
    return weights, resolved


def test_loaded_weights_predict_as_the_model_did(tmp_path: Path) -> None:
    weights, resolved = write_weights(tmp_path)
    predictor = Predictor.load(weights, resolved, device="cpu")
    frame = np.random.default_rng(0).integers(0, 256, (*SIZE, 3)).astype(np.uint8)
    (found,) = predictor([frame], 0.0)
    torch.manual_seed(0)
    model = models.METHODS["mosis"](parameters.parse(UNTRAINED).train.mosis, SIZE).eval()
    (expected,) = model.predict(torch.from_numpy(frame).permute(2, 0, 1)[None] / 255, score_threshold=0.0)
    assert len(found) > 0
    assert found.scores.tolist() == pytest.approx(expected.scores.tolist(), abs=1e-5)
    (wide,) = predictor([frame.repeat(2, axis=1)], 0.0)
    assert wide.size == (SIZE[0], 2 * SIZE[1])


@pytest.mark.parametrize("registered", [False, True])
@pytest.mark.parametrize(("precision", "reduced"), [("auto", False), ("float32", False), ("bfloat16", True)])
def test_a_model_computes_in_the_precision_of_its_training(
    tmp_path: Path, precision: str, *, registered: bool, reduced: bool
) -> None:
    params = parameters.to_dict(parameters.parse({"train": {**UNTRAINED["train"], "precision": precision}}))
    weights, resolved = write_weights(tmp_path, params=params)
    seen: list[bool] = []

    def predict(images: Tensor, **_: Any) -> list[Instances]:
        seen.append(torch.is_autocast_enabled("cpu"))
        return [Instances.empty(*SIZE)] * len(images)

    frame = half_bright(*SIZE)
    if registered:
        snapshot = Snapshot(weights, resolved, Path(models.__file__).parent, "cpu")
        snapshot.model.predict = predict
        snapshot(frame[None], None)
    else:
        predictor = Predictor.load(weights, resolved, device="cpu")
        predictor.model.predict = predict  # type: ignore[method-assign]
        predictor([frame])
    assert seen == [reduced]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, "not of format 1"),
        ({"size": [64]}, "size must be"),
        ({"size": [64, 10**9]}, "size must be"),
        ({"size": [64, True]}, "size must be"),
        ({"size": [65, 96]}, "multiples of 32"),
        ({"params": {"trian": {}}}, "unknown key trian"),
        ({"params": None}, "expected a mapping"),
    ],
)
def test_a_broken_resolved_file_is_refused_in_one_line(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    weights, resolved = write_weights(tmp_path, **changes)
    with pytest.raises(DataError, match=message) as caught:
        Predictor.load(weights, resolved)
    assert "\n" not in str(caught.value)


def test_missing_torn_and_foreign_weights_are_refused_in_one_line(tmp_path: Path) -> None:
    weights, resolved = write_weights(tmp_path)
    good = weights.read_bytes()
    with pytest.raises(DataError, match="not readable weights"):
        Predictor.load(tmp_path / "absent", resolved)
    for torn in (b"", good[:1000], b"\xff" * 100):
        weights.write_bytes(torn)
        with pytest.raises(DataError, match="not readable weights"):
            Predictor.load(weights, resolved)
    save_file({"other": torch.zeros(1)}, weights)
    with pytest.raises(DataError, match="does not fit") as caught:
        Predictor.load(weights, resolved)
    assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="not readable"):
        Predictor.load(weights, tmp_path / "absent.yaml")


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")
def test_asking_for_a_gpu_that_is_not_there() -> None:
    assert choose_device("auto").type == "cpu"
    with pytest.raises(ParamsError, match="cuda"):
        choose_device("cuda")
