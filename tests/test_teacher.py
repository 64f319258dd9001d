"""A teacher adds what it is sure of, what lasts and what moves; a broken one is refused before any work."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from models.common.instances import Instances
from tasks.errors import ParamsError
from tasks.frames import FrameStore
from tasks.labels import LabelStore
from tasks.training.teacher import Trust, find_trusted, open_teacher, teach
from tests.registered_toy import write_outputs

SIDE, SQUARE, FRAMES = 64, 16, 8
TRUST = Trust(min_score=0.5, min_photometric_gain=0.3, min_temporal_iou=0.5)
Box = tuple[int, int]


def texture(seed: int, side: int) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(0, 256, (side, side, 3)).astype(np.uint8)
    return cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 2), None, 0, 255, cv2.NORM_MINMAX)


def column_of(number: int) -> int:
    """It moves to the right by 3 pixels in each of the first frames, and stands still from then on."""
    return 10 + 3 * min(number, 4)


def clip() -> np.ndarray:
    frames = np.stack([texture(0, SIDE)] * FRAMES)
    for number, frame in enumerate(frames):
        frame[20 : 20 + SQUARE, column_of(number) : column_of(number) + SQUARE] = texture(1, SQUARE)
    return frames


def squares(*corners: Box, score: float = 0.9) -> Instances:
    """At these (row, column)."""
    masks = torch.zeros(len(corners), SIDE, SIDE, dtype=torch.bool)
    for mask, (row, column) in zip(masks, corners, strict=True):
        mask[row : row + SQUARE, column : column + SQUARE] = True
    if not corners:
        return Instances.empty(SIDE, SIDE)
    return Instances.from_masks(masks, torch.full((len(corners),), score))


class Seer:
    """Finds in the n-th frame what `say(n)` says, as a predictor does: what is below the threshold is left out."""

    def __init__(self, say: Callable[[int], Instances]) -> None:
        self.say = say
        self.seen = 0

    def __call__(self, frames: Sequence[np.ndarray], score_threshold: float | None) -> list[Instances]:
        found = [self.say(self.seen + offset) for offset in range(len(frames))]
        self.seen += len(frames)
        return [one[one.scores >= (score_threshold or 0)] for one in found]


def rows_trusted(say: Callable[[int], Instances], trust: Trust = TRUST) -> list[int]:
    return find_trusted(Seer(say), clip(), trust).rows.tolist()


def test_what_moves_is_believed_where_it_stands_still_too() -> None:
    assert rows_trusted(lambda number: squares((20, column_of(number)))) == list(range(FRAMES))
    # Seen only while it stands still it might be a piece of the background.
    assert rows_trusted(lambda number: squares((20, column_of(number))) if number > 4 else squares()) == []


def test_background_flicker_and_doubt_are_not_believed() -> None:
    assert rows_trusted(lambda number: squares((44, 40))) == []
    assert rows_trusted(lambda number: squares((44, 40)), Trust(0.5, -1.0, 0.5)) == list(range(FRAMES))
    flicker = [(20, 16), (44, 40), (0, 0), (20, 19), (44, 2), (0, 40), (20, 19), (2, 20)]
    assert rows_trusted(lambda number: squares(flicker[number])) == []
    assert rows_trusted(lambda number: squares((20, column_of(number)), score=0.4)) == []


def test_nothing_found_and_one_frame_give_nothing() -> None:
    assert rows_trusted(lambda number: squares()) == []
    assert find_trusted(Seer(lambda number: squares((20, 10))), clip()[:1], Trust(0, -1, 0)).count == 0


def test_labels_stay_and_only_the_train_split_is_taught() -> None:
    store = FrameStore.from_arrays([clip(), clip()], ["val", "train"], 24.0)
    first = store.clips[1].first_row
    # The labeller has the square while it moves, and something else in a frame where the teacher finds nothing.
    items = [(first + number, squares((20, column_of(number)), score=0.4)) for number in range(1, 4)]
    labels = LabelStore.from_items((SIDE, SIDE), items)
    seer = Seer(lambda number: squares((20, column_of(number))) if number < 7 else squares())
    taught = dict(teach(seer, store, labels, TRUST))
    assert seer.seen == FRAMES
    assert [row - first for row in taught] == [0, 1, 2, 3, 4, 5, 6]
    confidences = [round(float(one.scores[0]), 3) for one in taught.values()]
    assert confidences == [0.9, 0.4, 0.4, 0.4, 0.9, 0.9, 0.9]
    assert all(len(one) == 1 for one in taught.values())


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    write_outputs(folder)
    (folder / "outputs" / "train").rename(folder / "teacher")
    return folder


def test_a_teacher_is_known_by_its_content(made: Path) -> None:
    teacher = open_teacher("teacher", made, "cpu")
    assert len(teacher.predict([texture(0, SIDE)], 0.0)) == 1
    assert open_teacher("./teacher", made, "cpu").digest == teacher.digest
    settings = made / "teacher" / "params.resolved.yaml"
    settings.write_text(settings.read_text() + "\n# another")
    assert open_teacher("teacher", made, "cpu").digest != teacher.digest


@pytest.mark.parametrize("folder", ["nothing", "/etc", "../made", "a\0b", "a/../..", "x" * 1000, "\udcff"])
def test_a_folder_elsewhere_or_nowhere_is_refused(made: Path, folder: str) -> None:
    with pytest.raises(ParamsError, match=r"^train\.teacher: ") as caught:
        open_teacher(folder, made, "cpu")
    assert "\n" not in str(caught.value)


def test_a_teacher_that_lies_elsewhere_is_none(made: Path) -> None:
    """A workspace's settings may come from others: they name nothing outside of it."""
    for folder in (str(made / "teacher"), f"../{made.name}/teacher"):
        assert (made / folder / "weights.safetensors").is_file()
        with pytest.raises(ParamsError, match=r"^train\.teacher: .*within the workspace"):
            open_teacher(folder, made, "cpu")


