"""Real video, label-free: `python -m benchmarks.real`.

One model learns from the motion labels of four DAVIS 2016 sequences and six videos together (frames at 128 x 224) and
is then given single images. DAVIS names one object a frame and others may move too, so beside AP50 there are J of the
best match and of the union of what was found, and AR; the same of the labels themselves. The other rows learn from
composites (`benchmarks.composites`), whose truth is exact: without labels, and the supervised twin. `--minutes` is the
training of each row, but the twin trains as many iterations as the row beside it. The data are looked for in
../shared/data or MOSIS_SHARED_DATA and never copied into the repository; `--pictures FOLDER` shows what labels and
network see in the videos.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from benchmarks.composites import SEQUENCES, SIZE, composite_clips, read_sequence, read_video, shared_folder
from benchmarks.data import Dataset, Video
from benchmarks.harness import (
    ROOT,
    Report,
    Row,
    Setting,
    above_zero,
    add_options,
    at_least,
    cache_folder,
    format_table,
    peak_mib,
    start,
)
from benchmarks.scores import CUT, FLOOR, iou_table, predict, score
from benchmarks.training import INFERENCE, Plan, build_model, describe_training, fit_minutes, make_recipe
from models.common.instances import Instances
from models.interface import Segmenter
from models.motion_labels.config import MotionLabelsConfig
from models.motion_labels.labeller import label_clip
from tasks.errors import DataError
from tasks.files import atomic_folder, read_json, sha256_tree, write_json
from tasks.frames import FrameStore
from tasks.labels import LabelStore, LabelWriter
from tasks.pool import map_unordered
from tasks.precision import autocast_dtype, choose_device
from tasks.process import count_cores
from tasks.training.loop import fit

TWIN = "composites, supervised"
KINDS: dict[str, dict[str, Any]] = {
    "real": {"settings": {"objective": "motion_labels", **INFERENCE}, "labels": "motion"},
    "composites": {"settings": {"objective": "motion_labels", **INFERENCE}, "labels": "motion"},
    TWIN: {"method": "yolo_supervised", "settings": INFERENCE, "labels": "truth"},
}
_RATE_HZ = 24.0
_LOW_CUT = 0.1
"""Short trainings give low scores: the union of J is taken from here on, too."""
_SHOWN = ("best_j", "union_j", "AP50", "AR100")
_PICTURES = 4
"""Of each video."""
_COLOURS = ((255, 64, 64), (64, 200, 255), (255, 220, 0), (80, 255, 80), (255, 96, 255), (255, 160, 64))


@dataclass(frozen=True)
class RealPlan:
    """One row.

    training: method, settings, budget and seed; its `data` says only the seed. clips, test_clips, frames: of
    composites. video_step: every video_step-th frame of the videos is used. pictures: a folder, or None.
    """

    row: str
    kind: str
    training: Plan
    shared: Path
    clips: int
    test_clips: int
    frames: int
    video_step: int
    pictures: Path | None


@dataclass(frozen=True)
class Footage:
    """Clips by name in the order of `store.clips`; the first are those with truth."""

    store: FrameStore
    names: list[str]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument(
        "--minutes", type=above_zero, default=10.0, help="of training, each row; processor time on a CPU"
    )
    parser.add_argument("--iterations", type=at_least(1), help="of training, each row, instead of --minutes")
    parser.add_argument("--rows", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[10], help="of composites and training")
    parser.add_argument("--clips", type=at_least(1), default=24, help="composite clips to train on")
    parser.add_argument("--test-clips", type=at_least(1), default=8, help="composite clips to test on")
    parser.add_argument("--frames", type=at_least(2), default=40, help="of each composite clip")
    parser.add_argument("--video-step", type=at_least(1), default=2, help="use every n-th frame of the videos")
    parser.add_argument(
        "--pictures", type=Path, help="write pictures of the videos into this folder, outside the repository"
    )
    options = parser.parse_args()
    if options.pictures is not None and options.pictures.resolve().is_relative_to(ROOT):
        parser.error("--pictures: the videos are third-party data, name a folder outside the repository")
    report = Report("real", options)
    with cache_folder(options) as cache:
        run_plans(report, make_plans(options), cache)
    report.finish(format_rows(report.rows))


def make_plans(options: argparse.Namespace) -> list[RealPlan]:
    plans = []
    for seed in options.seeds:
        for kind in options.rows:
            row = f"{kind}, seed {seed}"
            training = Plan(row, kind, Dataset(seed), **KINDS[kind], seed=seed)
            if options.iterations is None:
                training = replace(training, minutes=options.minutes)
            else:
                training = replace(training, iterations=options.iterations)
            plans.append(
                RealPlan(
                    row, kind, training, shared_folder(), options.clips, options.test_clips, options.frames,
                    options.video_step, options.pictures,
                )
            )  # fmt: skip
    return plans


def run_plans(report: Report, plans: Sequence[RealPlan], cache: Path) -> None:
    """Rates measured row by row differ by a tenth on a busy machine, and with them the iterations: the twin takes those
    of the label-free row of its seed, where there is to be one, and fails with it.
    """
    report.expect(plans)
    planned = {(plan.kind, plan.training.seed) for plan in plans}
    report.run(train_row, [plan for plan in plans if plan.kind != TWIN], cache)
    rows = {(row["kind"], row["seed"]): row for row in report.rows if "failed" not in row}
    done = {row["row"] for row in report.rows}
    twins = []
    for plan in plans:
        partner = ("composites", plan.training.seed)
        if plan.kind != TWIN or plan.row in done:
            continue
        if partner in rows:
            training = replace(plan.training, minutes=None, iterations=rows[partner]["iterations"])
            twins.append(replace(plan, training=training))
        elif partner in planned:
            report.add({"row": plan.row, "failed": f"there is no row of {partner[0]!r} whose iterations to take"})
        else:
            twins.append(plan)
    report.run(train_row, twins, cache)


def train_row(plan: RealPlan, setting: Setting) -> Row:
    """Label, train and score. Raises DataError where the data are not there."""
    try:
        footage = open_real(plan.shared, plan.video_step) if plan.kind == "real" else open_composites(plan)
    except FileNotFoundError as error:
        raise DataError(f"{error}: see MOSIS_SHARED_DATA") from None
    store, device = footage.store, choose_device(setting.device)
    labels, label_seconds = store.truth, None
    if plan.training.labels == "motion":
        labels, label_seconds = open_labels(store, setting.cache, workers=setting.threads)
    model, row = train(plan.training, store, labels, setting)
    rows = np.arange(len(store)) if plan.kind == "real" else rows_of(store, "test")
    dtype = autocast_dtype(make_recipe(plan.training, 1).precision, device)
    found = predict(model, store, rows, device=device, dtype=dtype)
    if plan.kind == "real":
        assert labels is not None
        row |= score_sequences(footage, found, labels)
        if plan.pictures is not None:
            draw_videos(plan.pictures, footage, found, labels)
    else:
        row |= score_composites(store, rows, found, labels if plan.training.labels == "motion" else None)
    return {
        "kind": plan.kind, **row, "label_seconds": label_seconds, "threads": setting.threads, "device": device.type,
        "peak_mib": round(peak_mib(), 1),
    }  # fmt: skip


def train(plan: Plan, store: FrameStore, labels: LabelStore | None, setting: Setting) -> tuple[Segmenter, Row]:
    """The trained model and the row's facts of its training."""
    torch.manual_seed(plan.seed)
    model = build_model(plan.method, plan.settings, store.size)
    video = Video(store, np.zeros(0, bool))
    budget = plan.iterations if plan.minutes is None else fit_minutes(plan, video, labels, setting)
    device, started = choose_device(setting.device), time.process_time()
    fitted = fit(model, store, make_recipe(plan, budget), labels=labels, device=device)
    cpu_minutes = None if device.type == "cuda" else round((time.process_time() - started) / 60, 3)
    facts = describe_training(plan, model, fitted, len(rows_of(store, "train")))
    return model, {**facts, "cpu_minutes": cpu_minutes}


