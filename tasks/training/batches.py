"""Which rows make which batch, and a thread that has the next ones ready. Everything follows from (seed, iteration)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from torch import Tensor

from models.common.images import to_tensor
from models.common.instances import Instances, mask_extents
from models.interface import Batch
from tasks.errors import NothingLeftError
from tasks.training.augment import Augmentation, draw_augmentation
from tasks.training.copy_paste import draw_pastes, paste_objects

if TYPE_CHECKING:
    from tasks.frames import FlowStore, FrameStore
    from tasks.labels import LabelStore

T = TypeVar("T")
_ORDER, _AUGMENT, _TORCH = range(3)  # independent random streams of one seed


@dataclass(frozen=True)
class Samples:
    """What may be drawn, one entry a sample.

    row_a, row_b: (N,) int64 rows of the frame store, the same where an objective reads one frame.
    dt_s: (N,) float32 seconds from a to b.
    row_before: (N,) int64 the third row of triplets.
    """

    row_a: np.ndarray
    row_b: np.ndarray
    dt_s: np.ndarray
    row_before: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.row_a)


@dataclass(frozen=True)
class RawLabels:
    """Labels of a batch in one piece: masks (M, H, W) bool, scores (M,) float32, counts (B,) of each image."""

    masks: np.ndarray
    scores: np.ndarray
    counts: np.ndarray

    def to(self, device: torch.device) -> list[Instances]:
        """Boxes are the masks' extents; empty masks are dropped."""
        kept = self.masks.any((1, 2))
        image = np.repeat(np.arange(len(self.counts)), self.counts)[kept]
        counts = np.bincount(image, minlength=len(self.counts)).tolist()
        masks, scores = torch.from_numpy(self.masks[kept]).to(device), torch.from_numpy(self.scores[kept]).to(device)
        fields = (mask_extents(masks).split(counts), scores.split(counts), masks.split(counts))
        return [Instances(*parts) for parts in zip(*fields, strict=True)]


@dataclass(frozen=True)
class RawBatch:
    """A batch as it was read: frames (B, H, W, 3) uint8, dt_s (B,) float32; frame_b is None where it is frame_a;
    optical_flow (B, H, W, 2) float32 or None.

    Numpy only: torch in the reading thread would bring a second team of workers onto the cores that train.
    """

    frame_a: np.ndarray
    frame_b: np.ndarray | None
    dt_s: np.ndarray
    labels: RawLabels | None
    optical_flow: np.ndarray | None = None

    def to(self, device: torch.device) -> Batch:
        frame_a = to_tensor(self.frame_a, device)
        frame_b = frame_a if self.frame_b is None else to_tensor(self.frame_b, device)
        return assemble(frame_a, frame_b, self.dt_s, self.labels, self.optical_flow)


@dataclass(frozen=True)
class RowBatch:
    """A batch whose frames lie on the device (`staging.ResidentFrames`): the rows (B,) of the frame store, row_b None
    where it is row_a, and how each sample is augmented. Labels and optical flow are augmented already.
    """

    row_a: np.ndarray
    row_b: np.ndarray | None
    draws: Sequence[Augmentation] | None
    dt_s: np.ndarray
    labels: RawLabels | None
    optical_flow: np.ndarray | None = None


def assemble(
    frame_a: Tensor, frame_b: Tensor, dt_s: np.ndarray, labels: RawLabels | None, optical_flow: np.ndarray | None
) -> Batch:
    """The batch of frames that lie on their device, all else brought there."""
    device = frame_a.device
    flow_uv = None
    if optical_flow is not None:
        flow_uv = torch.from_numpy(optical_flow.transpose(0, 3, 1, 2).copy()).to(device)
    instances = None if labels is None else labels.to(device)
    return Batch(frame_a, frame_b, torch.from_numpy(dt_s).to(device), instances, flow_uv)


def pair_samples(store: FrameStore) -> Samples:
    """Every pair of the train split. Raises NothingLeftError if there is none."""
    pairs = store.pairs("train")
    samples = Samples(np.asarray(pairs.row_a), np.asarray(pairs.row_b), np.asarray(pairs.dt_s, np.float32))
    if not len(samples):
        raise NothingLeftError("no pair of frames in the train split: see data/pairs/dropped.json for the reasons")
    return samples


def flow_samples(store: FrameStore) -> Samples:
    """Pairs of the train split whose true optical flow is stored. Raises NothingLeftError if there is none."""
    samples = pair_samples(store)
    rows = store.optical_flow.rows if store.optical_flow is not None else np.zeros(0, np.int64)
    known = np.isin(samples.row_a, rows) & (samples.row_b == samples.row_a + 1)
    if not known.any():
        raise NothingLeftError(
            "no pair of the train split has true optical flow to learn from: use the unsupervised objective, "
            "or synthetic video with dense_flow: true"
        )
    return Samples(samples.row_a[known], samples.row_b[known], samples.dt_s[known])


