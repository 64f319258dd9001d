"""The library with real git and DVC: what is in it, what counts as done, and the record of both."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from tasks import batch_record, drift, history, library, tracking, versioning
from tasks import params as parameters
from tasks.clips import write_manifest
from tasks.drift_params import DriftParams
from tasks.errors import AbsentError, BusyError, DataError, SourceError, StorageError
from tasks.files import read_json, sha256_file, write_json
from tasks.library import Entry, Rejected
from tasks.sources import open_source
from tests.clip_toy import make_clip
from tests.conftest import moving_square
from tests.service_toy import copy_workspace, git, make_home, make_workspace


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    yield from make_home(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def made(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_workspace(tmp_path_factory.mktemp("made") / "workspace", champion=False)


@pytest.fixture
def workspace(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """With a home, and so a DVC remote, of its own."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return copy_workspace(made, tmp_path / "workspace")


def make_entry(workspace: Path, content: str = "a", **changes: Any) -> Entry:
    """An entry on disk that nobody has versioned."""
    digest = hashlib.sha256(content.encode()).hexdigest()
    entry = Entry(
        video_id=digest[:16],
        sha256=digest,
        source=f"/inbox/{content}.mp4",
        bytes=1,
        arrived_at=1.0,
        clips=1,
        frames=6,
        seconds=0.25,
        annotations=0,
        tracks=0,
        model={"name": "mosis", "version": "3"},
        params={},
        code={},
        label_free={},
    )
    entry = dataclasses.replace(entry, **changes)
    folder = workspace / "library" / digest[:16]
    (folder / "clips").mkdir(parents=True)
    (folder / "clips" / "0.zip").write_text(content)
    write_json(folder / "entry.json", entry.to_json())
    return entry


def remote_files(workspace: Path) -> set[str]:
    place = Path(os.environ["HOME"], ".local/share/mosis/dvc")
    return {path.name for path in place.rglob("*") if path.is_file()}


def test_an_empty_library_has_nothing_done_and_nothing_rejected(workspace: Path) -> None:
    assert library.done_videos(workspace) == []
    assert library.done_entries(workspace) == []
    assert library.read_rejected(workspace) == {}


def test_a_version_is_in_the_remote_and_in_git_and_again_changes_nothing(workspace: Path) -> None:
    (workspace / "params.yaml").write_text((workspace / "params.yaml").read_text() + "\n# edited\n")
    (workspace / "mine.txt").write_text("staged by somebody")
    git(workspace, "add", "mine.txt")
    entry = make_entry(workspace)
    library.version_entry(workspace, entry)
    assert library.done_videos(workspace) == [entry.video_id]
    assert library.done_entries(workspace) == [library.read_entry(workspace / "library" / entry.video_id)] == [entry]
    files = git(workspace, "show", "--name-only", "--format=%s", "HEAD").split("\n")
    assert files[0] == f"Video {entry.video_id}: 6 frames labelled by mosis version 3"
    assert sorted(filter(None, files[1:])) == ["library/.gitignore", f"library/{entry.video_id}.dvc"]
    after = git(workspace, "status", "--porcelain").splitlines()
    assert {"A  mine.txt", " M params.yaml"} <= set(after)
    assert not any("library" in line for line in after)

    before = git(workspace, "rev-parse", "HEAD"), remote_files(workspace)
    library.version_entry(workspace, entry)
    assert (git(workspace, "rev-parse", "HEAD"), remote_files(workspace)) == before

    second = make_entry(workspace, "b")
    library.version_entry(workspace, second)
    assert library.done_videos(workspace) == sorted([entry.video_id, second.video_id])
    assert library.done_videos(workspace, before[0].strip()) == [entry.video_id]
    assert len((workspace / "library" / ".gitignore").read_text().splitlines()) == 2


def test_one_more_is_versioned_without_reading_the_others(workspace: Path) -> None:
    """DVC would read all .dvc files for each, which with 20,000 videos takes 20 s a video; one that it cannot read
    shows whether it does."""
    library.prepare(workspace)
    (workspace / "library" / f"{'0' * 16}.dvc").write_text("no YAML: [")
    entry = make_entry(workspace)
    library.version_entry(workspace, entry)
    assert library.done_videos(workspace) == [entry.video_id]
    assert "ingest" in versioning.changed_stages(workspace)


