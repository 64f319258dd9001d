"""The train stage: pairs -> weights of a single-image segmenter, whatever the method."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
import yaml

import models
import tasks.training
from models.common.instances import Instances
from models.interface import Segmenter
from tasks import params as parameters
from tasks.cluster import open_executor
from tasks.errors import MosisError, NothingLeftError, ParamsError
from tasks.files import atomic_folder, atomic_path, read_json, sha256_tree, write_json
from tasks.frames import FrameStore
from tasks.labels import LabelStore
from tasks.params import STAGES, Params, TrainParams
from tasks.precision import autocast_dtype, choose_device
from tasks.predict import FORMAT
from tasks.progress import Progress
from tasks.tracking import Tracker
from tasks.training import validation
from tasks.training.batches import truth_samples
from tasks.training.checkpoint import Checkpoints, digest_sources
from tasks.training.collapse import PredictionStats
from tasks.training.distributed import ALONE, Ranks, check_alike, choose_local_device, join
from tasks.training.history import History
from tasks.training.labelling import Labels, label_train_clips
from tasks.training.launch import launch
from tasks.training.loop import Fitted, Hooks, Recipe, fit
from tasks.training.optimise import Optimisation
from tasks.training.own_labels import check_any, infer_round
from tasks.training.ranks import read_rank
from tasks.training.self_training import relabel
from tasks.training.teacher import Teacher, Trust, add_taught, open_teacher

_NO_EFFECT = ("workers", "checkpoint_every", "checkpoint_seconds", "collapse_patience", "device")
"""Parameters that do not shape the weights: changing them does not throw away a checkpoint."""
_FIRST_SPEAKS_SECONDS = 10.0


def run(params: Params, workspace: Path) -> None:
    """Train params.train.method on data/pairs and write outputs/train, going on from a checkpoint that fits.

    Raises DataError for broken pairs, NothingLeftError where there is nothing to learn from, CollapseError when the
    training degenerates, MosisError when the GPU's memory does not suffice.
    """
    rank = read_rank()
    if rank.count == 1 and params.compute.train_processes > 1:
        launch(params.compute.train_processes, [sys.executable, "-m", "tasks", "train"], workspace)
        return
    try:
        device = choose_local_device(choose_device(params.train.device), rank)
        with join(rank, device) as ranks:
            _train(params, workspace, device, ranks)
    except MosisError:
        if rank.number:
            # Most likely the first one says the same, and by then this one has been ended.
            time.sleep(_FIRST_SPEAKS_SECONDS)
        raise


def _train(params: Params, workspace: Path, device: torch.device, ranks: Ranks) -> None:
    pairs, out = workspace / "data" / "pairs", workspace / "outputs" / "train"
    store = FrameStore.open(pairs)
    if not any(clip.split == "train" for clip in store.clips):
        raise NothingLeftError("no clip is in the train split: raise pairs.train_share, or add videos")
    torch.manual_seed(params.train.seed)
    method = params.train.method
    model = models.METHODS[method](getattr(params.train, method), store.size)
    teacher = _find_teacher(params.train, model, workspace)
    fingerprint = take_fingerprint(params.train, pairs, device, ranks, teacher)
    checkpoint = out / "checkpoint"
    labels = _make_labels(params, model, store, pairs, checkpoint, fingerprint, ranks, teacher)
    session = _Session(params, workspace, store, model, labels, device, fingerprint, ranks)
    fitted = session.train()
    if ranks.first:
        _publish(session, fitted, out)
        shutil.rmtree(checkpoint, ignore_errors=True)


def take_fingerprint(
    train: TrainParams, pairs: Path, device: torch.device, ranks: Ranks = ALONE, teacher: Teacher | None = None
) -> dict[str, str]:
    """Named digests of all that shapes the result; a checkpoint is resumed only where every one is the same.

    Raises MosisError where one of several processes has other parameters or code than the first, who reads the data.
    """
    settings = {name: value for name, value in parameters.to_dict(train).items() if name not in _NO_EFFECT}
    sources = [Path(models.__file__).parent, Path(tasks.training.__file__).parent]
    own = {
        "parameters": _digest(settings),
        "code": digest_sources(sources),
        "torch version": str(torch.__version__),
        "device": device.type,
        **({"teacher": teacher.digest} if teacher else {}),
    }
    check_alike(ranks, own)
    return {**own, "data": ranks.share(sha256_tree([pairs]) if ranks.first else "")}


@dataclass
class _Session:
    """One training with everything that listens to it."""

    params: Params
    workspace: Path
    store: FrameStore
    model: Segmenter
    labels: Labels | None
    device: torch.device
    fingerprint: dict[str, str]
    ranks: Ranks = ALONE

    def __post_init__(self) -> None:
        train = self.params.train
        self.folder = self.workspace / "outputs" / "train" / "checkpoint"
        self.losses = History(self.folder / "losses.csv")
        self.validation = History(self.folder / "validation.csv", validation.COLUMNS)
        self.pictures = self.folder / "pictures"
        self.tracker = Tracker()
        self.progress = Progress("train", self.params.train.iterations)
        self.dtype = autocast_dtype(train.precision, self.device)
        label_store = None if self.labels is None else self.labels.store
        self.frames = validation.choose_frames(self.store, label_store, most=train.validation_images)

    def train(self) -> Fitted:
        train = self.params.train
        checkpoints = Checkpoints(self.folder, self.fingerprint, train.checkpoint_every, train.checkpoint_seconds)
        hooks = Hooks(self.on_resume, self.on_log, self.on_validate, self.on_checkpoint)
        label_store = None if self.labels is None else self.labels.store
        with contextlib.ExitStack() as shown:
            if self.ranks.first:
                shown.enter_context(self.progress)
            try:
                fitted = fit(
                    self.model, self.store, make_recipe(train), labels=label_store, device=self.device,
                    checkpoints=checkpoints, hooks=hooks,
                    relabel=self.relabel if self.model.needs in ("labels", "own_labels") else None,
                    ranks=self.ranks,
                )  # fmt: skip
            except torch.OutOfMemoryError:
                self.tracker.finish("FAILED")
                height, width = self.store.size
                raise MosisError(
                    f"the GPU's memory is too small for this training: lower train.batch_size (now {train.batch_size}) "
                    f"or pairs.height and pairs.width (now {height} x {width}), or set train.device to cpu"
                ) from None
            except MosisError:
                self.tracker.finish("FAILED")
                raise
            except KeyboardInterrupt:
                self.tracker.finish("KILLED")
                raise
        return fitted

    def relabel(self, number: int, model: Segmenter) -> LabelStore:
        """The labels of round `number`, made once, by the first process: what is resumed within it reads the same
        again.
        """
        folder = self.folder / f"round-{number}-{_digest(self.fingerprint)[:12]}"
        if self.ranks.first and not folder.is_dir():
            LabelStore.write(folder, self.store.size, self._labels_of_round(number, model))
        self.ranks.wait()
        labels = LabelStore.open(folder)
        known = 0 if self.labels is None else self.labels.store.count
        if self.ranks.first:
            _say(f"round {number}: {labels.count - known} labels {'inferred' if self.labels is None else 'added'}")
        return check_any(labels)

    def _labels_of_round(self, number: int, model: Segmenter) -> Iterator[tuple[int, Instances]]:
        if self.labels is None:
            return infer_round(number, model, self.store, device=self.device)
        threshold = self.params.train.self_training_score
        return relabel(model, self.store, self.labels.store, score_threshold=threshold, device=self.device)

    def on_resume(self, iteration: int, notes: list[str]) -> None:
        for note in notes:
            _say(note)
        if iteration:
            _say(f"going on at iteration {iteration} of {self.params.train.iterations}")
            self.progress.advance(iteration)
        else:
            shutil.rmtree(self.pictures, ignore_errors=True)
        self.losses.rewind(iteration)
        self.validation.rewind(iteration)
        self._track()

    def on_log(self, iteration: int, values: dict[str, float]) -> None:
        self.losses.append(iteration, values)
        self.tracker.log({f"train/{name}": value for name, value in values.items()}, iteration)
        self.progress.describe(f"train, loss {values['total']:.3f}, {values['images_per_s']:.0f} images/s")
        self.progress.advance(iteration - self.progress.done)

    def on_validate(self, iteration: int, model: Segmenter) -> PredictionStats:
        figures, stats, predictions = validation.validate(model, self.store, self.frames, self.device, self.dtype)
        self.validation.append(iteration, figures)
        self.tracker.log({f"{self.frames.split}/{name}": value for name, value in figures.items()}, iteration)
        picture = self.pictures / f"{iteration:08d}.jpg"
        validation.write_picture(picture, self.store, self.frames, predictions)
        self.tracker.picture(picture)
        shown = ", ".join(f"{name} {value:.3f}" for name, value in figures.items() if value is not None)
        _say(f"iteration {iteration}, {self.frames.split} split: {shown}")
        return stats

    def on_checkpoint(self, iteration: int) -> None:
        self.losses.sync()
        self.validation.sync()
        self.tracker.flush()

    def _track(self) -> None:
        """Take up the run of the training that was killed, if it was this one; else begin one."""
        note = self.folder / "run.json"
        earlier = read_json(note) if note.is_file() else {}
        run_id = earlier.get("run_id") if earlier.get("fingerprint") == self.fingerprint else None
        self.tracker = Tracker.start(
            self.workspace, name="train", params=parameters.to_dict(self.params), run_id=run_id,
            tags={"method": self.params.train.method, "objective": objective(self.params.train)},
        )  # fmt: skip
        write_json(note, {"run_id": self.tracker.run_id, "fingerprint": self.fingerprint})


def make_recipe(train: TrainParams) -> Recipe:
    """The loop's part of the parameters."""
    return Recipe(
        Optimisation(**{name: getattr(train, name) for name in Optimisation.__dataclass_fields__}),
        **{name: getattr(train, name) for name in Recipe.__dataclass_fields__ if name != "optimisation"},
    )