def open_real(shared: Path, video_step: int) -> Footage:
    """The DAVIS sequences, with truth, and the videos. All are of the train split: they teach by their motion alone."""
    sequences = [read_sequence(shared / "davis2016" / name, SIZE) for name in SEQUENCES]
    paths = sorted((shared / "videos").glob("*.mp4"))
    frames = [one.frames for one in sequences] + [read_video(path)[::video_step] for path in paths]
    truth: list[list[Instances] | None] = [
        [Instances.from_masks(torch.from_numpy(mask[None])) for mask in one.masks] for one in sequences
    ]
    store = FrameStore.from_arrays(frames, ["train"] * len(frames), _RATE_HZ, truth + [None] * len(paths))
    return Footage(store, [*SEQUENCES, *(path.stem for path in paths)])


def open_composites(plan: RealPlan) -> Footage:
    """Train clips, then test clips: other paths and combinations of the same real objects and backgrounds."""
    count = plan.clips + plan.test_clips
    frames, truth = composite_clips(plan.shared, plan.training.seed, count, plan.frames)
    splits = ["train"] * plan.clips + ["test"] * plan.test_clips
    store = FrameStore.from_arrays(frames, splits, _RATE_HZ, list(truth))
    return Footage(store, [f"composite-{number}" for number in range(count)])


