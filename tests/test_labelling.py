"""Labels of the train clips from motion: those of finished clips survive, those of broken ones are named."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny_training

from models.common.instances import Instances
from tasks import params as parameters
from tasks import train
from tasks.errors import MosisError, NothingLeftError
from tasks.frames import FrameStore
from tasks.params import Params
from tasks.pool import DIED, Outcome, WorkerDied
from tasks.training import labelling

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def workspace(prepared_workspace: Path) -> Path:
    return prepared_workspace


def tiny_params(**changes: Any) -> Params:
    return parameters.parse(tiny_training(**changes))


def label(workspace: Path, folder: Path) -> labelling.Labels:
    pairs = workspace / "data" / "pairs"
    store = FrameStore.open(pairs)
    return labelling.label_train_clips(pairs, store, tiny_params().train.motion_labels, folder, workers=1)


def one_square(frames: np.ndarray, config: Any) -> list[Instances]:
    """Stands for the labeller: a square of a size that tells the clips apart, in every other frame."""
    mask = torch.zeros(1, *frames.shape[1:3], dtype=torch.bool)
    mask[0, : 1 + int(frames[0, 0, 0, 0]) % 50, :3] = True
    empty = Instances.empty(*frames.shape[1:3])
    return [Instances.from_masks(mask) if index % 2 else empty for index in range(len(frames))]


def test_labels_lie_at_the_rows_of_their_frames(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labelling, "label_clip", one_square)
    made = label(workspace, workspace / "labels-a")
    store = FrameStore.open(workspace / "data" / "pairs")
    clips = [clip for clip in store.clips if clip.split == "train"]
    assert made.store.rows.tolist() == [c.first_row + i for c in clips for i in range(1, c.frames, 2)]
    for clip in clips:
        expected = one_square(store.clip_frames(clip), None)[1]
        assert torch.equal(made.store[clip.first_row + 1].masks, expected.masks)
    assert (made.images, made.reused) == (made.store.count, False)
    assert not (workspace / "labels-a.parts").exists()
    assert label(workspace, workspace / "labels-a").reused


def test_a_labeller_reads_its_own_clip_alone(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labelling, "label_clip", one_square)
    pairs = workspace / "data" / "pairs"
    store = FrameStore.open(pairs)
    for name in ("pairs.parquet", "clips.json"):
        (pairs / name).unlink()
    made = labelling.label_train_clips(
        pairs, store, tiny_params().train.motion_labels, workspace / "labels-a", workers=1
    )
    assert made.images


def test_labels_of_finished_clips_survive_a_kill(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[int] = []

    def die_at_second(frames: np.ndarray, config: Any) -> list[Instances]:
        if done:
            raise KeyboardInterrupt
        done.append(1)
        return one_square(frames, config)

    monkeypatch.setattr(labelling, "label_clip", die_at_second)
    with pytest.raises(KeyboardInterrupt):
        label(workspace, workspace / "labels-a")
    assert not (workspace / "labels-a").exists()
    calls: list[int] = []
    monkeypatch.setattr(labelling, "label_clip", lambda f, c: calls.append(1) or one_square(f, c))
    label(workspace, workspace / "labels-a")
    store = FrameStore.open(workspace / "data" / "pairs")
    assert len(calls) == sum(clip.split == "train" for clip in store.clips) - 1


def test_a_clip_that_cannot_be_labelled_is_left_out_and_named(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failed: list[int] = []

    def fail_first(frames: np.ndarray, config: Any) -> list[Instances]:
        if not failed:
            failed.append(1)
            raise RuntimeError("no\nflow")
        return one_square(frames, config)

    monkeypatch.setattr(labelling, "label_clip", fail_first)
    made = label(workspace, workspace / "labels-a")
    assert made.store.count > 0
    assert "labels: left out synthetic" in capsys.readouterr().err
    first = next(clip for clip in FrameStore.open(workspace / "data" / "pairs").clips if clip.split == "train")
    again = label(workspace, workspace / "labels-a")
    assert again.reused
    assert again.failed == made.failed == [{"clip_id": first.clip_id, "reason": "no flow"}]


def test_clips_that_were_not_labelled_stand_in_the_summary(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labelling, "label_clip", one_square)
    failed = [{"clip_id": "a", "reason": "b"}]
    make = train.label_train_clips
    monkeypatch.setattr(train, "label_train_clips", lambda *a, **k: replace(make(*a, **k), failed=failed))
    train.run(tiny_params(), workspace)
    summary = json.loads((workspace / "outputs" / "train" / "summary.json").read_text())
    assert summary["labels"]["failed"] == failed


def test_labels_are_not_published_without_clips_that_ended_their_process(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(labelling, "label_clip", one_square)

    def last_died(function: Any, items: list[Any], *_: Any, **__: Any) -> Iterator[Outcome[Any, Any]]:
        yield from (Outcome(i, item, value=function(item)) for i, item in enumerate(items[:-1]))
        yield Outcome(len(items) - 1, items[-1], error=WorkerDied(DIED))

    with monkeypatch.context() as patched:
        patched.setattr(labelling, "map_unordered", last_died)
        last = [clip for clip in FrameStore.open(workspace / "data" / "pairs").clips if clip.split == "train"][-1]
        with pytest.raises(MosisError, match=rf"memory \({last.clip_id}\): run again"):
            label(workspace, workspace / "labels-a")
    assert not (workspace / "labels-a").exists()
    calls: list[int] = []
    monkeypatch.setattr(labelling, "label_clip", lambda f, c: calls.append(1) or one_square(f, c))
    assert list(label(workspace, workspace / "labels-a").failed) == []
    assert len(calls) == 1


def test_nothing_that_moves_is_said(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labelling, "label_clip", lambda frames, config: [Instances.empty(64, 64)] * len(frames))
    with pytest.raises(NothingLeftError, match="found nothing that moves on its own"):
        label(workspace, workspace / "labels-a")


def test_a_labeller_that_always_fails_is_said(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(frames: np.ndarray, config: Any) -> list[Instances]:
        raise RuntimeError("broken")

    monkeypatch.setattr(labelling, "label_clip", fail)
    with pytest.raises(NothingLeftError, match=r"no clip could be labelled, first .*broken"):
        label(workspace, workspace / "labels-a")