def triplet_samples(store: FrameStore, gap: int) -> Samples:
    """Every row of the train split with the rows `gap` before and after it, where each frame in between makes a good
    pair with the next: no cut lies between them, and both ends exist. Raises NothingLeftError if there is none.
    """
    pairs = store.pairs("train")
    step_s = np.full(len(store) + 1, np.nan)
    consecutive = pairs.row_b == pairs.row_a + 1
    step_s[pairs.row_a[consecutive]] = pairs.dt_s[consecutive]  # NaN where a row and the next are no pair
    middle = np.arange(gap, len(store) - gap)
    way = np.stack([step_s[middle + offset] for offset in range(-gap, gap)])
    kept = np.isfinite(way).all(0)
    rows, dt_s = middle[kept].astype(np.int64), way[gap:, kept].sum(0).astype(np.float32)
    if not len(rows):
        raise NothingLeftError(
            f"no run of {2 * gap + 1} good frames in the train split: see data/pairs/dropped.json for the reasons"
        )
    return Samples(rows, rows + gap, dt_s, rows - gap)


def labelled_samples(store: FrameStore, labels: LabelStore) -> Samples:
    """Rows of the train split with at least one label.

    A frame without labels may hold objects that stood still: as a negative example it would teach to miss them.
    Raises NothingLeftError if no row is left.
    """
    rows = labels.labelled_rows()
    clips = np.searchsorted(np.array([clip.stop for clip in store.clips], np.int64), rows, side="right")
    trains = np.array([*(clip.split == "train" for clip in store.clips), False])  # the last: rows of no clip
    rows = rows[trains[clips]].astype(np.int64)
    if not len(rows):
        raise NothingLeftError(
            "no frame of the train split has a label, nothing was seen to move on its own: "
            "add clips in which things move against their background"
        )
    return Samples(rows, rows, np.zeros(len(rows), np.float32))


def truth_samples(store: FrameStore) -> Samples:
    """Every row of the train clips that has ground truth, also those that are known to hold nothing.

    Raises NothingLeftError if there is none.
    """
    clips = [clip for clip in store.clips if clip.split == "train" and clip.truth]
    if store.truth is None or not clips:
        raise NothingLeftError(
            "no clip of the train split has ground truth to learn from: choose a train.method that needs none, "
            "or add annotated or synthetic clips"
        )
    rows = np.concatenate([clip.truth_rows() for clip in clips])
    return Samples(rows, rows, np.zeros(len(rows), np.float32))


def draw_indices(count: int, batch_size: int, *, seed: int, iteration: int) -> np.ndarray:
    """(batch_size,) indices into `count` samples: consecutive pieces of one permutation an epoch."""
    positions = np.arange(iteration * batch_size, (iteration + 1) * batch_size)
    epochs, places = np.divmod(positions, count)
    return np.array([_permutation(count, seed, int(e))[p] for e, p in zip(epochs, places, strict=True)], np.int64)


def torch_seed(seed: int, iteration: int) -> int:
    """Seed of torch's own generators for one iteration."""
    return int(np.random.SeedSequence((seed, _TORCH, iteration)).generate_state(1, np.uint64)[0] >> 1)


def make_batch(
    store: FrameStore,
    samples: Samples,
    labels: LabelStore | None,
    *,
    batch_size: int,
    seed: int,
    iteration: int,
    augment: bool,
    copy_paste: bool = False,
    trusted: float = 1.0,
    optical_flow: FlowStore | None = None,
    part: tuple[int, int] = (0, 1),
    resident: bool = False,
) -> RawBatch | RowBatch:
    """Batch number `iteration` of a run: read, augment, stack. trusted: see `read_labels`. optical_flow: None for a
    batch without. part: (number, count): of a batch cut into `count` equal parts that of this number alone.
    resident: frames are read and augmented on the device. Not together with copy_paste, which puts frames together.
    """
    indices = draw_indices(len(samples), batch_size, seed=seed, iteration=iteration)
    single = bool((samples.row_a[indices] == samples.row_b[indices]).all())
    own = cut_part(batch_size, part)
    rng = np.random.default_rng((seed, _AUGMENT, iteration))
    square = store.size[0] == store.size[1]
    draws = [draw_augmentation(rng, square=square) for _ in range(batch_size)] if augment else None
    if draws and labels is not None and single and copy_paste:
        assert not resident
        frames, found = _paste(store, labels, samples.row_a[indices], draws, rng, own, trusted=trusted)
        return RawBatch(frames, None, samples.dt_s[indices[own]], found)
    indices = indices[own]
    rows_a, rows_b = samples.row_a[indices], samples.row_b[indices]
    views = [] if resident else [store.gather(rows) for rows in ((rows_a,) if single else (rows_a, rows_b))]
    labelled = None if labels is None else read_labels(labels, rows_a, trusted=trusted)
    flow_uv = None if optical_flow is None else read_flow(optical_flow, rows_a)
    if draws:
        _augment(views, labelled, flow_uv, dict(enumerate(draws[own])))
    if resident:
        drawn = draws[own] if draws else None
        return RowBatch(rows_a, None if single else rows_b, drawn, samples.dt_s[indices], labelled, flow_uv)
    return RawBatch(views[0], None if single else views[1], samples.dt_s[indices], labelled, flow_uv)


