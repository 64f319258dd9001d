"""The page of a library: one HTML file with what was labelled, with what, how well as far as that can be told, and what
was set aside. It is written anew where anything of that has changed since.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import cv2
import jinja2

from tasks import drift, history, library
from tasks.drift import Verdict
from tasks.errors import DataError
from tasks.files import atomic_path, read_json
from tasks.gallery import short_source
from tasks.library import Entry, Rejected
from tasks.lineage import hide_secrets
from tasks.picture_codec import decode_rgb, encode_rgb
from tasks.report import INVISIBLE
from tasks.report.embed import Picture
from tasks.report.sections import LABEL_FREE
from tasks.report.words import count, duration

PLACE = Path(library.LIBRARY, "report", "index.html")
PICTURES = 100
"""Of the newest videos; a page of ten thousand pictures would be as large as the videos."""
_SHOWN = 200
"""Of what was set aside, of alerts and of decisions, the latest."""
_DECISIONS = Path(".mosis", "decisions")
_HEAD_BYTES = 2000
_MAX_PICTURE = 32 * 2**20
_WIDTH = 320


@dataclass(frozen=True)
class Row:
    """One video; plain text, which the template escapes."""

    name: str
    summary: str
    figures: str
    note: str
    lineage: list[tuple[str, str]]
    picture: Picture | None


def update_page(workspace: Path) -> bool:
    """Write library/report/index.html where it is not that of the library as it is now; whether it was written.

    A workspace that has taken in nothing gets none. Raises StorageError.
    """
    videos = library.done_videos(workspace)
    rejected = [*library.read_rejected(workspace).values()]
    verdicts = [one for one in drift.read_verdicts(workspace) if one.alerts is not None]
    decisions = _read_decisions(workspace)
    shown = [videos, [asdict(one) for one in rejected], [asdict(one) for one in verdicts], decisions]
    state = hashlib.sha256(json.dumps([shown, _code()], sort_keys=True).encode(errors="replace")).hexdigest()
    path = workspace / PLACE
    if not (videos or rejected) or _state_of(path) == state:
        return False
    page = render(workspace, library.present_entries(workspace, videos), rejected, verdicts, decisions, state)
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8", errors="replace")
    return True


def render(
    workspace: Path,
    entries: Sequence[Entry],
    rejected: Sequence[Rejected],
    verdicts: Sequence[Verdict],
    decisions: Sequence[Mapping[str, Any]],
    state: str,
) -> str:
    """The page as text. entries: in any order; the newest comes first. verdicts: those that judge, the latest last."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    newest = sorted(entries, key=lambda entry: (-entry.arrived_at, entry.video_id))
    commits = _commits(workspace)
    alerts = [
        {"when": _time(one.at), "text": one.describe(), "latest": one is verdicts[-1]}
        for one in reversed(verdicts[-_SHOWN:])
        if one.alerts
    ]
    aside = [{"source": hide_secrets(one.source), "reason": hide_secrets(one.reason)} for one in rejected[-_SHOWN:]]
    page = environment.get_template("library_page.html").render(
        state=state,
        totals=_describe_all(entries, rejected),
        alerts=alerts,
        decisions=list(reversed(decisions[-_SHOWN:])),
        rejected=aside[::-1],
        rows=[
            _row(workspace, entry, commits.get(entry.video_id, "none"), pictured=number < PICTURES)
            for number, entry in enumerate(newest)
        ],
    )
    return page.translate(INVISIBLE)


