"""Which frames the evaluate stage looks at: those of a split with ground truth, else a sample of all clips."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tasks.clips import ClipEntry, ClipReader, annotated_frames
from tasks.errors import DataError
from tasks.files import read_json
from tasks.gallery import spread

UNLABELLED_FRAMES = 240
"""Looked at where there is no truth: enough for shares and means, and a minute's work on a CPU."""
_SPLITS = ("train", "val", "test")
_TRAINED_ON = "videos of the train split are among these: what was learnt from, labels or not, is scored here"
_NOT_EXHAUSTIVE = "not every object is labelled: AP takes what else is found for wrong, best match does not"


@dataclass(frozen=True)
class Choice:
    """frames: the chosen indices of each clip, ascending. note: what a reader of the figures must know, or None."""

    split: str
    has_truth: bool
    frames: list[tuple[ClipEntry, list[int]]]
    note: str | None = None

    @property
    def images(self) -> int:
        return sum(len(indices) for _, indices in self.frames)


def read_splits(path: Path) -> dict[str, str]:
    """clip_id -> split, as the pairs stage wrote it. Raises DataError."""
    document = read_json(path)
    if not isinstance(document, dict) or not all(split in _SPLITS for split in document.values()):
        raise DataError(f"{path} does not name a split for each clip: run the pairs stage again (`dvc repro pairs`)")
    return document


def choose_frames(clips: Sequence[ClipEntry], splits: Mapping[str, str], wanted: str, max_images: int | None) -> Choice:
    """Frames of the `wanted` split (or "all") that have truth; where it has none, of val, of train, of test; where
    nothing has any, neighbouring frames from all over the clips that nothing was learnt from, or else all clips.
    """
    known = [clip for clip in clips if clip.truth]
    for split in dict.fromkeys((wanted, "val", "train", "test")):
        chosen = [clip for clip in known if split in ("all", splits.get(clip.clip_id))]
        if chosen:
            note = f"the {wanted} split has no ground truth: these are scores of the {split} split"
            notes = [] if split == wanted else [note]
            if any(splits.get(clip.clip_id) == "train" for clip in chosen):
                notes.append(_TRAINED_ON)
            if not all(clip.exhaustive for clip in chosen):
                notes.append(_NOT_EXHAUSTIVE)
            return Choice(split, True, _thin(chosen, max_images), "; ".join(notes) or None)
    note = "no clip has ground truth: nothing can be scored, label-free figures only"
    kept_out = [clip for clip in clips if splits.get(clip.clip_id) in ("val", "test")]
    looked_at, split = (kept_out, "val, test") if kept_out else (clips, "all")
    return Choice(split, False, neighbours(looked_at, max_images or UNLABELLED_FRAMES), note)


def _thin(clips: Sequence[ClipEntry], max_images: int | None) -> list[tuple[ClipEntry, list[int]]]:
    """The frames that have truth, or evenly spaced ones of them."""
    known = [(clip, _annotated(clip)) for clip in clips]
    total = sum(len(indices) for _, indices in known)
    if max_images is None or total <= max_images:
        return known
    lengths = [len(indices) for _, indices in known]
    chosen = _by_clip(clips, spread(total, max_images), lengths)
    frames = {clip.clip_id: indices for clip, indices in known}
    return [(clip, [frames[clip.clip_id][place] for place in places]) for clip, places in chosen]


def _annotated(clip: ClipEntry) -> list[int]:
    """Opens the archive only where some frames have no truth; one that is broken is evaluated and set aside later."""
    if clip.annotated_frames < clip.frames:
        with contextlib.suppress(DataError), ClipReader(clip.path) as reader:
            return list(annotated_frames(reader.info))
    return list(range(clip.frames))


def neighbours(clips: Sequence[ClipEntry], most: int) -> list[tuple[ClipEntry, list[int]]]:
    """Evenly spaced frames, each with the one after it, so that consistency over time can be judged."""
    starts = [max(clip.frames - 1, 1) for clip in clips]
    chosen = _by_clip(clips, spread(sum(starts), max(1, most // 2)), starts)
    both = [
        (clip, sorted({i + step for i in found for step in (0, 1) if i + step < clip.frames})) for clip, found in chosen
    ]
    return [(clip, indices) for clip, indices in both if indices]


def _by_clip(
    clips: Sequence[ClipEntry], positions: Sequence[int], lengths: Sequence[int]
) -> list[tuple[ClipEntry, list[int]]]:
    """Positions in all clips laid end to end, as indices into each; clips without any are left out."""
    found: list[tuple[ClipEntry, list[int]]] = []
    offset = 0
    for clip, length in zip(clips, lengths, strict=True):
        indices = [position - offset for position in positions if offset <= position < offset + length]
        offset += length
        if indices:
            found.append((clip, indices))
    return found
