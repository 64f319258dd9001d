from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tasks import inbox
from tasks.errors import ParamsError, SourceError
from tasks.inbox import Arrival, Seen
from tasks.sources.places import Place


def names(arrivals: object) -> list[str]:
    return [Path(one.place.shown).name for one in arrivals]  # type: ignore[attr-defined]


def never(seconds: float) -> None:
    raise AssertionError("nothing to wait for")


def test_an_empty_inbox_has_nothing_and_a_missing_one_is_named(tmp_path: Path) -> None:
    found = inbox.find_whole(str(tmp_path), 10, sleep=never)
    assert (found.whole, found.moving) == ((), ())
    with pytest.raises(ParamsError, match=r"no such folder: make it, or set service\.inbox"):
        inbox.find_whole(str(tmp_path / "missing"), 10)


def test_only_videos_count_and_only_ordinary_files(tmp_path: Path) -> None:
    for name in ("a.mp4", "b.mp4.part", "c.txt", ".d.mp4", "d.MKV"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "e.mov").write_bytes(b"x")
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "f.mp4").write_bytes(b"x")
    secret = tmp_path.parent / "secret.mp4"
    secret.write_bytes(b"x")
    (tmp_path / "link.mp4").symlink_to(secret)
    (tmp_path / "folder-link").symlink_to(tmp_path.parent)
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "folder.mp4").mkdir()
    assert sorted(names(inbox.list_arrivals(str(tmp_path)))) == ["a.mp4", "d.MKV", "e.mov"]


def test_in_order_of_arrival_not_of_names_nor_of_their_own_times(tmp_path: Path) -> None:
    for name in ("c.mp4", "a.mp4", "b.mp4"):
        (tmp_path / name).write_bytes(b"x")
        os.utime(tmp_path / name, (1, 1) if name == "b.mp4" else None)
        time.sleep(0.02)
    assert names(inbox.list_arrivals(str(tmp_path))) == ["c.mp4", "a.mp4", "b.mp4"]


def test_what_has_been_still_is_whole_at_once(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"x")
    later = time.time() + 60
    found = inbox.find_whole(str(tmp_path), 30, sleep=never, now=lambda: later)
    assert names(found.whole) == ["a.mp4"]
    assert found.moving == ()


def test_a_file_that_grows_while_it_is_watched_is_left(tmp_path: Path) -> None:
    for name in ("still.mp4", "grows.mp4"):
        (tmp_path / name).write_bytes(b"x")
    waited = []

    def grow(seconds: float) -> None:
        waited.append(seconds)
        with open(tmp_path / "grows.mp4", "ab") as file:
            file.write(b"y")
        (tmp_path / "new.mp4").write_bytes(b"x")

    found = inbox.find_whole(str(tmp_path), 5, sleep=grow)
    assert waited == [5]
    assert names(found.whole) == ["still.mp4"]
    assert sorted(names(found.moving)) == ["grows.mp4", "new.mp4"]


def test_a_rewrite_of_the_same_size_with_its_old_time_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(b"x")
    old = path.stat().st_mtime_ns

    def rewrite(seconds: float) -> None:
        path.write_bytes(b"y")
        os.utime(path, ns=(old, old))

    assert inbox.find_whole(str(tmp_path), 1, sleep=rewrite).whole == ()


def test_a_clock_that_is_ahead_keeps_nothing_back_for_ever(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"x")
    before = time.time() - 3600
    found = inbox.find_whole(str(tmp_path), 1, sleep=lambda seconds: None, now=lambda: before)
    assert names(found.whole) == ["a.mp4"]