def cut_part(batch_size: int, part: tuple[int, int]) -> slice:
    """Places in a batch of the part (number, count); `count` must divide `batch_size`."""
    number, count = part
    assert batch_size % count == 0
    return slice(number * batch_size // count, (number + 1) * batch_size // count)


def typical_confidence(labels: LabelStore) -> float:
    """Mean confidence of all labels, in (0, 1]; 1 where there are none."""
    return float(np.mean(labels.scores, dtype=np.float64)) or 1.0 if len(labels.scores) else 1.0


def read_labels(labels: LabelStore, rows: np.ndarray, *, trusted: float = 1.0) -> RawLabels:
    """Labels of frames `rows` (B,), in that order.

    trusted: confidence from which on a label counts in full, below it in proportion. A confidence ranks labels; as a
    weight it stands against the background's, which is 1: where all labels are unsure, the network would learn that
    nothing is an object.
    """
    starts, stops = np.searchsorted(labels.rows, rows), np.searchsorted(labels.rows, rows, side="right")
    index = np.concatenate([np.arange(start, stop) for start, stop in zip(starts, stops, strict=True)])
    height, width = labels.size
    bits = np.unpackbits(labels.packed[index], axis=1, count=height * width)
    weights = np.minimum(labels.scores[index] / np.float32(trusted), np.float32(1))
    return RawLabels(bits.reshape(-1, height, width).view(bool), weights, stops - starts)


def read_flow(optical_flow: FlowStore, rows: np.ndarray) -> np.ndarray:
    """(B, H, W, 2) float32 true motion of frames `rows` (B,), each to the next, in that order; all must be stored."""
    places = np.searchsorted(optical_flow.rows, rows)
    return np.asarray(optical_flow.flow_uv[places], np.float32)


def _paste(
    store: FrameStore,
    labels: LabelStore,
    rows: np.ndarray,
    draws: list[Augmentation],
    rng: np.random.Generator,
    own: slice,
    *,
    trusted: float,
) -> tuple[np.ndarray, RawLabels]:
    """Frames and labels of the images `own` of the batch of `rows` (B,), augmented, with objects of others in them.

    What is pasted comes from the whole batch, and is drawn for all of it, so that any part draws the same; of the
    frames only those are read that have a part in `own`.
    """
    found = read_labels(labels, rows, trusted=trusted)
    areas = np.count_nonzero(found.masks, axis=(1, 2))  # augmentation moves pixels and keeps their number
    pastes = draw_pastes(areas, found.scores, found.counts, store.size, rng)
    images = np.repeat(np.arange(len(rows)), found.counts)
    sources = {int(images[paste.source]) for drawn in pastes[own] for paste in drawn}
    needed = sorted(sources.union(range(*own.indices(len(rows)))))
    frames = np.empty((len(rows), *store.size, 3), np.uint8)
    frames[needed] = store.gather(rows[needed])
    _augment([frames], found, None, {image: draws[image] for image in needed})
    pasted = RawLabels(*paste_objects(frames, found.masks, found.scores, found.counts, pastes, own))
    return frames[own], pasted


def _augment(
    views: list[np.ndarray], labels: RawLabels | None, flow_uv: np.ndarray | None, draws: Mapping[int, Augmentation]
) -> None:
    """Augment the frames, masks and motion of each sample that there is a draw for alike, in place."""
    ends = np.cumsum(labels.counts) if labels is not None else ()
    for sample, augmentation in draws.items():
        for view in views:
            view[sample] = augmentation.frames(view[sample])
        if labels is not None:
            own = slice(ends[sample] - labels.counts[sample], ends[sample])
            labels.masks[own] = augmentation.masks(labels.masks[own])
        if flow_uv is not None:
            flow_uv[sample] = augmentation.optical_flow(flow_uv[sample])


@lru_cache(maxsize=4)
def _permutation(count: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng((seed, _ORDER, epoch)).permutation(count)