@pytest.mark.parametrize(("name", "size"), [("weights.safetensors", 4 * 2**30), ("params.resolved.yaml", 2**20)])
def test_a_teacher_too_large_to_be_one_is_not_read(tmp_path: Path, name: str, size: int) -> None:
    write_outputs(tmp_path)
    os.truncate(tmp_path / "outputs" / "train" / name, size + 1)  # a hole, which takes no room
    with pytest.raises(ParamsError, match=rf"^train\.teacher: .*no {name} of at most {size} bytes"):
        open_teacher("outputs/train", tmp_path, "cpu")


class Boom:
    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.mkdir, ("unpickled",)


def break_teacher(folder: Path, how: str) -> None:
    weights, settings = folder / "weights.safetensors", folder / "params.resolved.yaml"
    if how == "pickle":
        weights.write_bytes(pickle.dumps(Boom()))
    elif how == "cut":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif how == "other network":
        settings.write_text(settings.read_text().replace("preset: small", "preset: yolov3"))
    elif how == "python in yaml":
        settings.write_text("!!python/object/apply:os.mkdir [unpickled]")
    elif how == "huge yaml":
        settings.write_text("a: " + "b" * 2**21)
    elif how == "huge size":
        settings.write_text(settings.read_text().replace("- 64", "- 64000000"))
    elif how == "fifo":
        weights.unlink()
        os.mkfifo(weights)
    elif how == "folder":
        settings.unlink()
        settings.mkdir()


@pytest.mark.parametrize(
    "how", ["pickle", "cut", "other network", "python in yaml", "huge yaml", "huge size", "fifo", "folder"]
)
def test_a_hostile_teacher_is_one_line(tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_outputs(tmp_path)
    break_teacher(tmp_path / "outputs" / "train", how)
    with pytest.raises(ParamsError, match=r"^train\.teacher: ") as caught:
        open_teacher("outputs/train", tmp_path, "cpu")
    assert "train stage" not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "unpickled").exists()