def open_labels(store: FrameStore, cache: Path, *, workers: int) -> tuple[LabelStore, float]:
    """Motion labels of the train clips and the core seconds that they took, made on the first call."""
    config = MotionLabelsConfig()
    clips = [clip for clip in store.clips if clip.split == "train"]
    digest = hashlib.sha256(json.dumps(asdict(config)).encode())
    digest.update(sha256_tree([ROOT / "models" / "motion_labels", ROOT / "models" / "common"]).encode())
    for clip in clips:
        digest.update(store.clip_frames(clip).tobytes())
    folder = cache / f"real-labels-{digest.hexdigest()[:16]}"
    if not folder.is_dir():
        jobs = [(np.ascontiguousarray(store.clip_frames(clip)), config, clip.first_row) for clip in clips]
        parts: dict[int, tuple[list[Instances], float]] = {}
        for outcome in map_unordered(label_one, jobs, min(workers, count_cores()), "label clips"):
            parts[outcome.item[2]] = outcome.get()
        with atomic_folder(folder) as temporary:
            with LabelWriter(temporary, store.size) as writer:
                for first_row in sorted(parts):
                    for offset, instances in enumerate(parts[first_row][0]):
                        writer.add(first_row + offset, instances)
            write_json(temporary / "made.json", {"seconds": round(sum(one[1] for one in parts.values()), 1)})
    return LabelStore.open(folder), float(read_json(folder / "made.json")["seconds"])


def label_one(job: tuple[np.ndarray, MotionLabelsConfig, int]) -> tuple[list[Instances], float]:
    """Labels of one clip and the seconds of one core that they took."""
    started = time.process_time()
    return label_clip(job[0], job[1]), time.process_time() - started


def rows_of(store: FrameStore, split: str) -> np.ndarray:
    """(N,) rows of every frame of a split."""
    return np.concatenate([np.arange(clip.first_row, clip.stop) for clip in store.clips if clip.split == split])


def score_composites(store: FrameStore, rows: np.ndarray, found: list[Instances], labels: LabelStore | None) -> Row:
    """Scores on the test split, and of the labels, where they are the row's, on the train split."""
    assert store.truth is not None
    scored: Row = {"images": len(rows), **score(found, [store.truth[int(row)] for row in rows])}
    if labels is not None:
        train = rows_of(store, "train")
        scored["label_scores"] = score([labels[int(row)] for row in train], [store.truth[int(row)] for row in train])
    return scored


def score_sequences(footage: Footage, found: list[Instances], labels: LabelStore) -> Row:
    """Per DAVIS sequence what the network finds in single images and what the labels say, and the means over them."""
    truth = footage.store.truth
    assert truth is not None
    sequences = {}
    for name, clip in zip(footage.names, footage.store.clips, strict=True):
        if clip.truth:
            rows = range(clip.first_row, clip.stop)
            expected = [truth[row] for row in rows]
            sequences[name] = {
                "network": score_sequence([found[row] for row in rows], expected, cut=CUT),
                "labels": score_sequence([labels[row] for row in rows], expected, cut=CUT),
            }
    means = {
        f"{who}_{key}": float(np.mean([one[who][key] for one in sequences.values()]))
        for who in ("network", "labels")
        for key in ("best_j", "union_j", "union_j_low", "AP50", "AR100")
    }
    return {"sequences": sequences, **means}