def objective(train: TrainParams) -> str:
    """The method's own name of what it learns from, or the method's where it has only one."""
    return str(getattr(getattr(train, train.method), "objective", train.method))


def _find_teacher(train: TrainParams, model: Segmenter, workspace: Path) -> Teacher | None:
    """Raises ParamsError where there is no such teacher, or the method has no use for one."""
    if train.teacher is None:
        return None
    if model.needs != "labels":
        raise ParamsError(
            f"train.teacher: {train.method} does not learn from motion labels, which a teacher adds to: set it to null"
        )
    return open_teacher(train.teacher, workspace, train.device)


def _make_labels(
    params: Params,
    model: Segmenter,
    store: FrameStore,
    pairs: Path,
    checkpoint: Path,
    fingerprint: dict[str, str],
    ranks: Ranks,
    teacher: Teacher | None,
) -> Labels | None:
    """Those to begin with, if any. The first process makes them, the others find them."""
    train = params.train
    if model.needs == "truth":
        return _take_truth(store, ranks)
    if model.needs != "labels":
        return None
    source = digest_sources([Path(models.__file__).parent / name for name in ("motion_labels", "common")])
    identity = _digest([parameters.to_dict(train.motion_labels), fingerprint["data"], source])
    folder = checkpoint / f"labels-{identity[:12]}"
    if not ranks.first:
        ranks.wait()
    for stale in checkpoint.glob("labels-*"):
        if not stale.name.startswith(folder.name):
            shutil.rmtree(stale, ignore_errors=True)
    with open_executor(params.compute) as executor:
        labels = label_train_clips(pairs, store, train.motion_labels, folder, workers=train.workers, executor=executor)
    if teacher is not None:
        taught = folder.with_name(f"{folder.name}-taught-{_digest(fingerprint)[:12]}")
        labels = add_taught(labels, teacher, store, _trust(train), taught)
    if ranks.first:
        ranks.wait()
        how = "found again" if labels.reused else f"made in {labels.seconds:.0f} s"
        by_teacher = f", {labels.added} of them by the teacher" if teacher else ""
        _say(f"{labels.store.count} labels on {labels.images} frames, {how}{by_teacher}")
    return labels


