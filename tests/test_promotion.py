"""The gate by hand: which figures promote a challenger, and what is said of it; and the scores that it is given."""

from __future__ import annotations

import dataclasses
import json
import math
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import models
from models.common.instances import Instances
from tasks import params
from tasks.clips import ClipEntry, ClipReader, write_manifest
from tasks.errors import DataError
from tasks.gallery import Gallery
from tasks.predict import Predictor, shared_cores
from tasks.promotion import canary, ledger, scoring
from tasks.promotion.gate import HELD_OUT, Decision, Scores, decide
from tasks.promotion.scoring import Plan
from tasks.service_params import GateParams
from tests.challenger_toy import CANARY
from tests.clip_toy import find_orange, make_clip
from tests.conftest import moving_square

GATE = GateParams(canary_drop=0.02, gain_drop=0.02, temporal_iou_drop=0.03, empty_share_rise=0.05)
FIGURES: dict[str, float | None] = {
    "canary_mask_AP": 0.5,
    "canary_box_AP": 0.6,
    "photometric_gain": 0.3,
    "temporal_iou": 0.8,
    "empty_share": 0.1,
}
SOUND = {"canary": None, "held_out": None}


def scores(*, faults: dict[str, str | None] | None = None, **changes: float | None) -> Scores:
    return Scores({**FIGURES, **changes}, SOUND if faults is None else faults)


def canary_only(**changes: float | None) -> Scores:
    return scores(faults={"canary": None}, photometric_gain=None, temporal_iou=None, empty_share=None, **changes)


def rule(decision: Decision, name: str) -> object:
    (found,) = [one for one in decision.rules if one.name == name]
    return found.passed, found.limit


def test_an_equal_challenger_passes_every_rule() -> None:
    decision = decide(scores(), scores(), GATE)
    assert (decision.promoted, decision.rule, decision.note) == (True, "none against it", "")
    assert [one.name for one in decision.rules] == ["canary_not_collapsed", "held_out_not_collapsed", *FIGURES]
    assert rule(decision, "canary_mask_AP") == (True, pytest.approx(0.48))
    assert rule(decision, "empty_share") == (True, pytest.approx(0.15))


@pytest.mark.parametrize(
    ("figure", "at_limit", "beyond"),
    [
        ("canary_mask_AP", 0.48, 0.479),
        ("canary_box_AP", 0.58, 0.579),
        ("photometric_gain", 0.28, 0.279),
        ("temporal_iou", 0.77, 0.769),
        ("empty_share", 0.15, 0.151),
    ],
)
def test_one_figure_beyond_its_limit_refuses_and_is_named(figure: str, at_limit: float, beyond: float) -> None:
    assert decide(scores(), scores(**{figure: at_limit}), GATE).promoted
    decision = decide(scores(), scores(**{figure: beyond}), GATE)
    assert (decision.promoted, decision.rule) == (False, figure)
    assert sum(not one.passed for one in decision.rules) == 1


def test_better_figures_are_no_fault() -> None:
    better = scores(canary_mask_AP=1.0, photometric_gain=0.9, temporal_iou=1.0, empty_share=0.0)
    assert decide(scores(), better, GATE).promoted


@pytest.mark.parametrize("figure", list(FIGURES))
@pytest.mark.parametrize("broken", [None, math.nan, math.inf, -math.inf])
def test_a_figure_that_is_missing_or_no_number_never_promotes(figure: str, broken: float | None) -> None:
    decision = decide(scores(), scores(**{figure: broken}), GATE)
    assert (decision.promoted, decision.rule) == (False, figure)
    # Nor where the champion is as bad: only where nothing was found by either may a figure be absent.
    both = decide(scores(**{figure: broken}), scores(**{figure: broken}), GATE)
    absent = broken is None and figure in ("photometric_gain", "temporal_iou")
    assert both.promoted is absent
    alone = decide(None, scores(**{figure: broken}), GATE)
    assert (alone.promoted, alone.rule) == (False, figure)
    assert not decide(None, Scores({}, {}), GATE).promoted


