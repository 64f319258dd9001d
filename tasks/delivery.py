"""Labels in a store: made whole on this machine, then sent file by file, so that whoever finds summary.json has all."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import fsspec

from tasks.errors import MosisError, ParamsError, SourceError, StorageError
from tasks.label import OURS, Labelled, label_sources, parse_summary
from tasks.model_store import LoadedModel
from tasks.sources import stores
from tasks.sources.places import fill_in, hide_credentials, is_local, join_url, refuse_credentials

T = TypeVar("T")

_LAST = "summary.json"
"""There only when all else is; removed before any of it changes."""
_PROBE = ".mosis-probe"
_BYTES_A_BEAT = 4 * 2**20


class StoreFolder:
    """A folder at an fsspec URL, to write to. shown: its URL without credentials.

    Raises SourceError where the URL holds a password or cannot be written to, StorageError where its store fails.
    """

    def __init__(self, url: str) -> None:
        refuse_credentials(url)
        self.shown = hide_credentials(url).rstrip("/")
        self._url = fill_in(url)
        protocol = self._url.partition("://")[0].partition("::")[0]
        if protocol == "memory":
            raise SourceError(f"{self.shown}: ends with this process: name a folder or a store that lasts")
        if protocol not in fsspec.available_protocols():
            raise SourceError(f"{self.shown}: {protocol} is no kind of store that is known: write s3://, gs://, ...")

    def names(self) -> list[str]:
        """Files below it, relative; none where there is no such folder yet."""

        def work(beat: stores.Beat) -> list[str]:
            filesystem, root = fsspec.core.url_to_fs(self._url)
            filesystem.invalidate_cache()
            beat(10)
            with contextlib.suppress(FileNotFoundError):
                # A name that ends in a slash stands for a folder itself, as some tools make them.
                found = [str(name) for name in filesystem.find(root) if not str(name).endswith("/")]
                return [name.removeprefix(root).lstrip("/") for name in found]
            return []

        return self._persist("", work)

    def fetch(self, name: str, target: Path) -> None:
        stores.fetch(join_url(self._url, name), f"{self.shown}/{name}", target)

    def send(self, name: str, path: Path) -> None:
        """Write a file whole, of the size that it has here."""
        size = path.stat().st_size

        def work(beat: stores.Beat) -> None:
            filesystem, target = fsspec.core.url_to_fs(join_url(self._url, name))
            beat(1 + size / _BYTES_A_BEAT)
            filesystem.put_file(str(path), target)
            beat()
            filesystem.invalidate_cache()
            if (came := filesystem.info(target)["size"]) != size:
                raise ConnectionError(f"{came} of {size} bytes came")

        self._persist(name, work)

    def remove(self, name: str) -> None:
        """Nothing where it is not there."""

        def work(beat: stores.Beat) -> None:
            filesystem, target = fsspec.core.url_to_fs(join_url(self._url, name))
            beat()
            with contextlib.suppress(FileNotFoundError):
                filesystem.rm_file(target)

        self._persist(name, work)

    def _persist(self, name: str, work: Callable[[stores.Beat], T]) -> T:
        shown = f"{self.shown}/{name}" if name else self.shown
        return stores.persist(self._url, shown, work, setting="--out", verb="written")


def label_to_store(
    sources: Sequence[str], model: LoadedModel, store: StoreFolder, *, image_rate_hz: float | None = None
) -> Labelled:
    """`label_sources` into a store, which is looked at and written to before the work begins.

    Raises as `label_sources` and StoreFolder. Where sending fails, the message says where the labels lie whole.
    """
    there = check_store(store, sources)
    with tempfile.TemporaryDirectory(prefix="mosis-earlier-") as spool:
        earlier = None
        if {_LAST, "coco.json"} <= set(there):
            store.fetch(_LAST, Path(spool, _LAST))
            earlier = parse_summary(Path(spool, _LAST))
    made = Path(tempfile.mkdtemp(prefix="mosis-labels-"))
    try:
        labelled = label_sources(sources, model, made / "labels", image_rate_hz=image_rate_hz, earlier=earlier or {})
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise
    if not labelled.unchanged:
        try:
            deliver(made / "labels", store, there)
        except MosisError as error:
            raise StorageError(f"{error}; the labels lie whole in {made / 'labels'}") from None
    shutil.rmtree(made, ignore_errors=True)
    return labelled


def check_store(store: StoreFolder, sources: Sequence[str]) -> list[str]:
    """What lies there already. Raises ParamsError where it is no label of ours, or holds or lies in a source."""
    there = store.names()
    if "" in there:
        raise ParamsError(f"{store.shown} is a file: name a folder for the labels")
    others = sorted(name for name in there if name.split("/")[0] not in {*OURS, _PROBE})
    if others:
        raise ParamsError(f"{store.shown} holds {others[0]!a}, which is no label: name a new folder or an empty one")
    for source in sources:
        shown = hide_credentials(source).rstrip("/")
        if not is_local(source) and f"{shown}/".startswith(f"{store.shown}/"):
            raise ParamsError(f"{store.shown}: the source {shown} lies in it: name another folder")
        if not is_local(source) and store.shown.startswith(f"{shown}/"):
            raise ParamsError(f"{store.shown}: lies in the source {shown}: name another folder")
    with tempfile.NamedTemporaryFile(prefix="mosis-probe-") as empty:
        store.send(_PROBE, Path(empty.name))  # no hour of labelling for a store that takes nothing
    store.remove(_PROBE)
    return there


def deliver(folder: Path, store: StoreFolder, there: Sequence[str]) -> None:
    """Put all files of `folder` in place of `there`; at no time is there a summary.json beside other files than its."""
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    store.remove(_LAST)
    for name in (name for name in there if name not in files and name != _LAST):
        store.remove(name)
    for name in sorted(files, key=lambda name: name == _LAST):
        store.send(name, files[name])


def open_target(text: str) -> Path | StoreFolder:
    """Where labels are to go: a folder of this machine, file:// too, or a store."""
    if not is_local(text):
        return StoreFolder(text)
    path = text.removeprefix("file://").removeprefix("local://")
    if not path:
        raise SourceError("--out names no folder")
    return Path(path)