def test_what_git_has_can_be_pulled(workspace: Path, tmp_path: Path) -> None:
    entry = make_entry(workspace)
    library.version_entry(workspace, entry)
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", workspace, clone], check=True)
    assert library.done_videos(clone) == [entry.video_id]
    assert library.done_entries(clone) == []
    versioning.run_dvc(clone, "pull", "--quiet", f"library/{entry.video_id}.dvc")
    assert library.done_entries(clone) == [entry]
    assert (clone / "library" / entry.video_id / "clips" / "0.zip").read_text() == "a"


def test_nothing_is_done_that_the_remote_does_not_have(workspace: Path, tmp_path: Path) -> None:
    entry = make_entry(workspace)
    place = Path(os.environ["HOME"], ".local/share/mosis/dvc")
    place.parent.mkdir(parents=True)
    place.write_text("a file where the store should be")
    with pytest.raises(StorageError, match=r"dvc push: [^\n]+$"):
        library.version_entry(workspace, entry)
    assert library.done_videos(workspace) == []
    place.unlink()
    library.version_entry(workspace, entry)
    assert library.done_videos(workspace) == [entry.video_id]


@pytest.mark.parametrize("name", ["index", "HEAD", "refs/heads/{branch}"])
def test_another_git_at_work_is_busy_not_broken(workspace: Path, name: str) -> None:
    entry = make_entry(workspace)
    library.prepare(workspace)
    branch = (workspace / ".git" / "HEAD").read_text().rpartition("/")[2].strip()
    lock = workspace / ".git" / f"{name.format(branch=branch)}.lock"
    lock.write_text("")
    os.utime(lock, (time.time() + 600,) * 2)  # young, however slow this machine is
    with pytest.raises(BusyError, match="another git works here"):
        library.version_entry(workspace, entry)
    assert library.done_videos(workspace) == []

    # That git was killed, long ago as these things go: its lock would stop everything for ever.
    os.utime(lock, (time.time() - 60,) * 2)
    library.version_entry(workspace, entry)
    assert library.done_videos(workspace) == [entry.video_id]
    assert not lock.exists()


def test_the_lock_of_a_git_that_lives_is_left_alone(workspace: Path, tmp_path: Path) -> None:
    entry = make_entry(workspace)
    lock = workspace / ".git" / "index.lock"
    lock.write_text("")
    os.utime(lock, (time.time() - 60,) * 2)
    living = subprocess.Popen(["git", "cat-file", "--batch"], cwd=workspace, stdin=subprocess.PIPE)
    try:
        with pytest.raises(BusyError):
            library.version_entry(workspace, entry)
        assert lock.exists()
    finally:
        living.communicate()


def test_programs_that_are_no_git_and_gits_of_other_repositories_keep_no_lock(workspace: Path, tmp_path: Path) -> None:
    entry = make_entry(workspace)
    lock = workspace / ".git" / "index.lock"
    lock.write_text("")
    os.utime(lock, (time.time() - 60,) * 2)
    prompt, other = tmp_path / "gitstatusd", tmp_path / "other"
    prompt.symlink_to("/bin/cat")
    subprocess.run(["git", "init", "--quiet", other], check=True)
    with (
        subprocess.Popen([prompt], cwd=workspace, stdin=subprocess.PIPE),
        subprocess.Popen(["git", "cat-file", "--batch"], cwd=other, stdin=subprocess.PIPE),
    ):
        library.version_entry(workspace, entry)
    assert not lock.exists()


@pytest.mark.parametrize("revision", ["--help", "no-such-branch", "HEAD;x", ""])
def test_a_revision_that_is_none_is_named(workspace: Path, revision: str) -> None:
    with pytest.raises(DataError):
        history.committed_files(workspace, "library", revision)