@pytest.mark.parametrize("figure", list(FIGURES))
def test_a_champion_with_a_broken_figure_is_replaced_by_nobody(figure: str) -> None:
    assert decide(scores(**{figure: math.nan}), scores(), GATE).rule == figure
    absent = decide(scores(**{figure: None}), scores(), GATE)
    assert absent.promoted is (figure in ("photometric_gain", "temporal_iou"))


def test_no_scores_at_all_are_refused() -> None:
    for champion in (None, scores(), Scores({}, {})):
        decision = decide(champion, Scores({}, {}), GATE)
        assert (decision.promoted, decision.rule) == (False, "looked_at")


def test_without_a_champion_a_sound_challenger_leads() -> None:
    decision = decide(None, scores(), GATE)
    assert decision.promoted
    assert decision.note == "there was no champion"
    assert all(one.limit is None for one in decision.rules)
    collapsed = scores(faults={"canary": "one mask for everything", "held_out": None})
    assert decide(None, collapsed, GATE).rule == "canary_not_collapsed"


def test_without_held_out_video_the_canary_alone_decides_and_that_is_said() -> None:
    decision = decide(canary_only(), canary_only(), GATE)
    assert decision.promoted
    assert decision.note == "no held-out video: the canary alone decided"
    assert [one.name for one in decision.rules] == ["canary_not_collapsed", "canary_mask_AP", "canary_box_AP"]
    assert decide(canary_only(), canary_only(canary_mask_AP=0.1), GATE).rule == "canary_mask_AP"


@pytest.mark.parametrize("on", ["canary", "held_out"])
def test_a_collapsed_challenger_is_refused_whatever_its_figures(on: str) -> None:
    decision = decide(scores(), scores(faults={**SOUND, on: "the same mask on every image"}), GATE)
    assert (decision.promoted, decision.rule) == (False, f"{on}_not_collapsed")


def test_what_the_champion_sees_nothing_in_needs_not_be_seen_by_the_challenger() -> None:
    """A model of microscopy finds nothing in generated squares: that must not keep every later one from leading."""
    blind = scores(faults={"canary": "nothing anywhere", "held_out": None})
    assert decide(blind, blind, GATE).promoted
    assert decide(blind, scores(), GATE).promoted
    everywhere = scores(faults={"canary": "nothing anywhere", "held_out": "nothing anywhere"})
    assert not decide(everywhere, everywhere, GATE).promoted
    assert not decide(canary_only(), scores(faults={"canary": "nothing anywhere"}), GATE).promoted


def test_what_a_collapsed_champion_reaches_is_no_bar() -> None:
    """One mask over everything has a temporal IoU of 1."""
    collapsed = scores(faults={**SOUND, "held_out": "one mask for everything"}, temporal_iou=1.0, empty_share=0.0)
    assert decide(collapsed, scores(empty_share=0.2), GATE).promoted
    assert decide(collapsed, scores(canary_mask_AP=0.4), GATE).rule == "canary_mask_AP"
    assert decide(collapsed, scores(temporal_iou=math.nan), GATE).rule == "temporal_iou"


def test_small_losses_do_not_add_up_over_the_rounds() -> None:
    slipped = scores(canary_mask_AP=0.485)
    assert decide(scores(), slipped, GATE).promoted
    again = scores(canary_mask_AP=0.470)
    assert decide(slipped, again, GATE).promoted
    decision = decide(slipped, again, GATE, best_before={"canary_mask_AP": 0.5})
    assert (decision.promoted, decision.rule) == (False, "canary_mask_AP")
    assert "0.500" in next(one.note for one in decision.rules if one.name == "canary_mask_AP")


