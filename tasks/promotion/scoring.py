"""The scores of one version: on the canary with its truth, on held-out video without any.

`score` is called in a process of its own for each version (tasks/worker_process.py): two versions' code never meets.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch.nn import functional

from models.common.instances import Instances
from tasks import versioning
from tasks.clips import ClipEntry, ClipReader, open_clips
from tasks.errors import DataError
from tasks.evaluation_frames import neighbours, read_splits
from tasks.files import atomic_folder, read_json, sha256_tree, storage_errors, write_json
from tasks.gallery import Gallery, spread
from tasks.metrics.coco import CocoEvaluator
from tasks.metrics.label_free import LabelFreeEvaluator
from tasks.params import Params
from tasks.pictures import overlay, scale_for, shrink_to_panel
from tasks.predict import predict_frames, shared_cores
from tasks.promotion.canary import canary_id, make_canary
from tasks.promotion.gate import CANARY, HELD_OUT, Scores
from tasks.training.collapse import describe, diagnose
from tasks.workspace import code_root

if TYPE_CHECKING:  # imports mlflow, where only the process that scores needs it
    from tasks.model_store import LoadedModel

FOLDER = Path(".mosis", "scores")
_SCORES = "scores.json"
_FORMAT = 1
_SHOWN = {HELD_OUT: 6, CANARY: 2}
_SMALL = 64
"""Side at which masks of frames of all sizes are compared with each other."""

Chosen = tuple[tuple[ClipEntry, tuple[int, ...]], ...]
"""Clips, and of each the indices of the frames to look at, ascending."""


@dataclass(frozen=True)
class Plan:
    """What versions are compared on, the same for all of them.

    score_floor: detections below it are not scored on the canary. score_threshold: from which on a detection counts on
    held-out video, as it does for labels. data: which data that is, for the record.
    """

    canary: Chosen
    held_out: Chosen
    score_floor: float
    score_threshold: float
    batch_size: int
    device: str
    data: Mapping[str, Any] = field(default_factory=dict)

    @property
    def frames(self) -> str:
        """Digest of frames and settings: versions are compared under one of it."""
        clips = [[entry.clip_id, list(indices)] for entry, indices in (*self.canary, *self.held_out)]
        text = json.dumps([clips, self.score_floor, self.score_threshold, len(self.canary)])
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def digest(self) -> str:
        """Of those and of the code: scores under it need not be made again."""
        return hashlib.sha256(f"{self.frames} {sha256_tree([code_root() / 'tasks'])}".encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Request:
    """Score the version `uri` of the workspace's registry into `folder`."""

    uri: str
    workspace: Path
    plan: Plan
    folder: Path


def make_plan(workspace: Path, settings: Params) -> Plan:
    """The canary, and frames of the clips that no training of these data sees. Raises DataError, StorageError."""
    canary = tuple((entry, tuple(range(entry.frames))) for entry in make_canary(workspace))
    held_out = choose_held_out(workspace, settings.service.gate.frames)
    data = {
        "canary": canary_id(),
        "score_floor": settings.evaluate.score_floor,
        "dvc_md5_clips": versioning.data_md5(workspace, "data/clips"),
        "held_out_clips": len(held_out),
        "held_out_frames": sum(len(indices) for _, indices in held_out),
    }
    return Plan(
        canary,
        held_out,
        settings.evaluate.score_floor,
        settings.export.score_threshold,
        settings.evaluate.batch_size,
        settings.train.device,
        data,
    )


def choose_held_out(workspace: Path, most: int) -> Chosen:
    """Neighbouring frames from all over the clips of the val and the test split, about `most` of them."""
    splits = read_splits(workspace / "data" / "pairs" / "splits.json")
    clips = open_clips(workspace / "data" / "clips")
    kept_out = [clip for clip in clips if splits.get(clip.clip_id) in ("val", "test")]
    return tuple((clip, tuple(indices)) for clip, indices in neighbours(kept_out, most))


def score(request: Request) -> None:
    """Write folder/scores.json and pictures, all at once. Raises DataError where the version cannot be loaded."""
    from tasks import model_store

    plan, place = request.plan, request.workspace / FOLDER
    with storage_errors(place):
        place.mkdir(parents=True, exist_ok=True)  # the end of the trial clears it, and what a kill has left there
    with (
        model_store.fetch_files(request.uri, request.workspace, place=place) as (version, files),
        atomic_folder(request.folder) as folder,
        shared_cores(),
    ):
        model = model_store.load_version(version, files, plan.device)
        gallery = Gallery(folder / "pictures")
        figures, faults, set_aside = score_model(model, plan, gallery)
        document = {"format": _FORMAT, "figures": figures, "faults": faults, "pictures": gallery.entries}
        write_json(folder / _SCORES, {**document, "set_aside": set_aside})