@pytest.mark.parametrize(
    "changes",
    [
        {"format": 2},
        {"video_id": "0" * 16},
        {"sha256": "1" * 64},
        {"frames": "6"},
        {"model": None},
        {"surprise": 1},
        {"set_aside": 3},
    ],
)
def test_an_entry_that_is_not_ours_is_refused(workspace: Path, changes: dict[str, Any]) -> None:
    entry = make_entry(workspace)
    folder = workspace / "library" / entry.video_id
    write_json(folder / "entry.json", {**entry.to_json(), **changes})
    with pytest.raises(DataError, match="does not have the layout"):
        library.read_entry(folder)


def test_done_entries_come_in_order_of_arrival(workspace: Path) -> None:
    for content, moment in (("x", 3.0), ("y", 1.0), ("z", 2.0)):
        entry = make_entry(workspace, content, arrived_at=moment)
        library.prepare(workspace)
        (workspace / "library" / f"{entry.video_id}.dvc").write_text("outs: []\n")
        history.commit_files(workspace, [f"library/{entry.video_id}.dvc"], content)
    assert [entry.source for entry in library.done_entries(workspace)] == [f"/inbox/{name}.mp4" for name in "yzx"]


def test_a_run_that_is_taken_up_with_more_videos_names_them_all(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow died between the begin of a batch's run and its end, and another video came before the next try."""
    first = make_entry(workspace)
    library.version_entry(workspace, first)
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_artifact", refuse)
        assert batch_record.record(workspace, DriftParams()) is None
    second = make_entry(workspace, "b")
    library.version_entry(workspace, second)
    run_id = batch_record.record(workspace, DriftParams())
    assert run_id is not None
    tags = tracking.connect(workspace).get_run(run_id).data.tags
    assert set(tags["video_ids"].split(",")) == {first.video_id, second.video_id}


def test_videos_too_few_to_judge_wait_for_the_next_and_are_judged_once(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An inbox that gets a short clip at a time would never be judged."""
    own = {"label_free_empty_share": "0.1"}
    monkeypatch.setattr(batch_record, "read_version", lambda folder, version: SimpleNamespace(tags=own))
    limits = DriftParams(min_frames=10)
    came = {}
    for name, version in zip("abcdefg", "1121112", strict=True):
        entry = make_entry(workspace, name, model={"version": version}, label_free={"empty_share": 1.0})
        library.version_entry(workspace, entry)
        if name == "g":  # what does not lie here just now waits on, too
            (workspace / "library" / came["c"].video_id / "entry.json").rename(workspace / "away")
        run_id = batch_record.record(workspace, limits)
        assert run_id is not None
        came[name] = entry
        tags = tracking.connect(workspace).get_run(run_id).data.tags
        judged = [one for one in came if came[one].video_id in tags.get("drift_video_ids", "")]
        expected = {"b": ["a", "b"], "e": ["d", "e"]}.get(name, [])
        assert (judged, tags["drift"]) == (expected, "empty_share" if expected else "waits")
    (workspace / "away").rename(workspace / "library" / came["c"].video_id / "entry.json")
    library.version_entry(
        workspace, make_entry(workspace, "h", model={"version": "2"}, label_free={"empty_share": 1.0})
    )
    batch_record.record(workspace, limits)
    verdicts = drift.read_verdicts(workspace)
    assert [(one.version, one.videos, one.frames) for one in verdicts] == [("1", 2, 12), ("1", 2, 12), ("2", 3, 18)]
    assert read_json(workspace / batch_record.STATE)["waiting"] == [came["f"].video_id]


@pytest.mark.parametrize(
    ("export", "judged"), [({"score_threshold": 0.4}, True), ({"score_threshold": 0}, False), ({}, False)]
)
def test_video_labelled_from_another_score_on_is_not_judged(
    workspace: Path,
    monkeypatch: pytest.MonkeyPatch,
    export: dict[str, Any],
    judged: bool,  # noqa: FBT001
) -> None:
    own = {"label_free_empty_share": "0.1", "label_free_score_cut": "0.4"}
    monkeypatch.setattr(batch_record, "read_version", lambda folder, version: SimpleNamespace(tags=own))
    entry = make_entry(workspace, params={"export": export}, label_free={"empty_share": 1.0})
    library.version_entry(workspace, entry)
    batch_record.record(workspace, DriftParams(min_frames=1))
    assert [bool(one.alerts) for one in drift.read_verdicts(workspace)] == [judged]


def refuse(*unused: Any) -> None:
    raise MlflowException("away")


def test_what_is_set_aside_stands_once_and_broken_lines_do_no_harm(workspace: Path) -> None:
    library.reject(workspace, Rejected("/a.mp4", "aa", "broken", "code 1"))
    library.reject(workspace, Rejected("/b.mp4", "bb", "broken", "code 1"))
    path = workspace / "library" / "rejected.jsonl"
    path.write_text(path.read_text() + '{"source": 1}\nnull\n{"cut sh')
    library.reject(workspace, Rejected("/a.mp4", "aa", "still broken", "code 2"))
    assert list(library.read_rejected(workspace).values()) == [
        Rejected("/a.mp4", "aa", "still broken", "code 2"),
        Rejected("/b.mp4", "bb", "broken", "code 1"),
    ]
    assert len(path.read_text().splitlines()) == 2
    with path.open("a") as file:
        file.write('{"cut sh')
    library.reject(workspace, Rejected("/c.mp4", "cc", "broken", "code 1"))
    assert list(library.read_rejected(workspace)) == ["aa", "bb", "cc"]
    assert "rejected" not in git(workspace, "status", "--porcelain")


def test_another_attempt_is_one_with_other_parameters_of_ingest() -> None:
    first = library.attempt_fingerprint(parameters.parse({}))
    assert first == library.attempt_fingerprint(parameters.parse({"train": {"iterations": 7}}))
    assert first == library.attempt_fingerprint(parameters.parse({"ingest": {"sources": ["library:library"]}}))
    assert first != library.attempt_fingerprint(parameters.parse({"train": {"device": "cpu"}}))
    assert first != library.attempt_fingerprint(parameters.parse({"ingest": {"max_side": 640}}))


def add_clips(workspace: Path, entry: Entry, name: str) -> Path:
    folder = workspace / "library" / entry.video_id / "clips"
    (folder / "0.zip").unlink()
    clip = make_clip(folder, name, moving_square(3))
    write_manifest(folder, [clip])
    return clip.path


def test_the_library_as_a_source_gives_done_videos_as_they_are(workspace: Path, tmp_path: Path) -> None:
    params = parameters.parse({}).ingest
    url = f"library:{workspace / 'library'}"
    library.prepare(workspace)
    with pytest.raises(SourceError, match="no video in it is done yet"):
        open_source(url, params)
    first, waiting = make_entry(workspace), make_entry(workspace, "b")
    archive = add_clips(workspace, first, "a")
    add_clips(workspace, waiting, "b")
    library.version_entry(workspace, first)
    revision = git(workspace, "rev-parse", "HEAD").strip()

    (job,) = open_source(url, params)
    target = tmp_path / "clips"
    target.mkdir()
    (entry,) = job.run(target)
    assert (entry.clip_id, entry.path) == ("a" * 16, target / archive.name)
    assert sha256_file(entry.path) == sha256_file(archive)

    library.version_entry(workspace, waiting)
    assert len(open_source(url, params)) == 2
    assert [one.source for one in open_source(f"{url}@{revision}", params)] == [job.source]


def test_a_library_that_was_not_pulled_or_is_none_is_named(workspace: Path, tmp_path: Path) -> None:
    params = parameters.parse({}).ingest
    entry = make_entry(workspace)
    library.version_entry(workspace, entry)
    (job,) = open_source(f"library:{workspace / 'library'}", params)
    (workspace / "library" / entry.video_id).rename(tmp_path / "gone")
    with pytest.raises(AbsentError, match=f"dvc pull {entry.video_id}.dvc"):
        job.run(tmp_path)
    for place in (str(tmp_path / "missing"), "s3://bucket/library", f"{workspace / 'library'}@0123456789"):
        with pytest.raises(SourceError, match=r"^library:"):
            open_source(f"library:{place}", params)