def _row(workspace: Path, entry: Entry, commit: str, *, pictured: bool) -> Row:
    model = f"{entry.model.get('name', 'a model')} version {entry.model.get('version', '?')}"
    clips = f"; {count(len(entry.set_aside))} clips set aside" if entry.set_aside else ""
    summary = (
        f"arrived {_time(entry.arrived_at)}; {duration(entry.seconds)}, {count(entry.frames)} frames; "
        f"{count(entry.annotations)} instances in {count(entry.tracks)} tracks by {model}{clips}"
    )
    free = entry.label_free
    figures = "; ".join(
        f"{name} {make(free[key])}" for key, (name, make) in LABEL_FREE.items() if free.get(key) is not None
    )
    settings = json.dumps(entry.params, sort_keys=True, default=str)
    lineage = [
        ("source", hide_secrets(entry.source)),
        ("SHA-256", entry.sha256),
        ("video", f"library/{entry.video_id}"),
        ("commit", commit),
        ("weights", str(entry.model.get("weights_sha256", "unknown"))),
        ("model's data", str(entry.model.get("dvc_md5_pairs", "unknown"))),
        ("parameters", f"{hashlib.sha256(settings.encode()).hexdigest()[:16]} (entry.json has them)"),
        ("code", ", ".join(f"{name} {value}" for name, value in sorted(entry.code.items()))),
    ]
    picture = _hang(library.entry_folder(workspace, entry.video_id)) if pictured else None
    return Row(short_source(hide_secrets(entry.source)), summary, figures, entry.note or "", lineage, picture)


def _hang(folder: Path) -> Picture | None:
    """The first picture of the labels, small enough to have a hundred of them."""
    labels = folder / "labels"
    try:
        first = min((labels / "pictures").glob("*.jpg"), default=None)
        if first is None or not first.resolve().is_relative_to(labels.resolve()):
            return None
        with open(first, "rb") as file:
            image = decode_rgb(file.read(_MAX_PICTURE), where=first.name)
        height, width = image.shape[:2]
        size = (min(width, _WIDTH), max(1, round(height * min(1.0, _WIDTH / width))))
        small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        data, _ = encode_rgb(small, jpeg_quality=75, where=first.name)
    except (DataError, OSError):
        return None
    return Picture(f"data:image/jpeg;base64,{base64.b64encode(data).decode()}", *size)


def _describe_all(entries: Sequence[Entry], rejected: Sequence[Rejected]) -> str:
    seconds, labelled = sum(one.seconds for one in entries), sum(one.annotations for one in entries)
    aside = f", {count(len(rejected))} set aside" if rejected else ""
    return f"{count(len(entries))} videos, {duration(seconds)}, {count(labelled)} instances{aside}. Newest first."


def _read_decisions(workspace: Path) -> list[dict[str, Any]]:
    """What the gate has decided, as far as its records can be read; oldest first."""
    found = []
    for path in sorted((workspace / _DECISIONS).glob("*.json")):
        try:
            record = read_json(path)
            led, decision = record.get("led"), record["decision"]
            promoted = decision["promoted"] is True if led is None else led is True
            rule = "" if promoted else f" by {record.get('cause') or decision['rule']}"
            text = f"version {record['challenger']} {'promoted' if promoted else 'refused'}{rule}"
        except (DataError, TypeError, KeyError, AttributeError):
            continue
        there = path.with_suffix(".html").is_file()
        found.append(
            {"number": path.stem, "text": text, "link": f"../../{_DECISIONS}/{path.stem}.html" if there else ""}
        )
    return found


def _commits(workspace: Path) -> dict[str, str]:
    """video_id -> the last commit that changed it."""
    found: dict[str, str] = {}
    commit = ""
    for line in history.run_git(workspace, "log", "--format=:%H", "--name-only", "--", library.LIBRARY).splitlines():
        if line.startswith(":"):
            commit = line[1:]
        elif line.endswith(".dvc"):
            found.setdefault(line.rpartition("/")[2].removesuffix(".dvc"), commit)
    return found


def _state_of(path: Path) -> str | None:
    """What the page that is there was made of."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            head = file.read(_HEAD_BYTES)
    except OSError:
        return None
    return head.partition('<meta name="mosis-state" content="')[2].partition('"')[0] or None


def _code() -> str:
    """Of the page itself: another look is another page."""
    here = Path(__file__)
    return hashlib.sha256(here.read_bytes() + here.with_suffix(".html").read_bytes()).hexdigest()


def _time(seconds: float) -> str:
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")
    except (ValueError, OverflowError, OSError, TypeError):
        return "at an unknown time"
