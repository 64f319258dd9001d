"""The library's page: what it shows, that names from outside are text in it, and when it is written."""

from __future__ import annotations

import base64
import re
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tasks import drift, library
from tasks.drift import Alert, Verdict
from tasks.files import write_json
from tasks.library import Entry, Rejected
from tasks.pictures import write_jpeg
from tasks.promotion import ledger
from tasks.promotion.gate import Decision
from tasks.promotion.ledger import Record
from tasks.report.library_page import PLACE, update_page

HOSTILE = "</h3><script>alert(1)</script>\u202e'\"&.mp4"


def add(folder: Path, number: int, *, source: str = "/inbox/a.mp4", picture: bool = False) -> str:
    """A video that is done, as far as the page can tell."""
    digest = f"{number:064x}"[::-1]
    entry = Entry(
        video_id=digest[:16], sha256=digest, source=source, bytes=9, arrived_at=1.7e9 + number, clips=1, frames=1234,
        seconds=51.4, annotations=77, tracks=3,
        model={"name": "mosis", "version": "4", "weights_sha256": "ab" * 32}, params={"export": {}},
        code={"mosis": "0.1.0"}, label_free={"photometric_gain": 0.625, "temporal_iou": None, "odd": 1.0},
    )  # fmt: skip
    place = library.entry_folder(folder, entry.video_id)
    place.mkdir(parents=True)
    write_json(place / "entry.json", entry.to_json())
    if picture:
        (place / "labels" / "pictures").mkdir(parents=True)
        write_jpeg(place / "labels" / "pictures" / "labels-01.jpg", np.full((90, 640, 3), 200, np.uint8))
    (folder / "library" / f"{entry.video_id}.dvc").write_text(f"{number}\n")
    return entry.video_id


def git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=a", "-c", "user.email=a@b")
    return subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout


def commit(folder: Path) -> str:
    git(folder, "add", "-A", "--", "library/*.dvc")
    git(folder, "commit", "--quiet", "--message", "videos")
    return git(folder, "rev-parse", "HEAD").strip()


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    git(tmp_path, "init", "--quiet")
    return tmp_path


def page(folder: Path) -> str:
    return (folder / PLACE).read_text(encoding="utf-8")


def test_a_video_with_its_picture_figures_and_lineage(workspace: Path) -> None:
    video = add(workspace, 1, picture=True)
    made = commit(workspace)
    assert update_page(workspace)
    text = page(workspace)
    for shown in (
        "a.mp4",
        "1,234 frames",
        "77 instances in 3 tracks by mosis version 4",
        "0.625",
        "51.4 s",
        made,
        video,
    ):
        assert shown in text
    (picture,) = re.findall(r'src="data:image/jpeg;base64,([^"]+)" width="320" height="45"', text)
    assert base64.b64decode(picture).startswith(b"\xff\xd8")
    assert not re.findall(r'(?:src|href)="(?!data:)', text)  # self-contained


def test_it_is_written_where_something_has_changed_and_only_then(workspace: Path) -> None:
    assert not update_page(workspace)
    assert not (workspace / PLACE).exists()  # an empty library has none
    add(workspace, 1)
    commit(workspace)
    assert update_page(workspace)
    assert not update_page(workspace)
    library.reject(workspace, Rejected("/inbox/broken.mp4", "9" * 64, "cannot be decoded", "x"))
    assert update_page(workspace)
    assert "cannot be decoded" in page(workspace)
    alert = Alert("temporal_iou", 0.2, 0.8, 0.6)
    verdict = Verdict("run", "4", 1.7e9, 1, 200, {}, {}, (alert,))
    drift.keep(workspace, [verdict, replace(verdict, run_id="b", alerts=None)])
    assert update_page(workspace)
    assert "temporal_iou 0.200, below 0.600" in page(workspace)
    assert "not judged" not in page(workspace)
    assert 'class="alert"' in page(workspace)
    drift.keep(workspace, [replace(verdict, run_id="c", alerts=())])
    assert update_page(workspace)
    assert 'class="alert"' not in page(workspace)  # what has come since is as it should be
    assert "temporal_iou 0.200" in page(workspace)
    decision = Decision(False, "canary_mask_AP", ())
    ledger.write_record(workspace, Record(2, 1.7e9, "7", "4", decision, {}, {}, self_training=False))
    write_json(ledger.record_path(workspace, 1), {"decision": 3})
    assert update_page(workspace)
    assert "version 7 refused by canary_mask_AP" in page(workspace)
    assert "decisions/002.html" not in page(workspace)
    ledger.page_path(workspace, 2).write_text("")
    assert update_page(workspace)
    assert 'href="../../.mosis/decisions/002.html"' in page(workspace)
    add(workspace, 2)  # not done: git does not name it
    assert not update_page(workspace)
    (workspace / PLACE).write_text("torn")
    assert update_page(workspace)


def test_names_are_text_and_secrets_stay_out(workspace: Path) -> None:
    add(workspace, 1, source=f"s3://bucket/{HOSTILE}")
    add(workspace, 2, source="https://user:hunter2@host/b.mp4?token=hunter3")
    commit(workspace)
    reason = "<img src=x onerror=alert(1)> https://u:hunter4@host/"
    library.reject(workspace, Rejected(HOSTILE, "9" * 64, reason, "x"))
    update_page(workspace)
    text = page(workspace)
    assert "<script" not in text
    assert "<img src=x" not in text
    assert "\u202e" not in text
    assert "hunter" not in text
    assert "&lt;script&gt;alert(1)" in text


def test_broken_entries_and_pictures_cost_themselves(workspace: Path, tmp_path: Path) -> None:
    videos = [add(workspace, number, picture=True) for number in (1, 2, 3, 4)]
    commit(workspace)
    (workspace / "library" / videos[0] / "entry.json").write_text("[")
    pictures = [workspace / "library" / video / "labels" / "pictures" / "labels-01.jpg" for video in videos]
    pictures[1].write_bytes(b"no picture")
    outside = tmp_path / "secret.jpg"
    outside.write_bytes(pictures[2].read_bytes())
    pictures[2].unlink()
    pictures[2].symlink_to(outside)
    update_page(workspace)
    text = page(workspace)
    assert text.count("<article") == 3
    assert text.count("<img") == 1
    assert text.index(videos[3]) < text.index(videos[1])  # the newest first


def test_a_page_of_many_videos_has_pictures_of_the_newest(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.report.library_page.PICTURES", 2)
    for number in range(1, 6):
        add(workspace, number, picture=True)
    commit(workspace)
    update_page(workspace)
    assert page(workspace).count("<img") == 2
    assert page(workspace).count("<article") == 5