def test_only_those_that_led_and_were_measured_alike_raise_the_bar() -> None:
    decision = decide(scores(), scores(), GATE)
    one = ledger.Record(
        1, 0.0, "2", "1", decision, {"champion": {"a": 0.5}, "challenger": {"a": 0.7}},
        {"canary": "x", "score_floor": 0.02}, self_training=False,
    )  # fmt: skip
    data = dict(one.data)
    assert ledger.best_figures([one], data, ("a",)) == {"a": 0.7}
    late = dataclasses.replace(one, led=False, cause="champion_changed")  # somebody promoted another meanwhile
    assert (late.promotes, late.rule) == (False, "champion_changed")
    assert ledger.best_figures([late], data, ("a",)) == {"a": 0.5}
    assert ledger.best_figures([one], {**data, "score_floor": 0.1}, ("a",)) == {}
    assert ledger.best_figures([one], {**data, "canary": "y"}, ("a",)) == {}


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[ClipEntry]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(canary, "VIDEOS", CANARY)
        return canary.make_canary(tmp_path_factory.mktemp("workspace"))


def test_a_canary_that_cannot_be_read_is_made_anew(clips: list[ClipEntry], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(canary, "VIDEOS", CANARY)
    folder = clips[0].path.parent
    whole = clips[0].path.read_bytes()
    clips[0].path.write_bytes(whole[:-30])
    made = canary.make_canary(folder.parents[2])
    assert [one.clip_id for one in made] == [one.clip_id for one in clips]
    assert clips[0].path.read_bytes() == whole


def test_a_canary_whose_truth_cannot_be_read_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else that would be taken for the fault of every version that is scored on it."""
    monkeypatch.setattr(canary, "VIDEOS", CANARY)
    path = canary.make_canary(tmp_path)[0].path
    whole = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    document = json.loads(files["annotations.json"])
    first = next(rle for rle in document["tracks"][0]["rles"] if rle)
    files["annotations.json"] = json.dumps(document).replace(json.dumps(first["counts"]), '"0"').encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    with ClipReader(path) as reader, pytest.raises(DataError):
        reader.truth(0)
    assert canary.make_canary(tmp_path)[0].path.read_bytes() == whole


def test_held_out_is_what_no_training_of_these_data_sees(tmp_path: Path) -> None:
    clips = tmp_path / "data" / "clips"
    clips.mkdir(parents=True)
    write_manifest(clips, [make_clip(clips, name, moving_square(4)) for name in "abcd"])
    (tmp_path / "data" / "pairs").mkdir()
    splits = {"a" * 16: "train", "b" * 16: "val", "c" * 16: "test"}  # of d no pair was kept
    (tmp_path / "data" / "pairs" / "splits.json").write_text(json.dumps(splits))
    chosen = scoring.choose_held_out(tmp_path, 100)
    assert [(clip.clip_id[0], indices) for clip, indices in chosen] == [("b", (0, 1, 2, 3)), ("c", (0, 1, 2, 3))]


@pytest.fixture
def plan(clips: list[ClipEntry], tmp_path: Path) -> Plan:
    """A canary of flat objects, and a held-out clip of an orange square that moves."""
    held_out = make_clip(tmp_path, "a", moving_square(6))
    on_canary = tuple((entry, tuple(range(entry.frames))) for entry in clips)
    return Plan(on_canary, ((held_out, (0, 1, 3, 4)),), 0.02, 0.4, 4, "cpu")


class Model:
    """What `score_model` reads of a LoadedModel."""

    def __init__(self, predict: Any) -> None:
        self.predict = predict


def measure(predict: Any, plan: Plan, folder: Path) -> tuple[Scores, list[dict[str, str]], Gallery]:
    gallery = Gallery(folder / "pictures")
    figures, faults, set_aside = scoring.score_model(Model(predict), plan, gallery)  # type: ignore[arg-type]
    return Scores(figures, faults), set_aside, gallery


def find_different(frames: Sequence[np.ndarray], threshold: float | None) -> list[Instances]:
    """What differs from the most common colour of a frame: right on the canary and on the held-out clip."""
    found = []
    for frame in frames:
        ground = np.median(frame.reshape(-1, 3), axis=0)
        mask = torch.from_numpy(np.abs(frame - ground).sum(-1) > 60)
        found.append(Instances.from_masks(mask[None], torch.tensor([0.9])))
    return found


def find_everywhere(frames: Sequence[np.ndarray], threshold: float | None) -> list[Instances]:
    return [Instances.from_masks(torch.ones(1, *frame.shape[:2]).bool(), torch.tensor([0.9])) for frame in frames]


def find_nothing(frames: Sequence[np.ndarray], threshold: float | None) -> list[Instances]:
    return [found[:0] for found in find_everywhere(frames, threshold)]


def find_one_place(frames: Sequence[np.ndarray], threshold: float | None) -> list[Instances]:
    found = find_everywhere(frames, threshold)
    for instances in found:
        instances.masks[:, instances.size[0] // 2 :] = False
    return found


def find_no_number(frames: Sequence[np.ndarray], threshold: float | None) -> list[Instances]:
    return [found.with_scores(torch.full_like(found.scores, math.nan)) for found in find_different(frames, threshold)]


def test_scores_of_a_model_that_is_right(plan: Plan, tmp_path: Path) -> None:
    scores, set_aside, gallery = measure(find_different, plan, tmp_path)
    assert scores.faults == {"canary": None, "held_out": None}
    assert scores.figures["canary_mask_AP"] > 0.7  # type: ignore[operator]
    assert scores.figures["temporal_iou"] > 0.7  # type: ignore[operator]
    assert (scores.figures["empty_share"], scores.figures["held_out_frames"]) == (0, 4)
    assert set_aside == []
    assert [one["kind"] for one in gallery.entries] == ["canary"] * 2 + ["held_out"] * 4
    assert all((tmp_path / one["file"]).is_file() for one in gallery.entries)


@pytest.mark.parametrize(
    ("predict", "fault"),
    [
        (find_everywhere, "one mask for everything"),
        (find_nothing, "nothing anywhere"),
        (find_one_place, "the same mask on every image"),
    ],
)
def test_a_collapsed_model_is_refused(plan: Plan, tmp_path: Path, predict: Any, fault: str) -> None:
    good, bad = measure(find_different, plan, tmp_path / "1")[0], measure(predict, plan, tmp_path / "2")[0]
    assert fault in str(bad.faults["canary"])
    assert fault in str(bad.faults["held_out"])
    assert decide(good, bad, GATE).rule == "canary_not_collapsed"
    assert decide(bad, good, GATE).promoted


def test_untrained_weights_are_refused(plan: Plan, tmp_path: Path) -> None:
    torch.manual_seed(0)
    settings = dataclasses.replace(params.TrainParams().mosis, preset="small")
    untrained = Predictor(models.METHODS["mosis"](settings, (64, 64)), (64, 64))
    plan = dataclasses.replace(plan, canary=plan.canary[:2], held_out=())  # it finds a hundred things in each frame
    with shared_cores():
        good, bad = measure(find_different, plan, tmp_path / "1")[0], measure(untrained, plan, tmp_path / "2")[0]
    decision = decide(good, bad, GATE)
    assert not decision.promoted
    assert not next(one.passed for one in decision.rules if one.name == "canary_mask_AP")


def test_a_model_that_gives_no_numbers_has_no_scores(plan: Plan, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a finite number"):
        measure(find_no_number, plan, tmp_path)


def test_a_broken_held_out_clip_is_set_aside_and_a_broken_canary_is_not(plan: Plan, tmp_path: Path) -> None:
    broken = make_clip(tmp_path, "b", moving_square(6))
    broken.path.write_bytes(b"PK\x03\x04 no zip")
    both = dataclasses.replace(plan, held_out=((broken, (0, 1)), *plan.held_out))
    scores, set_aside, _ = measure(find_orange, both, tmp_path)
    assert [one["clip_id"] for one in set_aside] == [broken.clip_id]
    assert scores.figures["held_out_frames"] == 4
    alone = dataclasses.replace(plan, held_out=((broken, (0, 1)),))
    assert "held_out" not in measure(find_orange, alone, tmp_path)[0].faults
    with pytest.raises(DataError):
        measure(find_orange, dataclasses.replace(plan, canary=((broken, (0, 1)),)), tmp_path)


def test_frames_with_others_between_them_are_not_compared(plan: Plan, tmp_path: Path) -> None:
    """Held out are frames 0, 1, 3 and 4: what is steady within both pairs is steady."""
    plan = dataclasses.replace(plan, batch_size=1)
    seen = 0

    def move_between_pairs(frames: Sequence[np.ndarray], threshold: float | None) -> list[Instances]:
        nonlocal seen
        (frame,) = frames
        if frame.shape[:2] != (48, 64):  # of the canary
            return find_different(frames, threshold)
        mask = torch.zeros(1, *frame.shape[:2], dtype=torch.bool)
        mask[:, 36:44, 4:16] = seen < 2
        mask[:, 2:10, 48:60] = seen >= 2
        seen += 1
        return [Instances.from_masks(mask, torch.tensor([0.9]))]

    assert measure(move_between_pairs, plan, tmp_path)[0].figures["temporal_iou"] > 0.85  # type: ignore[operator]


def test_held_out_counts_what_labels_would_hold(plan: Plan, tmp_path: Path) -> None:
    """Detections below the threshold of labels make no frame a frame with labels."""

    def find_unsurely(frames: Sequence[np.ndarray], threshold: float | None) -> list[Instances]:
        return [found.with_scores(torch.full_like(found.scores, 0.3)) for found in find_different(frames, threshold)]

    assert measure(find_unsurely, plan, tmp_path)[0].figures["empty_share"] == 1


def test_pictures_are_of_the_same_frames_whatever_cannot_be_read(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(scoring._SHOWN, HELD_OUT, 2)  # of six frames those at places 1 and 4
    broken = make_clip(tmp_path, "b", moving_square(6))
    broken.path.write_bytes(b"PK\x03\x04 no zip")
    both = dataclasses.replace(plan, held_out=((broken, (0, 1)), *plan.held_out))
    shown = [one["frame"] for one in measure(find_different, both, tmp_path)[2].entries if one["kind"] == HELD_OUT]
    assert shown == [3]


def test_scores_are_those_of_one_plan(plan: Plan) -> None:
    assert plan.frames == dataclasses.replace(plan, batch_size=1).frames
    fewer = dataclasses.replace(plan, held_out=((plan.held_out[0][0], (0, 1)),))
    moved = dataclasses.replace(plan, canary=plan.canary[:-1], held_out=(plan.canary[-1], *plan.held_out))
    others = [fewer, moved, dataclasses.replace(plan, score_threshold=0.3), dataclasses.replace(plan, score_floor=0.0)]
    assert len({one.frames for one in (plan, *others)}) == len({one.digest for one in (plan, *others)}) == 5


@pytest.mark.parametrize("content", ["[]", "{}", '{"format": 1, "figures": {"a": "b"}, "faults": {}, "pictures": []}'])
def test_broken_scores_are_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "scores.json").write_text(content)
    with pytest.raises(DataError, match=r"scores\.json"):
        scoring.read_scores(tmp_path)


def test_the_canary_is_nobody_elses_and_is_made_anew_where_it_is_not_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert canary.canary_id() != canary.canary_id(CANARY)
    monkeypatch.setattr(canary, "VIDEOS", CANARY)
    made = canary.make_canary(tmp_path)
    assert [entry.truth for entry in made] == [True] * 6
    stamp = made[0].path.stat().st_mtime_ns
    assert canary.make_canary(tmp_path)[0].path.stat().st_mtime_ns == stamp
    content = made[0].path.read_bytes()
    made[0].path.unlink()
    assert canary.make_canary(tmp_path)[0].path.read_bytes() == content
