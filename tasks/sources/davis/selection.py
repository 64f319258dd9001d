"""Which sequences are wanted, which split each belongs to, and which of its objects count as one."""

from __future__ import annotations

import difflib
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from tasks.errors import DataError, SourceError
from tasks.files import TEMPORARY_PREFIX, parse_json
from tasks.sources.davis.layouts import Folders, Listing, Sequences, Unusable
from tasks.sources.loading import read_bytes
from tasks.sources.params import DavisParams
from tasks.sources.places import IMAGE_SUFFIXES, Place, list_files, natural_key, open_local

_MAX_LIST_BYTES = 16 * 2**20
_IMAGE_SET = re.compile(r"ImageSets/(?:([^/]+)/)?([^/]+)\.txt")
_NAMES_SHOWN = 5

Groups = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Selected:
    """split: as in ClipInfo."""

    folders: Folders
    split: str | None


def select(
    sequences: Sequences, listing: Listing, settings: DavisParams, shown: str, unusable: list[Unusable]
) -> list[Selected]:
    """The sequences of the split, of the list and of the names that the settings ask for.

    Raises SourceError where a split, a file or a name is not there; what is wrong in the dataset goes to `unusable`.
    """
    sets = _find_image_sets(listing, sequences.resolution, settings.split)
    lists = dict(_read_lists(sets, settings.split, unusable))
    chosen = [Selected(one, one.split or _split_of(one.name, lists)) for one in sequences.folders]
    known = {one.name for one in sequences.folders}
    if settings.split is not None:
        wanted = settings.split.rpartition("/")[2]
        if wanted in lists:
            _note_absent(lists[wanted], known, sets[wanted].shown, unusable)
            chosen = [one for one in chosen if one.folders.name in set(lists[wanted])]
        elif any(one.folders.split for one in chosen) and wanted in ("train", "val", "test"):
            chosen = [one for one in chosen if one.folders.split == wanted]
        else:
            there = ", ".join(_name_image_sets(listing)) or "none"
            raise SourceError(f"{shown}: no list of a split {settings.split}: there are: {there} (ingest.davis.split)")
    if settings.list is not None:
        place = _find_file(settings.list, "list")
        names = _read_names(place)
        _note_absent(names, known, place.shown, unusable)
        chosen = [one for one in chosen if one.folders.name in set(names)]
    for name in settings.sequences:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0) or ["none"]
            raise SourceError(f"{shown}: no sequence {name}: did you mean {near[0]}? (ingest.davis.sequences)")
    if settings.sequences:
        chosen = [one for one in chosen if one.folders.name in settings.sequences]
    if not chosen:
        raise SourceError(f"{shown}: no sequence is left of {len(known)}: widen ingest.davis.split, list or sequences")
    return chosen


def read_groups(path: str | None, sequences: Sequences, unusable: list[Unusable]) -> Mapping[str, Groups]:
    """Sequence -> groups of ids that count as one object, from JSON. Raises SourceError where it is not such a file."""
    if path is None:
        return {}
    place = _find_file(path, "motion_groups")
    try:
        document = parse_json(_read(place), name=place.shown)
    except DataError as error:
        raise SourceError(str(error)) from None
    if not isinstance(document, dict) or not all(map(_are_groups, document.values())):
        raise SourceError(
            f"{place.shown}: expected sequence -> list of groups of ids, no id in two groups, as in "
            '{"dogs-jump": [[1, 2]]} (ingest.davis.motion_groups)'
        )
    _note_absent(document, {one.name for one in sequences.folders}, place.shown, unusable)
    return {name: tuple(tuple(group) for group in groups) for name, groups in document.items()}


def _are_groups(value: Any) -> bool:
    if not isinstance(value, list) or not all(isinstance(group, list) for group in value):
        return False
    ids = [one for group in value for one in group]
    return all(type(one) is int and one > 0 for one in ids) and all(value) and len(set(ids)) == len(ids)


def _find_image_sets(listing: Listing, resolution: str | None, split: str | None) -> dict[str, Place]:
    """Lists by name, of one folder of ImageSets: the one that the split names, else of the resolution, else the newest.

    DAVIS 2016 has a folder a resolution, DAVIS 2017 one a year.
    """
    folders: dict[str, dict[str, Place]] = {}
    for path, place in listing.files.items():
        if found := _IMAGE_SET.fullmatch(path):
            folders.setdefault(found[1] or "", {})[found[2]] = place
    folder, _, name = (split or "").rpartition("/")
    names = {name} if name else {"train", "val"}
    fitting = [one for one, lists in folders.items() if names & set(lists) and folder in ("", one)]
    if not fitting:
        return {}
    return folders[resolution if resolution in fitting else max(fitting, key=natural_key)]


def _name_image_sets(listing: Listing) -> list[str]:
    found = [_IMAGE_SET.fullmatch(path) for path in listing.files]
    return ["/".join(part for part in one.groups() if part) for one in found if one]


def _read_lists(
    sets: Mapping[str, Place], split: str | None, unusable: list[Unusable]
) -> Iterable[tuple[str, list[str]]]:
    """(name of a list, sequences in it). A broken one is set aside, unless it is the one asked for."""
    for name, place in sets.items():
        try:
            yield name, _read_names(place)
        except SourceError as error:
            if name == (split or "").rpartition("/")[2]:
                raise
            unusable.append(Unusable(place.shown, str(error)))


def _split_of(name: str, lists: Mapping[str, Sequence[str]]) -> str | None:
    """train, val or test by the list that has the sequence; test-dev and the like are test."""
    for split in ("train", "val"):
        if name in lists.get(split, ()):
            return split
    return "test" if any(name in names for key, names in lists.items() if key.startswith("test")) else None


def _read_names(place: Place) -> list[str]:
    """Sequences, one a line; DAVIS 2016 has a line a frame: /JPEGImages/480p/bear/00000.jpg /Annotations/... .

    They are looked up among those that are there and never opened as paths.
    """
    try:
        lines = _read(place).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise SourceError(f"{place.shown}: not a list of names in UTF-8") from None
    names = []
    for line in lines:
        name = line.strip()
        if "/" in name:
            path = PurePosixPath(name.split()[0])
            name = path.parent.name if path.suffix.lower() in IMAGE_SUFFIXES else path.name
        if name:
            names.append(name)
    return list(dict.fromkeys(names))


def _note_absent(names: Iterable[str], known: set[str], shown: str, unusable: list[Unusable]) -> None:
    absent = [name for name in names if name not in known]
    if absent:
        some = ", ".join(absent[:_NAMES_SHOWN]) + (", ..." if len(absent) > _NAMES_SHOWN else "")
        unusable.append(Unusable(shown, f"names {len(absent)} sequences that are not there: {some}"))


def _find_file(url: str, key: str) -> Place:
    places = list_files(url)
    if len(places) != 1:
        raise SourceError(f"{url}: a folder where a file is expected (ingest.davis.{key})")
    return places[0]


def _read(place: Place) -> bytes:
    """Raises SourceError where it cannot be read or is larger than a list of names can be."""
    with tempfile.TemporaryDirectory(prefix=TEMPORARY_PREFIX) as folder, open_local(place, Path(folder)) as path:
        return read_bytes(path, place.shown, _MAX_LIST_BYTES)