def score_model(
    model: LoadedModel, plan: Plan, gallery: Gallery
) -> tuple[dict[str, float | None], dict[str, str | None], list[dict[str, str]]]:
    """(figures, faults, held-out clips that could not be read); pictures go to the gallery."""
    figures, faults = _score_canary(model, plan, gallery)
    label_free, fault, set_aside = _score_held_out(model, plan, gallery)
    if label_free is not None:
        broken = [name for name, value in label_free.items() if value is not None and not math.isfinite(value)]
        figures |= {name: None if name in broken else value for name, value in label_free.items()}
        faults[HELD_OUT] = f"{broken[0]} is not a number" if broken else fault
    return figures, faults, set_aside


def read_scores(folder: Path) -> tuple[Scores, list[dict[str, Any]]]:
    """What `score` wrote there, and the list of its pictures. Raises DataError where it did not, or not so."""
    document = read_json(folder / _SCORES)
    try:
        figures, faults, pictures = document["figures"], document["faults"], document["pictures"]
        fits = (
            document["format"] == _FORMAT
            and all(value is None or type(value) in (int, float) for value in figures.values())
            and all(value is None or isinstance(value, str) for value in faults.values())
            and all(isinstance(one["file"], str) for one in pictures)
        )
    except (TypeError, KeyError, AttributeError):
        fits = False
    if not fits:
        raise DataError(f"{folder / _SCORES} does not hold the scores of a version: remove it, they are made anew")
    return Scores(figures, faults), pictures


def _score_canary(
    model: LoadedModel, plan: Plan, gallery: Gallery
) -> tuple[dict[str, float | None], dict[str, str | None]]:
    """A canary that cannot be read is an error, and no smaller canary."""
    coco, best = CocoEvaluator(), []
    shown = _positions(plan.canary, _SHOWN[CANARY])
    for position, (reader, index, frame, found) in enumerate(_predict(model, plan, plan.canary, plan.score_floor)):
        truth = reader.truth(index)
        assert truth is not None
        coco.process(position, found, truth)
        best.append(_best(found))
        if position in shown:
            confident = found[found.scores >= plan.score_threshold]
            _show(gallery, CANARY, frame, confident, reader, index)
    scores = coco.evaluate()
    figures = {f"canary_{kind}_{name}": scores[kind][name] for kind in ("mask", "box") for name in ("AP", "AP50")}
    return figures, {CANARY: diagnose(describe(best), 1.0)}


def _score_held_out(
    model: LoadedModel, plan: Plan, gallery: Gallery
) -> tuple[dict[str, float | None] | None, str | None, list[dict[str, str]]]:
    """(label-free figures or None where nothing is held out, why the predictions are degenerate, clips set aside)."""
    label_free, best, set_aside = LabelFreeEvaluator(), [], []
    shown, position = _positions(plan.held_out, _SHOWN[HELD_OUT]), 0
    for entry, indices in plan.held_out:
        start, previous = position, None
        try:
            for reader, index, frame, found in _predict(model, plan, [(entry, indices)], plan.score_floor):
                confident = found[found.scores >= plan.score_threshold]
                label_free.process(frame, confident, follows=previous == index - 1)
                best.append(_best(found))
                if position in shown:
                    _show(gallery, HELD_OUT, frame, confident, reader, index)
                previous, position = index, position + 1
        except DataError as error:
            set_aside.append({"clip_id": entry.clip_id, "reason": str(error)})
            position = start + len(indices)  # the others' pictures stay where they were planned
    if not best:
        return None, None, set_aside
    figures = {**label_free.evaluate(), "held_out_frames": float(len(best))}
    return figures, diagnose(describe(best), 1.0), set_aside


def _predict(
    model: LoadedModel, plan: Plan, chosen: Sequence[tuple[ClipEntry, tuple[int, ...]]], threshold: float
) -> Iterator[tuple[ClipReader, int, np.ndarray, Instances]]:
    for entry, indices in chosen:
        with ClipReader(entry.path) as reader:
            if indices and indices[-1] >= len(reader):
                raise DataError(f"{entry.path} has {len(reader)} frames, fewer than its manifest says: ingest it again")
            for index, frame, found in predict_frames(
                model.predict, reader, indices, batch_size=plan.batch_size, score_threshold=threshold
            ):
                yield reader, index, frame, found


def _best(found: Instances) -> Instances:
    """The best of a frame's instances, its mask at one small size: what tells whether predictions are degenerate."""
    first = found[:1]
    if not len(first):
        return dataclasses.replace(first, masks=first.masks.new_zeros((0, _SMALL, _SMALL)))
    masks = functional.adaptive_avg_pool2d(first.masks[None].float(), _SMALL)[0] > 0.5
    return dataclasses.replace(first, masks=masks)


def _positions(chosen: Chosen, most: int) -> set[int]:
    return set(spread(sum(len(indices) for _, indices in chosen), most))


def _show(gallery: Gallery, kind: str, frame: np.ndarray, found: Instances, reader: ClipReader, index: int) -> None:
    small, (shrunk,) = shrink_to_panel(frame, [found], 2)
    picture = overlay(small, shrunk, scale=scale_for(small.shape[1], 2), show_scores=True)
    gallery.add(kind, picture, f"{len(found)} instances", reader.info, index)