def score_sequence(found: list[Instances], truth: list[Instances], *, cut: float) -> dict[str, float | None]:
    """best_j: mean IoU of the best match of any score from FLOOR on, so of many tries. union_j: of the union of all
    that score `cut` or more; and union_j_low: from _LOW_CUT on, if that is less.
    """
    best = [float(iou_table(one.masks, two.masks).max(initial=0)) for one, two in zip(found, truth, strict=True)]
    union, low = (
        [union_j(one[one.scores >= least], two) for one, two in zip(found, truth, strict=True)]
        for least in (cut, min(cut, _LOW_CUT))
    )
    mask = score(found, truth)["mask"]
    per_frame = [int((one.scores >= cut).sum()) for one in found]
    return {
        "best_j": float(np.mean(best)), "union_j": float(np.mean(union)), "union_j_low": float(np.mean(low)),
        "AP50": mask["AP50"], "AR100": mask["AR100"],
        "per_frame": float(np.mean(per_frame)),
    }  # fmt: skip


def union_j(found: Instances, truth: Instances) -> float:
    """IoU of all masks together with all true masks together; 1 where there is neither."""
    one, two = found.masks.any(0), truth.masks.any(0)
    union = int((one | two).sum())
    return int((one & two).sum()) / union if union else 1.0


def draw_videos(folder: Path, footage: Footage, found: list[Instances], labels: LabelStore) -> None:
    """For each clip some frames: the picture, the labels, and what the network finds from CUT on."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, clip in zip(footage.names, footage.store.clips, strict=True):
        strips = []
        for row in np.linspace(clip.first_row, clip.stop - 1, _PICTURES + 2)[1:-1].astype(int):
            frame = footage.store.frame(int(row))
            sure = found[row][found[row].scores >= CUT]
            strips.append(np.hstack([frame, outline(frame, labels[int(row)]), outline(frame, sure)]))
        cv2.imwrite(str(folder / f"{name}.png"), np.ascontiguousarray(np.vstack(strips)[..., ::-1]))


def outline(frame: np.ndarray, instances: Instances) -> np.ndarray:
    """(H, W, 3) uint8 with the instances' outlines drawn on it."""
    drawn = frame.copy()
    for number, mask in enumerate(instances.masks.numpy().astype(np.uint8)):
        contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(drawn, contours, -1, _COLOURS[number % len(_COLOURS)], 1)
    return drawn


def format_rows(rows: Sequence[Row]) -> str:
    """A table of the sequences and one of the composites, and why other rows failed."""
    sequences, composites, failures = [], [], ""
    for row in rows:
        if "failed" in row:
            failures += f"\n{row['row']}: {row['failed']}"
        elif row["kind"] == "real":
            for name, both in row["sequences"].items():
                sequences.append([name, *(both[who][key] for who in ("network", "labels") for key in _SHOWN)])
            means = [row[f"{who}_{key}"] for who in ("network", "labels") for key in _SHOWN]
            sequences.append([f"mean, seed {row['seed']}", *means])
        else:
            own = row.get("label_scores", {}).get("mask", {})
            cells = [row["mask"][key] for key in ("AP50", "AP75", "AP")] + [
                own.get(key) for key in ("AP50", "AP75", "AP")
            ]
            labelling = None if row["label_seconds"] is None else row["label_seconds"] / 60
            composites.append([row["row"], *cells, row["minutes"], labelling, row["iterations"]])
    tables = []
    if sequences:
        names = (f"J best, {FLOOR}", f"J union, {CUT}", "AP50", "AR")
        columns = ("sequence", *(f"{who}: {name}" for who in ("network", "labels") for name in names))
        tables.append(format_table(columns, sequences))
    if composites:
        columns = ("row", "mask AP50", "AP75", "AP", "labels: AP50", "AP75", "AP", "minutes", "labelling", "iterations")
        tables.append(format_table(columns, composites))
    return "\n\n".join(tables) + failures


if __name__ == "__main__":
    start(main)
