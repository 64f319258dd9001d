"""The gate by hand: which figures promote a challenger, which do not, and what is said of it."""

from __future__ import annotations

import math

import pytest

from tasks.promotion.gate import Decision, Scores, decide
from tasks.service_params import GateParams

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


def test_small_losses_do_not_add_up_over_the_rounds() -> None:
    slipped = scores(canary_mask_AP=0.485)
    assert decide(scores(), slipped, GATE).promoted
    again = scores(canary_mask_AP=0.470)
    assert decide(slipped, again, GATE).promoted
    decision = decide(slipped, again, GATE, best_before={"canary_mask_AP": 0.5})
    assert (decision.promoted, decision.rule) == (False, "canary_mask_AP")
    assert "0.500" in next(one.note for one in decision.rules if one.name == "canary_mask_AP")