def _trust(train: TrainParams) -> Trust:
    return Trust(train.teacher_min_score, train.teacher_min_photometric_gain, train.teacher_min_temporal_iou)


def _take_truth(store: FrameStore, ranks: Ranks) -> Labels:
    """The frame store's own ground truth, as if a labeller had made it."""
    rows = truth_samples(store).row_a
    assert store.truth is not None
    own = store.truth.rows[np.isin(store.truth.rows, rows)]
    if ranks.first:
        _say(f"{len(own)} true instances on {len(rows)} frames")
    return Labels(store.truth, len(np.unique(own)), 0.0, reused=True)


def _publish(session: _Session, fitted: Fitted, out: Path) -> None:
    """Put everything in its place, the summary last; a kill in between is mended by the next run, which goes on from
    the last checkpoint.
    """
    with atomic_folder(out / "pictures") as temporary:
        for picture in sorted(session.pictures.glob("*.jpg")):
            shutil.copyfile(picture, temporary / picture.name)
    for history in (session.losses, session.validation):
        with atomic_path(out / history.path.name) as temporary:
            shutil.copyfile(history.path, temporary)
    resolved = {
        "format": FORMAT,
        "method": session.params.train.method,
        "size": list(session.store.size),
        "params": {
            stage: settings for stage, settings in parameters.to_dict(session.params).items() if stage in STAGES
        },
    }
    with atomic_path(out / "params.resolved.yaml") as temporary:
        temporary.write_text(yaml.safe_dump(resolved, sort_keys=False), encoding="utf-8")
    state = {name: tensor.cpu().contiguous() for name, tensor in session.model.state_dict().items()}
    with atomic_path(out / "weights.safetensors") as temporary:
        temporary.write_bytes(safetensors.torch.save(state))
    for name in ("params.resolved.yaml", "losses.csv", "validation.csv"):
        session.tracker.artifact(out / name)
    session.tracker.finish()
    write_json(out / "summary.json", _summarise(session, fitted))


