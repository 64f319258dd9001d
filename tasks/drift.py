"""Drift: the label-free figures of new video against those of the model at its evaluation.

`judge` is pure; the rest keeps its verdicts in .mosis/drift.jsonl, for the library's page, `mosis status` and events.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tasks.drift_params import DriftParams
from tasks.files import atomic_path, storage_errors
from tasks.library import Entry

STATE = Path(".mosis", "drift.jsonl")
KEPT = 1000
"""Verdicts, the latest."""
TAG = "label_free_"
"""A version's tags of its own figures begin so (tasks/registry.py)."""
CUT = f"{TAG}score_cut"
"""From which score on detections counted in them."""
_FALLS = ("temporal_iou", "photometric_gain", "mean_score")
_BY_INSTANCE = frozenset(_FALLS)
_MAX_LINE = 100_000


@dataclass(frozen=True)
class Alert:
    """A figure beyond its limit. reference: that of the model's evaluation."""

    figure: str
    value: float
    reference: float
    limit: float

    def describe(self) -> str:
        way = "above" if self.value > self.limit else "below"
        was = f"{self.reference:.3f} at the model's evaluation"
        return f"{self.figure} {self.value:.3f}, {way} {self.limit:.3f} ({was})"


@dataclass(frozen=True)
class Verdict:
    """About one version's videos of one batch, and those of earlier ones that were too few. run_id: MLflow's of the
    batch, whose tag `drift_video_ids` names them. at: seconds since 1970, the arrival of
    the last video. alerts: None where it could not be judged. told: whether the event has been sent.
    """

    run_id: str
    version: str
    at: float
    videos: int
    frames: int
    figures: Mapping[str, float | None]
    reference: Mapping[str, float]
    alerts: tuple[Alert, ...] | None
    told: bool = False

    def to_payload(self) -> dict[str, Any]:
        """Of the event."""
        fields = {name: value for name, value in dataclasses.asdict(self).items() if name != "told"}
        return {**fields, "message": self.describe()}

    def describe(self) -> str:
        batch = f"version {self.version}, {self.videos} videos of {self.frames} frames"
        if self.alerts is None:
            return f"not judged: {batch}"
        return f"{'; '.join(one.describe() for one in self.alerts)}: {batch}" if self.alerts else f"none: {batch}"


def judge(
    figures: Mapping[str, float | None], reference: Mapping[str, float], frames: int, limits: DriftParams
) -> tuple[Alert, ...] | None:
    """Alerts of one batch's figures; None where there are too few frames or no figure to compare.

    A figure that is None on either side is passed over, as is one whose reference is no more than 0: a share of
    nothing cannot fall.
    """
    known = {name: value for name, value in figures.items() if value is not None and name in reference}
    tested = [name for name in _FALLS if name in known and reference[name] > 0]
    if frames < limits.min_frames or not (tested or "empty_share" in known):
        return None
    alerts = []
    for name in tested:
        limit = reference[name] * (1 - getattr(limits, f"{name}_fall"))
        if known[name] < limit:
            alerts.append(Alert(name, known[name], reference[name], limit))
    if "empty_share" in known:
        limit = reference["empty_share"] + limits.empty_share_rise
        if known["empty_share"] > limit:
            alerts.append(Alert("empty_share", known["empty_share"], reference["empty_share"], limit))
    return tuple(alerts)


def pool(entries: Sequence[Entry]) -> dict[str, float | None]:
    """The figures of several videos together: means, weighted by instances where they are of those, else by frames."""
    names = sorted({name for entry in entries for name in entry.label_free})
    return {name: _mean(entries, name) for name in names}


def assess(run_id: str, entries: Sequence[Entry], reference: Mapping[str, float], limits: DriftParams) -> Verdict:
    """entries: of one batch and one version, at least one."""
    frames, figures = sum(entry.frames for entry in entries), pool(entries)
    at = max(entry.arrived_at for entry in entries)
    alerts = judge(figures, reference, frames, limits)
    version = str(entries[0].model.get("version"))
    return Verdict(run_id, version, at, len(entries), frames, figures, dict(reference), alerts)


def reference_of(tags: Mapping[str, str], thresholds: Iterable[float] = ()) -> dict[str, float]:
    """A version's own figures, from its tags; none where they are of detections from another score on than any of
    `thresholds`, with which the new video was labelled: a higher one alone raises scores and empty frames.
    """
    found = {}
    for name, text in tags.items():
        if name.startswith(TAG):
            try:
                value = float(text)
            except ValueError:
                continue
            if math.isfinite(value):
                found[name.removeprefix(TAG)] = value
    cut = found.pop(CUT.removeprefix(TAG), None)
    return found if cut is None or all(abs(cut - one) < 1e-6 for one in thresholds) else {}


def read_verdicts(workspace: Path) -> list[Verdict]:
    """In order of writing; lines that are not ours are passed over."""
    found = []
    try:
        with open(workspace / STATE, encoding="utf-8", errors="replace") as file:
            while line := file.readline(_MAX_LINE):
                try:
                    found.append(_parse(json.loads(line)))
                except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
                    continue
    except FileNotFoundError:
        pass
    return found


def keep(workspace: Path, verdicts: Iterable[Verdict]) -> None:
    """Write these down, in place of what was said of the same run and version before. Raises StorageError."""
    every = {(one.run_id, one.version): one for one in [*read_verdicts(workspace), *verdicts]}
    path = workspace / STATE
    with storage_errors(path), atomic_path(path) as temporary:
        lines = [json.dumps(dataclasses.asdict(one)) + "\n" for one in [*every.values()][-KEPT:]]
        temporary.write_text("".join(lines), encoding="utf-8")


def find_untold(workspace: Path) -> list[Verdict]:
    """Those with alerts whose event has not been sent."""
    return [one for one in read_verdicts(workspace) if one.alerts and not one.told]


def mark_told(workspace: Path, verdict: Verdict) -> None:
    keep(workspace, [replace(verdict, told=True)])


def _mean(entries: Sequence[Entry], name: str) -> float | None:
    total = weight = 0.0
    for entry in entries:
        value, share = entry.label_free.get(name), entry.annotations if name in _BY_INSTANCE else entry.frames
        if _is_number(value) and _is_number(share):
            total += float(value) * share  # type: ignore[arg-type]
            weight += share
    return total / weight if weight else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _parse(line: Mapping[str, Any]) -> Verdict:
    alerts = line["alerts"]
    fits = (
        all(isinstance(line[name], str) for name in ("run_id", "version"))
        and all(_is_number(line[name]) for name in ("at", "videos", "frames"))
        and all(
            value is None or _is_number(value) for value in [*line["figures"].values(), *line["reference"].values()]
        )
        and isinstance(line["told"], bool)
    )
    if not fits:
        raise ValueError("not a verdict")
    return Verdict(**{**line, "alerts": None if alerts is None else tuple(_parse_alert(one) for one in alerts)})


def _parse_alert(line: Mapping[str, Any]) -> Alert:
    alert = Alert(**line)
    if not isinstance(alert.figure, str) or not all(map(_is_number, (alert.value, alert.reference, alert.limit))):
        raise ValueError("not an alert")
    return alert
