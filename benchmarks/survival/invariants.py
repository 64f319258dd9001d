"""What must hold after every kill (`inspect`) and once the service has come to rest (`inspect_rest`)."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks.survival.farm import Farm, wait_until
from benchmarks.survival.victims import describe
from tasks import library, model_store, tracking
from tasks.clips import ClipReader, open_clips
from tasks.errors import MosisError
from tasks.files import TEMPORARY_PREFIX, read_json
from tasks.history import run_git

KINDS = ("lost", "doubled", "torn", "hung", "orphans")
_DONE_S = 1500.0
_RUNS_END_S = 420.0
"""The watchdogs' 90 s for a run without a heartbeat and 240 s for one that never started, and some."""


@dataclass(frozen=True)
class Finding:
    """kind: one of KINDS. text: what was seen, without folders of this machine."""

    kind: str
    text: str


class Inspector:
    """Of one farm; remembers which commit it has seen whole, so that nothing is read twice."""

    def __init__(self, farm: Farm) -> None:
        self.farm = farm
        self.champions: list[str] = []
        self._archived: set[str] = set()
        self._read: set[str] = set()

    def inspect(self) -> list[Finding]:
        """At any moment, whatever runs: what git names is there once and whole, and there is a champion."""
        return [*self._commits(), *self._entries(), *self._archives(), *self._champion()]

    def inspect_rest(self) -> list[Finding]:
        """Wait until all is done, and look for what is left over. The service is up."""
        farm = self.farm
        wait_until(lambda: farm.waiting() <= len(library.read_rejected(farm.workspace)), _DONE_S, every_s=1)
        missing = sorted(farm.dropped.keys() - set(library.done_videos(farm.workspace)))
        found = [Finding("lost", f"{farm.dropped[video]} was never done") for video in missing]
        farm.notify()  # what a kill kept from being recorded is recorded by the next run
        wait_until(lambda: not any(self._records()), _RUNS_END_S, every_s=5)
        if not wait_until(lambda: not farm.flow_runs("RUNNING", "PENDING", "CANCELLING"), _RUNS_END_S, every_s=2):
            names = [f"{run['name']} is {run['state']['type']}" for run in farm.flow_runs("RUNNING", "PENDING")]
            found += [Finding("hung", f"in Prefect {name} for ever") for name in names]
        found += [*self._records(), *self._leftovers(), *self._status()]
        return [*found, *self.inspect()]

    def _commits(self) -> Iterator[Finding]:
        log = run_git(self.farm.workspace, "log", "--format=", "--name-only", "--", library.LIBRARY)
        counts = Counter(Path(name).stem for name in log.splitlines() if name.endswith(".dvc"))
        for video, count in counts.items():
            if count > 1:
                yield Finding("doubled", f"{self._name(video)} was committed {count} times")
            if video not in self.farm.dropped:
                yield Finding("torn", f"{video} was committed and is the content of no video")
        for one in library.read_rejected(self.farm.workspace).values():
            yield Finding("lost", f"{Path(one.source).name} was set aside: {one.reason[:200]}")

    def _entries(self) -> Iterator[Finding]:
        for folder in sorted((self.farm.workspace / library.LIBRARY).glob("[0-9a-f]*/")):
            if folder.name in self._read:
                continue
            try:
                read_whole(folder)
                self._read.add(folder.name)
            except (MosisError, OSError, KeyError) as error:
                yield Finding("torn", f"library/{folder.name} does not pass its reader: {str(error)[-200:]}")

    def _archives(self) -> Iterator[Finding]:
        """The remote has all that git names, byte for byte; of a folder only where the remote is one."""
        store = self.farm.home / ".local" / "share" / "mosis" / "dvc" / "files" / "md5"
        for video in library.done_videos(self.farm.workspace):
            if video in self._archived or self.farm.environment.get("AWS_ENDPOINT_URL"):
                continue
            text = run_git(self.farm.workspace, "show", f"HEAD:{library.LIBRARY}/{video}.dvc")
            wrong = missing_objects(store, yaml.safe_load(text)["outs"][0]["md5"])
            if wrong:
                yield Finding("torn", f"{self._name(video)}: the remote lacks {', '.join(wrong[:3])}")
            else:
                self._archived.add(video)

    def _champion(self) -> Iterator[Finding]:
        """The alias leads to a version that can be loaded; `champions` has them in the order in which they were."""
        try:
            with tracking_at(self.farm):
                champion = tracking.find_champion(self.farm.workspace)
                if champion is None:
                    yield Finding("torn", "no version is the champion any more")
                elif champion.version not in self.champions[-1:]:
                    uri = f"models:/{tracking.REGISTERED_NAME}/{champion.version}"
                    with model_store.fetch(uri, self.farm.workspace, device="cpu"):
                        self.champions.append(champion.version)
        except MosisError as error:
            if self.farm.is_up():
                yield Finding("torn", f"the champion cannot be loaded: {str(error)[-200:]}")

    def _records(self) -> Iterator[Finding]:
        """Each video stands in one run of MLflow, and no run there goes on without a process."""
        with tracking_at(self.farm):
            client = tracking.connect(self.farm.workspace)
            experiments = [one.experiment_id for one in client.search_experiments()]
            runs = client.search_runs(experiments)
        for run in runs:
            if run.info.status == "RUNNING":
                yield Finding("hung", f"in MLflow the run {run.info.run_name} is RUNNING for ever")
        done = [run for run in runs if run.data.tags.get("stage") == "new-video" and run.info.status == "FINISHED"]
        counts = Counter(video for run in done for video in run.data.tags.get("video_ids", "").split(",") if video)
        for video, count in counts.items():
            if count > 1:
                yield Finding("doubled", f"{self._name(video)} stands in {count} runs of MLflow")
        for video in sorted(self.farm.dropped.keys() - counts.keys()):
            yield Finding("lost", f"{self._name(video)} is in no run of MLflow")

    def _leftovers(self) -> Iterator[Finding]:
        """Nothing half-written lies about, in the workspace, the remote or among the temporary files."""
        for place in (self.farm.workspace, self.farm.home):
            for path in place.rglob(f"{TEMPORARY_PREFIX}*"):
                yield Finding("torn", f"{path.relative_to(place)} was left")
        for path in (self.farm.base / "tmp").glob("mosis-*"):
            yield Finding("torn", f"{path.name[:-8]}* was left among the temporary files")
        if (self.farm.workspace / ".git" / "index.lock").exists():
            yield Finding("hung", "git's index.lock was left")

    def _status(self) -> Iterator[Finding]:
        targets = [f"{library.LIBRARY}/{video}.dvc" for video in library.done_videos(self.farm.workspace)]
        said = self.farm.run([sys.executable, "-m", "dvc", "status", "--json", *targets], check=False)
        changed = said.stdout.strip() if said.returncode == 0 else said.stderr[-300:]
        if targets and changed != "{}":
            yield Finding("torn", f"dvc status: {changed[:300]}")
        if left := run_git(self.farm.workspace, "status", "--porcelain", "--", library.LIBRARY):
            yield Finding("torn", f"git status: {left.splitlines()[0][:200]}")
        fsck = subprocess.run(
            ["git", "fsck", "--no-dangling"], cwd=self.farm.workspace, capture_output=True, text=True, check=False
        )
        if fsck.returncode != 0:
            yield Finding("torn", f"git fsck: {fsck.stderr[-200:]}")

    def _name(self, video: str) -> str:
        return self.farm.dropped.get(video, video)


