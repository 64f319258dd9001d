"""Where the frames and masks of each dataset lie, as a table; which of them lies at a URL."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import fsspec

from tasks.clips import ClipEntry
from tasks.errors import SourceError
from tasks.sources.davis.truth import MaskFile, Meaning
from tasks.sources.params import DavisParams
from tasks.sources.places import (
    IMAGE_SUFFIXES,
    Place,
    fill_in,
    hide_credentials,
    is_local,
    list_files,
    natural_key,
)

MASK_SUFFIXES = (".png", ".ppm", ".bmp", ".pgm")
"""Where a frame has two, the first counts: of FBMS-59's colours and greys, the greys merge objects."""

_MAX_DIGITS = 9
_PARTS = {
    "resolution": r"(?P<resolution>\d+p|Full-Resolution)",
    "annotations": r"(?P<annotations>(?!JPEGImages/|ImageSets/)[^/]+)",
    "sequence": r"(?P<sequence>[^/]+)",
    "object": r"(?P<object>[^/]+)",
    "file": r"(?P<file>[^/]+)",
    "set": r"(?P<set>train|valid|test)(?:_all_frames)?",
    "trial": r"(?:[^/]+/)?(?P<set>Trainingset|Testset)",
}
_SPLITS = {"train": "train", "Trainingset": "train", "valid": "val", "test": "test", "Testset": "test"}


@dataclass(frozen=True)
class Layout:
    """One row of the table.

    frames, masks: paths below the root; `<name>` stands for a part of the path, [...] for what may be left out.
    rate_hz: of consecutive frame numbers, None where the user must say. meaning: of the values in a mask picture.
    """

    name: str
    frames: str
    masks: str
    rate_hz: float | None
    meaning: Meaning = Meaning.IDS


LAYOUTS = (
    Layout("davis", "JPEGImages/<resolution>/<sequence>/<file>", "<annotations>/<resolution>/<sequence>/<file>", 24.0),
    Layout("flat", "<sequence>/JPEGImages/<file>", "<sequence>/<annotations>/<file>", 24.0),
    Layout("plain", "JPEGImages/<sequence>/<file>", "Annotations/<sequence>/<file>", None),
    Layout(
        "segtrack_v2", "JPEGImages/<sequence>/<file>", "GroundTruth/<sequence>/[<object>/]<file>", None, Meaning.OBJECT
    ),
    Layout("fbms", "<trial>/<sequence>/<file>", "<trial>/<sequence>/GroundTruth/<file>", None, Meaning.REGIONS),
    # Released at 30 Hz, every fifth frame or all of them, and numbered as in the video.
    Layout("youtube_vos", "[<set>/]JPEGImages/<sequence>/<file>", "[<set>/]Annotations/<sequence>/<file>", 30.0),
)


@dataclass(frozen=True)
class Unusable:
    """A job that only fails: what listing found unusable is set aside with its reason, and the rest goes on."""

    source: str
    reason: str

    def run(self, folder: Path) -> list[ClipEntry]:
        raise SourceError(self.reason)


@dataclass(frozen=True)
class Listing:
    """All files below the root by their path relative to it, in natural order, and what had to be left out of it."""

    files: Mapping[str, Place]
    unusable: tuple[Unusable, ...]


@dataclass
class Folders:
    """One sequence. frames: by name without suffix. masks: (object's folder, file). split: of its part of the set."""

    name: str
    split: str | None
    frames: dict[str, Place] = field(default_factory=dict)
    masks: list[tuple[str | None, Place]] = field(default_factory=list)

    def masks_by_frame(self, stems: Sequence[str]) -> dict[int, tuple[MaskFile, ...]]:
        """Index in `stems` -> its mask files: of the same name, else the one whose number is that of the frame."""
        by_name = {stem: index for index, stem in enumerate(stems)}
        numbers = [last_number(stem) for stem in stems]
        counts = Counter(numbers)
        by_number = {n: index for index, n in enumerate(numbers) if n is not None and counts[n] == 1}
        objects = sorted({name for name, _ in self.masks}, key=lambda name: natural_key(name or ""))
        found: dict[tuple[int, int], Place] = {}
        for name, place in sorted(self.masks, key=lambda mask: MASK_SUFFIXES.index(mask[1].suffix)):
            stem = PurePosixPath(place.shown).stem
            index = by_name.get(stem, by_number.get(-1 if (number := last_number(stem)) is None else number))
            if index is not None:
                found.setdefault((index, objects.index(name) + 1), place)
        files: dict[int, list[MaskFile]] = {}
        for (index, object_id), place in sorted(found.items()):
            files.setdefault(index, []).append(MaskFile(place, object_id))
        return {index: tuple(group) for index, group in files.items()}


@dataclass(frozen=True)
class Sequences:
    layout: Layout
    resolution: str | None
    folders: tuple[Folders, ...]


