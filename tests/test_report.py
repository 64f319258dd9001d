"""The report: complete with everything, honest with nothing, harmless with hostile names, readable on a phone."""

from __future__ import annotations

import html
import html.parser
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml

from tasks import params as parameters
from tasks.clips import ClipEntry, write_manifest
from tasks.report import write_report
from tasks.report.embed import Album

HOSTILE = '<script>alert("1")</script> & \'dog\' \u202e"><img src=x onerror=alert(1)>'
LONG = "videos/" + "a_very_long_name_without_any_space_" * 8 + ".mp4"
SCORE_NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100")
CLIP = "0123456789abcdef"


class Page(html.parser.HTMLParser):
    """What is in a page: tags with their attributes, and its text outside of style."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.words.append(data)


def render(workspace: Path) -> tuple[str, Page]:
    destination = workspace / "outputs" / "report"
    write_report(workspace, destination)
    assert [path.name for path in destination.iterdir()] == ["index.html"]
    text = (destination / "index.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == []
    return text, page


def write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    lines = [",".join(rows[0])] + [",".join(map(str, row.values())) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_data(workspace: Path) -> None:
    clips = workspace / "data" / "clips"
    clips.mkdir(parents=True)
    (workspace / "data" / "pairs").mkdir()
    entries = []
    for number, source in enumerate((HOSTILE, LONG, "file:///videos/street.mp4")):
        clip_id = f"{number:016x}"
        entries.append(
            ClipEntry(clip_id, clips / f"{clip_id}.zip", source, 120, 1280, 720, 23.976, "train", number == 0, 5.0)
        )
        (clips / f"{clip_id}.zip").touch()
    write_manifest(clips, entries)
    rejected = [
        {"source": HOSTILE, "reason": "not a video"},
        {"source": "https://user:secret@host.example/a.mp4", "reason": "5 Hz"},
    ]
    (clips / "rejected.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rejected))
    dropped = {"total": {"order": 0, "rate": 7, "cut": 3}, "clips": {}, "unreadable": []}
    (workspace / "data" / "pairs" / "dropped.json").write_text(json.dumps(dropped))


def write_training(workspace: Path) -> None:
    folder = workspace / "outputs" / "train"
    (folder / "pictures").mkdir(parents=True)
    for iteration in (200, 400):
        write_picture(folder / "pictures" / f"{iteration:08d}.jpg")
    rng = np.random.default_rng(0)
    steps = np.arange(1, 801)
    total = 0.4 + 2 * np.exp(-steps / 120) + rng.normal(0, 0.08, 800)
    rows = [
        {"iteration": i, "box": 0.3 * t, "mask": 0.5 * t, "total": t, "learning_rate": 1e-3, "images_per_s": 53.0}
        for i, t in zip(steps, total, strict=True)
    ]
    write_table(folder / "losses.csv", rows)
    aps = [(200, 0.21), (400, 0.48), (600, 0.63), (800, 0.71)]
    names = ("mask_AP50", "mask_AP", "box_AP")
    validation = [
        {"iteration": i, **{name: ap * f for name, f in zip(names, (1, 0.5, 0.6), strict=True)}, "coverage": 0.07}
        for i, ap in aps
    ]
    write_table(folder / "validation.csv", validation)
    params = parameters.parse({})
    resolved = {"format": 1, "size": [128, 128], "params": parameters.to_dict(params)}
    (folder / "params.resolved.yaml").write_text(yaml.safe_dump(resolved))
    summary = {
        "method": "mosis", "objective": "motion_labels", "parameters": 1119670, "iterations": 800, "seconds": 312.4,
        "images_per_s": 53.2, "peak_mib": 1210.0, "device": "cpu", "run_id": "a1b2c3",
        "labels": {"count": 4321, "images": 1999, "seconds": 35.2}, "validation": {"split": "val"},
        "fingerprint": {"data": "d" * 64, "code": "c" * 64},
    }  # fmt: skip
    (folder / "summary.json").write_text(json.dumps(summary))


def write_picture(path: Path) -> None:
    y, x = np.mgrid[:208, :632]
    image = np.stack((x % 256, y, (x + y) % 256), axis=-1).astype(np.uint8)
    cv2.circle(image, (310, 100), 60, (40, 220, 240), -1)
    assert cv2.imwrite(str(path), image)


def write_evaluation(workspace: Path, *, truth: bool = True) -> None:
    folder = workspace / "outputs" / "evaluate"
    (folder / "pictures").mkdir(parents=True)
    scores = {name: 0.712 if name == "AP50" else None if name == "APl" else 0.4 for name in SCORE_NAMES}
    kinds = ("mask", "box", "mask_at_cut", "box_at_cut")
    none = dict.fromkeys(SCORE_NAMES)
    free = {"instances_per_frame": 2.13, "empty_share": 0.043, "mean_score": 0.61, "coverage": 0.082}
    metrics = {
        "split": "test", "images": 360 if truth else 0, "instances": 1020 if truth else 0, "cut": 0.4,
        "note": "these are scores of the val split" if truth else None,
        "set_aside": [{"clip_id": CLIP, "reason": "cut short"}],
        "label_free": free, **dict.fromkeys(kinds, scores if truth else none),
    }  # fmt: skip
    (folder / "metrics.json").write_text(json.dumps(metrics))
    recall = np.linspace(0, 1, 101)
    curves = [
        {"curve": f"{kind}_{percent}", "recall": r, "precision": max(0, 1.5 - r**4 - percent / 100)}
        for kind in ("mask", "box")
        for percent in (50, 75)
        for r in recall
    ]
    if truth:
        write_table(folder / "curves.csv", curves)
    pictures = []
    for number, kind in enumerate(("detections", "detections", "detections", "worst", "optical_flow")):
        write_picture(folder / "pictures" / f"{number}.jpg")
        entry = {"file": f"pictures/{number}.jpg", "kind": kind, "clip_id": CLIP, "frame": number}
        pictures.append(
            {
                **entry,
                "caption": HOSTILE
                if number == 0
                else f"street.mp4, frame {number} at 2.04 s: frame, detections, truth",
            }
        )
    (folder / "pictures.json").write_text(json.dumps(pictures))


def write_labels(workspace: Path) -> None:
    folder = workspace / "outputs" / "labels"
    folder.mkdir(parents=True)
    clips = [{"clip_id": CLIP, "source": LONG, "images": 120, "instances": 260, "tracks": 4}]
    (folder / "pictures").mkdir()
    write_picture(folder / "pictures" / "labels-01.jpg")
    pictures = [{"file": "pictures/labels-01.jpg", "kind": "labels", "caption": "street.mp4, frame 3", "frame": 3}]
    summary = {"images": 120, "instances": 260, "tracks": 4, "clips": clips, "pictures": pictures}
    (folder / "summary.json").write_text(json.dumps(summary))


@pytest.fixture
def full(tmp_path: Path) -> Path:
    """A workspace after a whole run, with hostile and very long names."""
    write_data(tmp_path)
    write_training(tmp_path)
    write_evaluation(tmp_path)
    write_labels(tmp_path)
    return tmp_path


def test_a_whole_run_is_reported(full: Path) -> None:
    _, page = render(full)
    for expected in (
        "mosis · small · motion_labels",
        "1,119,670",
        "5 min 12 s",
        "4,321 labels on 1,999 images",
        "360 images",
        "0.712",
        "too far apart in time",
        "not a video",
        "260",
        "iteration 400",
        "a1b2c3",
        "smallest score of a label",
        "Precision over recall",
        "IoU .75",
        "these are scores of the val split",
        f"clip {CLIP} cut short",
        "street.mp4, frame 3",
    ):
        assert expected in page.text, expected
    assert "is not there" not in page.text.replace("data/pairs/pairs.parquet is not there", "")
    assert sum(tag == "img" for tag, _ in page.tags) == 6 + 2
    assert sum(tag == "svg" and "viewbox" in attributes for tag, attributes in page.tags) == 3 + 2 + 2
    row = page.text[page.text.index("masks 0.400") :]
    assert row.startswith("masks 0.400 0.712 0.400 0.400 0.400 – 0.400 0.400 0.400 boxes")  # APl has nothing to score


def test_without_ground_truth_it_says_so(tmp_path: Path) -> None:
    write_evaluation(tmp_path, truth=False)
    _, page = render(tmp_path)
    assert "no ground truth" in page.text
    assert "there is no AP" in page.text
    assert "frames with none 4.3 %" in page.text
    assert "masks above the cut" not in page.text


def test_nothing_at_all_makes_a_page_that_says_what_is_missing(tmp_path: Path) -> None:
    _, page = render(tmp_path)
    for name in (
        "outputs/train/summary.json",
        "outputs/train/losses.csv",
        "outputs/train/validation.csv",
        "outputs/evaluate/metrics.json",
        "outputs/evaluate/pictures.json",
        "outputs/labels/summary.json",
        "data/clips",
        "data/pairs/dropped.json",
    ):
        assert f"{name} is not there." in page.text
    assert "Nothing has been evaluated yet" in page.text


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", "null", '"\\ud800"', '{"labels": 3, "clips": 4, "mask": []}'])
def test_empty_and_broken_files_do_not_stop_it(full: Path, content: str) -> None:
    for path in [p for p in full.rglob("*") if p.suffix in (".json", ".jsonl", ".csv", ".yaml", ".parquet")]:
        path.write_text(content)
    _, page = render(full)
    assert "MoSIS report" in page.text


def test_odd_values_do_not_stop_it(full: Path) -> None:
    summary = {"seconds": "soon", "iterations": None, "labels": "many", "peak_mib": [1], "device": {"a": 1}}
    (full / "outputs/train/summary.json").write_text(json.dumps(summary))
    (full / "outputs/train/losses.csv").write_text("iteration,total\n1,nan\n2,inf\nthree,x\n4\n")
    (full / "outputs/evaluate/metrics.json").write_text('{"images": "all", "mask": {"AP": "high"}, "label_free": 3}')
    (full / "outputs/evaluate/pictures.json").write_text('[3, {"kind": "worst"}, {"kind": "worst", "file": 7}]')
    _, page = render(full)
    assert "soon" in page.text
    assert "losses.csv has no rows" in page.text
    assert "chose no worst cases" in page.text


def test_names_from_outside_are_text_and_nothing_else(full: Path) -> None:
    text, page = render(full)
    assert not any(tag == "script" or "onerror" in attributes for tag, attributes in page.tags)
    assert HOSTILE.replace("\u202e", "\ufffd") in page.text
    assert "\u202e" not in text
    assert "<script" not in text
    assert "secret@" not in text


def test_a_name_that_is_no_unicode_is_shown_somehow(full: Path) -> None:
    (full / "data/clips/rejected.jsonl").write_text('{"source": "a\\ud800b.mp4", "reason": "no"}\n')
    _, page = render(full)
    assert "a?b.mp4" in page.text


def test_the_page_needs_nothing_from_outside(full: Path) -> None:
    text, page = render(full)
    assert len(text) < 4_000_000
    for tag, attributes in page.tags:
        for name in ("src", "href", "srcset", "data", "action", "xlink:href"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:image/", "#")), (tag, name, value[:80])
    assert not re.search(r"url\(|@import|https?://(?!host\.example)", text)


def test_pictures_outside_the_folder_are_refused(full: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "private.jpg"
    write_picture(elsewhere)
    (full / "outputs/evaluate/link.jpg").symlink_to(elsewhere)
    entries = [
        {"file": name, "kind": "worst", "caption": "x"} for name in ("../../../private.jpg", str(elsewhere), "link.jpg")
    ]
    (full / "outputs/evaluate/pictures.json").write_text(json.dumps(entries))
    _, page = render(full)
    assert page.text.count("picture refused") == 3
    assert "chose no worst cases" in page.text


def test_broken_pictures_are_named_and_large_ones_made_smaller(tmp_path: Path) -> None:
    album = Album()
    whole = tmp_path / "large.png"
    noise = np.random.default_rng(0).integers(0, 255, (400, 2000, 3), dtype=np.uint8)
    cv2.imwrite(str(whole), noise)
    picture = album.embed(whole, tmp_path)
    assert picture is not None
    assert (picture.width, picture.height) == (960, 192)
    assert picture.source.startswith("data:image/jpeg;base64,")
    cut = tmp_path / "cut.jpg"
    write_picture(cut)
    cut.write_bytes(cut.read_bytes()[:2000])
    assert album.embed(cut, tmp_path) is None
    assert album.embed(tmp_path / "none.jpg", tmp_path) is None
    assert [line.split(":")[0].split(" ")[0] for line in album.unreadable] == ["cut.jpg", "none.jpg"]


def test_an_album_stops_at_its_budget(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    write_picture(path)
    album = Album(budget=path.stat().st_size)
    assert album.embed(path, tmp_path) is not None
    assert album.embed(path, tmp_path) is None
    assert (album.left, album.omitted) == (0, 1)


def test_writing_to_a_place_that_cannot_be_is_one_line(full: Path) -> None:
    from tasks.errors import StorageError

    (full / "blocked").write_text("a file")
    with pytest.raises(StorageError, match="blocked"):
        write_report(full, full / "blocked" / "report")


def browse(folder: Path, page: str, *options: str) -> str:
    """What headless Chromium prints about `page`; skips where there is none."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("needs Debian's chromium on the path")
    path = folder / "browsed.html"
    path.write_text(page, encoding="utf-8")
    quiet = ("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-quic")
    fixed = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars", *quiet)
    command = [chromium, *fixed, f"--user-data-dir={folder / 'profile'}", *options, path.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout


@pytest.mark.parametrize("width", [320, 390, 1280])
def test_nothing_hangs_out_of_the_screen(full: Path, width: int) -> None:
    """The page in a frame as wide as a screen, every part unfolded: it must not be wider than that."""
    text, _ = render(full)
    unfolded = text.replace("<details>", "<details open>")
    page = f"""<!DOCTYPE html><iframe width="{width}" height="900" srcdoc="{html.escape(unfolded)}"></iframe><script>
      const frame = document.querySelector("iframe");
      frame.onload = () => {{
        const root = frame.contentDocument.documentElement;
        const shown = [...frame.contentDocument.images].filter((image) => image.naturalWidth > 0).length;
        document.title = [root.clientWidth, root.scrollWidth, shown].join(" ");
      }};
    </script>"""
    title = re.search(r"<title>(\d+) (\d+) (\d+)</title>", browse(full, page, "--dump-dom"))
    assert title is not None
    visible, needed, pictures = map(int, title.groups())
    assert visible <= width
    assert needed <= visible
    assert pictures == 8  # data: URIs pass the page's own content policy


def test_a_phone_shows_more_than_a_blank_page(full: Path) -> None:
    text, _ = render(full)
    picture = full / "screen.png"
    browse(full, text, "--window-size=390,1200", f"--screenshot={picture}")
    shown = cv2.imread(str(picture))
    assert shown is not None
    assert shown.shape[0] == 1200
    assert shown.std() > 10
    # The swatches of the drawing that every test picture holds.
    assert (np.abs(shown.astype(int) - (40, 220, 240)).max(axis=2) < 12).sum() > 500
