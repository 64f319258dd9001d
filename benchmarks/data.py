"""Generated video to learn from and to be tested on, and the motion labels of it, kept in a folder between rows.

Runs with torch, numpy, cv2 and pycocotools: neither prefect, mlflow, dvc nor pydantic is needed. What lies in the
folder is found by its settings and by the sources of generator and labeller, so that nothing stale is ever read.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.generator import GENERATOR as GENERATOR  # read by those who read data, too
from benchmarks.generator import generator_settings
from benchmarks.scores import Scores, score
from models.common.instances import Instances
from models.motion_labels.config import MotionLabelsConfig
from models.motion_labels.labeller import label_clip
from tasks.files import atomic_folder, read_json, sha256_tree, write_json
from tasks.frames import FrameStore
from tasks.labels import LabelStore, LabelWriter
from tasks.npy import NpyWriter, open_npy
from tasks.pool import map_unordered
from tasks.process import count_cores
from tasks.sources.synthetic import generate_video
from tasks.sources.synthetic.jobs import assign_splits
from tasks.sources.synthetic.pictures import open_texture
from tasks.sources.synthetic.scene import draw_scene

ROOT = Path(__file__).resolve().parents[1]
FRESH_SEED = 1000
"""Seed of the first fresh video; no setting is ever chosen on these."""


@dataclass(frozen=True)
class Dataset:
    """Which video a row learns from and is tested on.

    seed, videos: of the generator; videos are split 70/15/15. changes: to GENERATOR. step: only every step-th frame of
    the train clips is kept, which divides their rate. fresh, fresh_frames: number of videos of seeds FRESH_SEED and up,
    which are no part of the split, and of frames taken from each; the changes hold for them, too.
    """

    seed: int
    videos: int = 24
    changes: dict[str, Any] = field(default_factory=dict)
    step: int = 1
    fresh: int = 50
    fresh_frames: int = 4


@dataclass(frozen=True)
class Video:
    """Clips with truth. still: (N,) bool, in the order of `store.truth`: the instance moves neither from the frame
    before nor to the one after.
    """

    store: FrameStore
    still: np.ndarray

    def rows(self, split: str) -> np.ndarray:
        """(N,) int64 rows of every frame of a split."""
        spans = [np.arange(clip.first_row, clip.stop) for clip in self.store.clips if clip.split == split]
        return np.concatenate([np.zeros(0, np.int64), *spans])

    def truth(self, rows: np.ndarray) -> list[Instances]:
        assert self.store.truth is not None
        return [self.store.truth[int(row)] for row in rows]

    def still_in(self, rows: np.ndarray) -> list[np.ndarray]:
        """Per row (N,) bool, in the order of its true instances."""
        assert self.store.truth is not None
        places = np.searchsorted(self.store.truth.rows, np.stack([rows, rows + 1]))  # (2, R)
        return [self.still[start:stop] for start, stop in places.T]


@dataclass(frozen=True)
class Motion:
    """Labels of the train clips. seconds: of one core, whenever that was. scores: mask and box AP on true masks."""

    labels: LabelStore
    seconds: float
    scores: Scores


def open_video(data: Dataset, cache: Path) -> Video:
    """Train, val and test clips with truth, made on the first call."""
    changes = {name: value for name, value in asdict(data).items() if not name.startswith("fresh")}
    folder = cache / f"video-{digest(changes, _generator_sources())}"
    if not folder.is_dir():
        _write_video(folder, _split_clips(data))
    return _read_video(folder)


def open_fresh(data: Dataset, cache: Path) -> Video:
    """One clip of `fresh_frames` frames, evenly spaced, of each fresh video; all of the test split."""
    changes = {"fresh": data.fresh, "frames": data.fresh_frames, "changes": data.changes}
    folder = cache / f"fresh-{digest(changes, _generator_sources())}"
    if not folder.is_dir():
        _write_video(folder, _fresh_clips(data))
    return _read_video(folder)


def open_motion_labels(data: Dataset, labeller: dict[str, Any], cache: Path) -> Motion:
    """Motion labels of the train clips, made on the first call. labeller: changes to MotionLabelsConfig."""
    config = MotionLabelsConfig(**labeller)
    video = open_video(data, cache)
    changes = {"data": asdict(data) | {"fresh": 0, "fresh_frames": 0}, "labeller": asdict(config)}
    sources = _generator_sources() + digest_folders("models/motion_labels", "models/common")
    folder = cache / f"labels-{digest(changes, sources)}"
    if not folder.is_dir():
        _write_labels(folder, video, config)
    made = read_json(folder / "made.json")
    return Motion(LabelStore.open(folder), made["seconds"], made["scores"])


@dataclass(frozen=True)
class _Clip:
    frames: np.ndarray
    truth: list[Instances]
    still: list[np.ndarray]
    split: str
    rate_hz: float


def _split_clips(data: Dataset) -> Iterator[_Clip]:
    settings = generator_settings(data.seed, **data.changes)
    for index, split in enumerate(assign_splits(data.videos, data.seed)):
        step = data.step if split == "train" else 1
        yield _generate(settings, index, split, np.arange(0, settings.frames, step), settings.rate_hz / data.step)


def _fresh_clips(data: Dataset) -> Iterator[_Clip]:
    for number in range(data.fresh):
        settings = generator_settings(FRESH_SEED + number, **data.changes)
        times = ((np.arange(data.fresh_frames) + 0.5) * settings.frames / data.fresh_frames).astype(int)
        yield _generate(settings, 0, "test", times, settings.rate_hz)


def _generate(settings: Any, index: int, split: str, times: np.ndarray, rate_hz: float) -> _Clip:
    """Video `index` of the generator, frames `times` of it."""
    video = generate_video(settings, index)
    masks = torch.from_numpy(video.masks[:, times])  # (D, T, H, W)
    truth = [Instances.from_masks(masks[:, t], track_ids=torch.arange(len(masks))) for t in range(len(times))]
    flags = _still_flags(settings, index)[:, times]
    still = [flags[one.track_ids.numpy(), t] for t, one in enumerate(truth) if one.track_ids is not None]
    return _Clip(video.frames[times], truth, still, split, rate_hz)


def _still_flags(settings: Any, index: int) -> np.ndarray:
    """(D, T) bool: whether each object stands still, see `Video`."""
    things = draw_scene(settings, index, open_texture(settings.pictures)).objects
    moved = np.array([thing.moved for thing in things], np.int64).reshape(len(things), settings.frames)
    steps = np.diff(moved, axis=1) > 0
    arrives, leaves = np.zeros(moved.shape, bool), np.zeros(moved.shape, bool)
    arrives[:, 1:], leaves[:, :-1] = steps, steps
    return ~(arrives | leaves)


def _write_video(folder: Path, clips: Iterator[_Clip]) -> None:
    with atomic_folder(folder) as temporary:
        first = next(clips, None)
        if first is None:
            raise ValueError("no video was asked for")
        size = (first.frames.shape[1], first.frames.shape[2])
        (temporary / "truth").mkdir()
        described: list[dict[str, Any]] = []
        with (
            NpyWriter(temporary / "frames.npy", np.uint8, (*size, 3)) as frames,
            NpyWriter(temporary / "still.npy", bool, ()) as still,
            LabelWriter(temporary / "truth", size) as truth,
        ):
            for clip in (first, *clips):
                for offset, instances in enumerate(clip.truth):
                    truth.add(frames.rows + offset, instances)
                for flags in clip.still:
                    still.append(flags)
                frames.append(clip.frames)
                described.append({"frames": len(clip.frames), "split": clip.split, "rate_hz": clip.rate_hz})
        write_json(temporary / "clips.json", {"size": size, "clips": described})


def _read_video(folder: Path) -> Video:
    document = read_json(folder / "clips.json")
    clips = document["clips"]
    frames = open_npy(folder / "frames.npy", np.uint8, (*document["size"], 3))
    ends = np.cumsum([0, *(clip["frames"] for clip in clips)])
    parts = [frames[start:stop] for start, stop in itertools.pairwise(ends)]
    # Only pairs of train clips are ever read, and with `step` these have a rate of their own.
    rate_hz = next((clip["rate_hz"] for clip in clips if clip["split"] == "train"), clips[0]["rate_hz"])
    store = FrameStore.from_arrays(parts, [clip["split"] for clip in clips], rate_hz)
    store.clips = [replace(clip, truth=True) for clip in store.clips]
    store.truth = LabelStore.open(folder / "truth")
    return Video(store, np.array(open_npy(folder / "still.npy", bool, ())))


def _write_labels(folder: Path, video: Video, config: MotionLabelsConfig) -> None:
    clips = [clip for clip in video.store.clips if clip.split == "train"]
    jobs = [(np.ascontiguousarray(video.store.clip_frames(clip)), config, clip.first_row) for clip in clips]
    found: dict[int, tuple[LabelStore, float]] = {}
    for outcome in map_unordered(_label, jobs, count_cores(), "label clips"):
        found[outcome.item[2]] = outcome.get()
    with atomic_folder(folder) as temporary:
        with LabelWriter(temporary, video.store.size) as writer:
            for first_row in sorted(found):
                writer.extend(found[first_row][0], first_row=first_row)
        labels, rows = LabelStore.open(temporary), video.rows("train")
        scores = score([labels[int(row)] for row in rows], video.truth(rows))
        seconds = round(sum(seconds for _, seconds in found.values()), 1)
        write_json(temporary / "made.json", {"seconds": seconds, "scores": scores})


def _label(job: tuple[np.ndarray, MotionLabelsConfig, int]) -> tuple[LabelStore, float]:
    """Labels of one clip, rows counted from its first frame, and the seconds of one core that they took."""
    frames, config, _ = job
    started = time.process_time()
    found = label_clip(frames, config)
    return LabelStore.from_items(frames.shape[1:3], enumerate(found)), time.process_time() - started


@functools.cache
def _generator_sources() -> str:
    return digest_folders("tasks/sources/synthetic", "benchmarks/data.py", "benchmarks/generator.py")


def digest_folders(*names: str) -> str:
    """Of all files below these folders and files of the repository."""
    return sha256_tree([ROOT / name for name in names])


def digest(settings: dict[str, Any], sources: str) -> str:
    """A name for what is made with these settings by these sources."""
    return hashlib.sha256(f"{json.dumps(settings, sort_keys=True)}{sources}".encode()).hexdigest()[:16]