def list_dataset(url: str) -> Listing:
    """Every file below the root. Links that lead out of a local root are left out and named."""
    places = list_files(url)
    full = fill_in(url).partition("::")[0]
    protocol = "file" if is_local(full) else full.partition("://")[0]
    strip = fsspec.get_filesystem_class(protocol)._strip_protocol
    root = str(strip(full))
    paths = {str(strip(place.url.partition("::")[0])): place for place in places}
    outside = _find_outside(root, list(paths)) if protocol == "file" else set()
    files = {path[len(root) :].lstrip("/"): place for path, place in paths.items() if path not in outside}
    unusable = []
    if outside:
        shown = paths[min(outside)].shown
        reason = f"{len(outside)} links lead out of the dataset, {shown} first: copy what they point to into it"
        unusable.append(Unusable(hide_credentials(url), reason))
    return Listing(files, tuple(unusable))


def gather(listing: Listing, settings: DavisParams, shown: str) -> Sequences:
    """The sequences that have frames. Raises SourceError where the layout or the resolution is not clear."""
    layout = _recognise(listing.files, settings.layout, shown)
    frames = list(filter(_has_frame, _match(layout.frames, listing.files)))
    masks = list(filter(_has_mask, _match(layout.masks, listing.files)))
    resolution = _choose("resolution", settings.resolution, "480p", frames, shown)
    frames = [one for one in frames if one[0].get("resolution") == resolution]
    masks = [one for one in masks if one[0].get("resolution") == resolution]
    annotations = _choose("annotations", settings.annotations, "Annotations", masks, shown)
    masks = [one for one in masks if one[0].get("annotations") == annotations]
    folders: dict[tuple[str | None, str], Folders] = {}
    for parts, place in frames:
        split = _SPLITS.get(parts.get("set") or "")
        one = folders.setdefault((split, parts["sequence"] or ""), Folders(parts["sequence"] or "", split))
        one.frames.setdefault(PurePosixPath(parts["file"] or "").stem, place)
    for parts, place in masks:
        if known := folders.get((_SPLITS.get(parts.get("set") or ""), parts["sequence"] or "")):
            known.masks.append((parts.get("object"), place))
    return Sequences(layout, resolution, tuple(folders.values()))


def last_number(stem: str) -> int | None:
    """The last number in a file's name: None where there is none, or none that can count frames."""
    digits = re.findall(r"[0-9]+", stem)
    return int(digits[-1]) if digits and len(digits[-1]) <= _MAX_DIGITS else None


def _recognise(files: Mapping[str, Place], wanted: str | None, shown: str) -> Layout:
    """The layout that has frames there; of several, the one that has masks as well."""
    present = [
        layout
        for layout in LAYOUTS
        if wanted in (None, layout.name) and any(_has_frame(one) for one in _match(layout.frames, files))
    ]
    if len(present) > 1:
        present = [layout for layout in present if any(True for _ in _match(layout.masks, files))] or present
    if not present:
        looked_for = ", ".join(layout.frames for layout in LAYOUTS if wanted in (None, layout.name))
        raise SourceError(f"{shown}: no frames at {looked_for}: give the root of the dataset (ingest.sources)")
    if len(present) > 1:
        names = " or ".join(layout.name for layout in present)
        raise SourceError(f"{shown}: its folders may be {names}: say which (ingest.davis.layout)")
    return present[0]


_Match = tuple[dict[str, str | None], Place]


def _match(pattern: str, files: Mapping[str, Place]) -> Iterable[_Match]:
    """(parts of the path by name, file) of those that lie where the pattern says."""
    open_parts = pattern.replace("[", "(?:").replace("]", ")?")
    expression = re.compile(re.sub(r"<(\w+)>", lambda found: _PARTS[found[1]], open_parts))
    for path, place in files.items():
        if found := expression.fullmatch(path):
            yield found.groupdict(), place


def _has_frame(match: _Match) -> bool:
    return match[1].suffix in IMAGE_SUFFIXES


def _has_mask(match: _Match) -> bool:
    """FBMS-59 has drawings of how sure its annotators were beside its masks."""
    return match[1].suffix in MASK_SUFFIXES and not (match[0]["file"] or "").startswith("PROB")


def _choose(part: str, wanted: str | None, default: str, matches: Sequence[_Match], shown: str) -> str | None:
    """Which of several folders counts: None where the layout has none of this kind."""
    there = dict.fromkeys(value for parts, _ in matches if (value := parts.get(part)) is not None)
    if wanted is None:
        if default in there or not there:
            return default if there else None
        if len(there) == 1:
            return next(iter(there))
    elif wanted in there:
        return wanted
    names = ", ".join(there) or "none"
    raise SourceError(f"{shown}: which {part}? There are: {names} (ingest.davis.{part})")


def _find_outside(root: str, paths: Sequence[str]) -> set[str]:
    """Local files that are links to what does not lie below the root. Listing does not go into linked folders."""
    real_root = os.path.realpath(root)
    links = [path for path in paths if path != root and os.path.islink(path)]
    return {path for path in links if not Path(os.path.realpath(path)).is_relative_to(real_root)}
