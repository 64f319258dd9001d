"""Drift: alerts by hand, and verdicts on disk. tests/test_new_video.py has the flow that finds it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tasks import drift, registry
from tasks.drift import Alert, Verdict, judge
from tasks.drift_params import DriftParams
from tasks.files import write_json
from tasks.library import Entry

LIMITS = DriftParams(
    min_frames=10, temporal_iou_fall=0.25, photometric_gain_fall=0.5, mean_score_fall=0.2, empty_share_rise=0.3
)
OWN = {"temporal_iou": 0.8, "photometric_gain": 0.4, "mean_score": 0.5, "empty_share": 0.1}
ENTRY = Entry(
    video_id="0" * 16, sha256="0" * 64, source="/a.mp4", bytes=1, arrived_at=5.0, clips=1, frames=10, seconds=1.0,
    annotations=4, tracks=1, model={"version": "3"}, params={}, code={}, label_free={},
)  # fmt: skip
VERDICT = Verdict("run", "3", 5.0, 1, 10, {"temporal_iou": 0.2, "coverage": None}, OWN, (Alert("a", 0.1, 0.8, 0.6),))


def names(figures: dict[str, float | None], reference: dict[str, float] = OWN, frames: int = 10) -> list[str] | None:
    alerts = judge(figures, reference, frames, LIMITS)
    return None if alerts is None else [one.figure for one in alerts]


def test_a_figure_alerts_beyond_its_limit_and_not_at_it() -> None:
    same: dict[str, float | None] = dict(OWN)
    assert names(same) == []
    at_limit = {"temporal_iou": 0.6, "photometric_gain": 0.2, "mean_score": 0.4, "empty_share": 0.4}
    for name, limit in at_limit.items():
        step = 0.01 if name == "empty_share" else -0.01
        assert names({**same, name: limit - step}) == []
        assert names({**same, name: limit + step}) == [name]
    assert names({"temporal_iou": 1.0, "photometric_gain": 1.0, "mean_score": 1.0, "empty_share": 0.0}) == []
    assert judge({"temporal_iou": 0.5}, OWN, 10, LIMITS) == (Alert("temporal_iou", 0.5, 0.8, pytest.approx(0.6)),)
    assert names({"photometric_gain": -0.4}) == ["photometric_gain"]


def test_too_few_frames_and_unknown_figures_give_no_verdict() -> None:
    assert names({"temporal_iou": 0.0}, frames=9) is None
    assert names({}) is None
    assert names({"temporal_iou": 0.0}, reference={}) is None
    assert names({"temporal_iou": None, "empty_share": None}) is None
    assert names({"temporal_iou": None, "empty_share": 1.0}) == ["empty_share"]
    assert names({"photometric_gain": -0.9}, reference={"photometric_gain": 0.0}) is None
    assert names({"coverage": 0.0}, reference={"coverage": 0.9}) is None  # no rule about it


def test_figures_of_videos_are_pooled_by_what_they_are_means_of() -> None:
    first = replace(ENTRY, label_free={"temporal_iou": 0.9, "empty_share": 0.0, "mean_score": None})
    second = replace(ENTRY, frames=30, annotations=1, label_free={"temporal_iou": 0.4, "empty_share": 1.0})
    pooled = drift.pool([first, second])
    assert pooled == {"temporal_iou": pytest.approx(0.8), "empty_share": pytest.approx(0.75), "mean_score": None}
    hostile: Any = {"temporal_iou": "high", "empty_share": float("nan"), "mean_score": True}
    assert set(drift.pool([replace(ENTRY, label_free=hostile)]).values()) == {None}
    assert drift.pool([]) == {}


def test_a_versions_own_figures_are_its_tags() -> None:
    tags = {"label_free_temporal_iou": "0.8000", "label_free_mean_score": "nan", "label_free_x": "y", "mask_AP": "0.5"}
    assert drift.reference_of(tags) == {"temporal_iou": 0.8}
    cut = {**tags, "label_free_score_cut": "0.400000"}
    assert drift.reference_of(cut, [0.4, 0.4]) == {"temporal_iou": 0.8}
    assert drift.reference_of(cut, [0.4, 0.2]) == {}  # what is labelled from .2 on has lower scores by itself


def test_registration_tags_the_label_free_figures(tmp_path: Path) -> None:
    assert registry.read_scores(tmp_path) == {}
    for metrics in ({"label_free": {"temporal_iou": 0.8, "coverage": None}}, {"label_free": 3}, []):
        write_json(tmp_path / "outputs" / "evaluate" / "metrics.json", metrics)
        known = {"label_free_temporal_iou": "0.8000"} if "coverage" in str(metrics) else {}
        assert registry.read_scores(tmp_path) == known


def test_verdicts_are_kept_once_and_rubbish_is_passed_over(tmp_path: Path) -> None:
    assert drift.read_verdicts(tmp_path) == []
    silent = replace(VERDICT, version="4", alerts=None)
    drift.keep(tmp_path, [VERDICT, silent])
    assert drift.read_verdicts(tmp_path) == [VERDICT, silent]
    assert drift.find_untold(tmp_path) == [VERDICT]
    drift.mark_told(tmp_path, VERDICT)
    assert drift.find_untold(tmp_path) == []
    assert len(drift.read_verdicts(tmp_path)) == 2
    path = tmp_path / drift.STATE
    line = json.loads(path.read_text().splitlines()[0])
    broken = [{**line, "frames": "many"}, {**line, "alerts": [{"figure": 1}]}, {**line, "figures": []}, [], 3]
    path.write_text("\0\n{\n" + "".join(json.dumps(one) + "\n" for one in broken) + json.dumps(line))
    assert drift.read_verdicts(tmp_path) == [replace(VERDICT, told=True)]


def test_old_verdicts_are_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drift, "KEPT", 2)
    drift.keep(tmp_path, [replace(VERDICT, run_id=name) for name in "abc"])
    assert [one.run_id for one in drift.read_verdicts(tmp_path)] == ["b", "c"]
