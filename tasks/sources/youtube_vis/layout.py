"""Where a release keeps its annotation files and frames: the layouts of 2019 and 2021, and single files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath

import fsspec

from tasks.errors import SourceError
from tasks.sources.params import YoutubeVisParams
from tasks.sources.places import Place, fill_in, hide_credentials, join_url, split_chain
from tasks.sources.stores import Beat, persist

SPLITS = ("train", "valid", "test")


@dataclass(frozen=True)
class AnnotationFile:
    """images, all_images: the folders that file names start from, in the release of every fifth frame and of all."""

    place: Place
    images: Place
    all_images: Place
    split: str | None


def find_files(url: str, settings: YoutubeVisParams) -> list[AnnotationFile]:
    """The annotation files at `url`. Raises SourceError where one that is asked for is not there."""
    if split_chain(url)[1].lower().endswith(".json"):
        return [_locate(url)]
    wanted = settings.splits
    if wanted is None and settings.split is not None:
        wanted = ("train",)
    files = []
    for split in dict.fromkeys(wanted or SPLITS):
        names = (f"{split}/instances.json", f"{split}.json")
        found = [name for name in names if exists(join_url(url, name), hide_credentials(url))]
        if len(found) > 1:
            raise SourceError(f"{hide_credentials(url)}: has {found[0]} and {found[1]}: name the one that is meant")
        if wanted is not None and not found:
            raise SourceError(
                f"{hide_credentials(url)}: has neither {names[0]} nor {names[1]}: check the root (ingest.sources)"
            )
        files += [_locate(join_url(url, name)) for name in found]
    if not files:
        raise SourceError(
            f"{hide_credentials(url)}: has neither train.json nor train/instances.json, nor those of valid or test: "
            "give the root of a YouTube-VIS release or one of its JSON files (ingest.sources)"
        )
    return files


def check_there(folder: Place, what: str) -> None:
    """Raise SourceError where the folder does not exist."""
    if not exists(folder.url, folder.shown):
        raise SourceError(f"{folder.shown}: not found: {what} should lie there")


def exists(url: str, shown: str) -> bool:
    """Whether a file or folder is there. Raises SourceError and StorageError as `persist`, also where it may not be."""

    def work(beat: Beat) -> bool:
        filesystem, path = fsspec.core.url_to_fs(fill_in(url))
        beat()
        try:
            filesystem.info(path)
        except (FileNotFoundError, NotADirectoryError) as error:
            if error.__cause__ is not None:  # a library's translation: what it means is for `persist` to judge
                raise
            return False
        return True

    return persist(url, shown, work)


def place(url: str) -> Place:
    return Place(hide_credentials(url), url)


def _locate(url: str) -> AnnotationFile:
    """By the file's name: {split}/instances.json is of 2021, {split}.json of 2019; else frames lie beside."""
    before, head, after = split_chain(url)
    parent, _, name = head.rpartition("/")
    base = f"{parent}/" if "/" in head else "./"
    stem = PurePosixPath(name).stem
    folder = parent.rpartition("/")[2]
    if name == "instances.json" and folder in SPLITS:
        images, all_images, split = f"{base}JPEGImages", f"{parent}_all_frames/JPEGImages", folder
    elif stem in SPLITS:
        images, all_images, split = f"{base}{stem}/JPEGImages", f"{base}{stem}_all_frames/JPEGImages", stem
    else:
        beside = f"{before}{base}JPEGImages{after}"
        images = all_images = f"{base}JPEGImages" if exists(beside, hide_credentials(beside)) else base
        split = ""
    images, all_images = (before + folder + after for folder in (images, all_images))
    return AnnotationFile(place(url), place(images), place(all_images), split or None)