def inspect_end(farm: Farm) -> list[Finding]:
    """End the service: nothing of it lives on, and nothing changes any more."""
    farm.down()
    found = [Finding("orphans", f"outlived `mosis down`: {describe(one)}") for one in farm.processes()]
    before = newest_change(farm.workspace)
    time.sleep(2)
    if newest_change(farm.workspace) != before:
        found.append(Finding("orphans", "something writes into the workspace after `mosis down`"))
    return found


def newest_change(folder: Path) -> float:
    newest = 0.0
    for parent, _, names in os.walk(folder):
        for name in [".", *names]:
            with contextlib.suppress(OSError):
                newest = max(newest, os.lstat(os.path.join(parent, name)).st_mtime)
    return newest


def read_whole(folder: Path) -> None:
    """Every file of an entry through its reader. Raises MosisError, OSError or KeyError where one is torn."""
    entry = library.read_entry(folder)
    frames = 0
    for clip in open_clips(folder / "clips"):
        with ClipReader(clip.path) as reader:
            frames += sum(1 for _ in reader.frames())
    coco, ytvis, _ = (read_json(folder / "labels" / name) for name in ("coco.json", "ytvis.json", "summary.json"))
    if (frames, len(coco["images"]), len(coco["annotations"])) != (entry.frames, entry.frames, entry.annotations):
        raise KeyError(f"{frames} frames and {len(coco['annotations'])} annotations are not those of entry.json")
    if len(ytvis["videos"]) != entry.clips:
        raise KeyError("ytvis.json has other clips than entry.json")


def missing_objects(store: Path, md5: str) -> list[str]:
    """Of a version of a folder by DVC, what `store` lacks or holds with other bytes."""
    wrong = [] if _is_whole(store, md5) else [md5]
    if wrong:
        return wrong
    listing: list[dict[str, Any]] = json.loads((store / md5[:2] / md5[2:]).read_text())
    return [one["md5"] for one in listing if not _is_whole(store, one["md5"])]


def _is_whole(store: Path, md5: str) -> bool:
    try:
        content = (store / md5[:2] / md5[2:]).read_bytes()
    except OSError:
        return False
    return hashlib.md5(content, usedforsecurity=False).hexdigest() == md5.removesuffix(".dir")


@contextlib.contextmanager
def tracking_at(farm: Farm) -> Iterator[None]:
    """This process' MLflow is the farm's."""
    before = os.environ.get("MLFLOW_TRACKING_URI")
    os.environ["MLFLOW_TRACKING_URI"] = farm.tracking_uri()
    try:
        yield
    finally:
        os.environ.pop("MLFLOW_TRACKING_URI")
        if before is not None:
            os.environ["MLFLOW_TRACKING_URI"] = before


def order_of(farm: Farm) -> list[str]:
    """Names of the done videos in the order of their commits."""
    log = run_git(farm.workspace, "log", "--reverse", "--format=", "--name-only", "--", library.LIBRARY)
    return [farm.dropped.get(Path(name).stem, name) for name in log.splitlines() if name.endswith(".dvc")]