def test_a_copy_that_pauses_is_not_whole_while_its_writer_lives(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    later = time.time() + 600
    with open(path, "wb") as writer:
        writer.write(b"half")
        writer.flush()
        if not inbox._is_written_to(inbox.list_arrivals(str(tmp_path))[0]):
            pytest.skip("this disk knows no leases")
        found = inbox.find_whole(str(tmp_path), 1, sleep=lambda seconds: None, now=lambda: later)
        assert found.whole == ()
        assert names(found.moving) == ["a.mp4"]
    found = inbox.find_whole(str(tmp_path), 1, sleep=never, now=lambda: later)
    assert names(found.whole) == ["a.mp4"]


@pytest.mark.parametrize(
    "name", [b"; rm -rf ~.mp4", b"\xff\xfe\n\x1b[2J.mp4", b"$(touch pwned).mp4", b"a" * 251 + b".mp4"]
)
def test_hostile_names_are_found_and_shown_in_one_printable_line(tmp_path: Path, name: bytes) -> None:
    path = os.path.join(os.fsencode(tmp_path), name)
    with open(path, "wb") as file:
        file.write(b"x")
    (one,) = inbox.list_arrivals(str(tmp_path))
    assert os.fsencode(one.place.url) == path
    assert one.place.shown.isprintable()
    one.place.shown.encode("utf-8")


def arrival(name: str, stamp: str = "1") -> Arrival:
    return Arrival(Place(name, name), 1, stamp, 0.0)


def test_seen_contents_are_remembered_until_the_file_changes_or_goes(tmp_path: Path) -> None:
    seen = Seen(tmp_path / "state" / "inbox.jsonl")
    assert seen.sha256(arrival("a")) is None
    seen.add(arrival("a"), "aa")
    seen.add(arrival("b"), "bb")
    with open(seen.path, "a") as file:
        file.write('\n["c", "1", "cut sho')  # a kill in the middle of a line
    again = Seen(seen.path)
    assert again.sha256(arrival("a")) == "aa"
    assert again.sha256(arrival("a", stamp="2")) is None
    again.add(arrival("d"), "dd")
    again.keep([arrival("b"), arrival("d"), arrival("e")])
    kept = Seen(seen.path)
    assert [kept.sha256(arrival(name)) for name in "abde"] == [None, "bb", "dd", None]


@pytest.mark.parametrize("content", [b"", b"{}\n[]\n[1,2]\n", b"\xff\xfe\x00", b"null\n" * 10])
def test_a_broken_memory_costs_a_reading_and_no_more(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "inbox.jsonl").write_bytes(content)
    assert Seen(tmp_path / "inbox.jsonl").sha256(arrival("a")) is None


def test_an_inbox_is_relative_to_its_workspace_unless_it_is_a_url(tmp_path: Path) -> None:
    assert inbox.inbox_url("inbox", tmp_path) == str(tmp_path / "inbox")
    assert inbox.inbox_url("/videos", tmp_path) == "/videos"
    assert inbox.inbox_url("s3://bucket/in", tmp_path) == "s3://bucket/in"
    assert inbox.inbox_url("s3://${KEY}:${SECRET}@bucket/in", tmp_path) == "s3://${KEY}:${SECRET}@bucket/in"
    with pytest.raises(SourceError, match="holds a password or key") as caught:
        inbox.inbox_url("s3://key:hunter2@bucket/in", tmp_path)
    assert "hunter2" not in str(caught.value)


def test_a_kind_of_store_that_there_is_not_is_one_line() -> None:
    with pytest.raises(SourceError, match=r"^nowhere://in: [^\n]*$"):
        inbox.list_arrivals("nowhere://in")


def test_a_remote_inbox_is_listed_with_names_that_lead_nowhere() -> None:
    import fsspec

    store = fsspec.filesystem("memory")
    for name in ("/drop/a.mp4", "/drop/.hidden/b.mp4", "/drop/c.txt", "/drop/deep/d.mov"):
        store.pipe(name, b"xx")
    try:
        found = inbox.list_arrivals("memory://drop")
        assert sorted(names(found)) == ["a.mp4", "d.mov"]
        assert {one.bytes for one in found} == {2}
    finally:
        store.rm("/drop", recursive=True)