def _summarise(session: _Session, fitted: Fitted) -> dict[str, Any]:
    train, labels, frames = session.params.train, session.labels, session.frames
    made = None
    if labels is not None:
        made = {
            "count": labels.store.count,
            "images": labels.images,
            "seconds": labels.seconds,
            "failed": list(labels.failed),
        }
    teacher = None
    if labels is not None and train.teacher is not None:
        teacher = {"sha256": session.fingerprint["teacher"], "folder": train.teacher, "added": labels.added}
    return {
        "method": train.method,
        "objective": objective(train),
        "parameters": sum(parameter.numel() for parameter in session.model.parameters()),
        "iterations": fitted.iterations,
        "resumed_at": fitted.resumed_at,
        "seconds": round(fitted.seconds, 1),
        "images_per_s": round(fitted.images_per_s, 2),
        "peak_mib": round(fitted.peak_mib, 1),
        "device": session.device.type,
        "labels": made,
        "teacher": teacher,
        "validation": {"split": frames.split, "images": len(frames.rows), **_numbers(session.validation)},
        "run_id": session.tracker.run_id,
        "fingerprint": session.fingerprint,
    }


def _numbers(history: History) -> dict[str, float | None]:
    return {name: float(value) if value else None for name, value in history.last.items() if name != "iteration"}


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _say(text: str) -> None:
    print(f"train: {text}", file=sys.stderr, flush=True)
