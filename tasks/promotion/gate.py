"""The gate: whether a challenger may take the champion's place, from the figures of both. Pure arithmetic.

docs/adr/0012 says why these rules. Each rule stands with both figures and the limit, so that a person can check it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tasks.service_params import GateParams

CANARY, HELD_OUT = "canary", "held_out"
"""The two sets of frames that versions are compared on."""


@dataclass(frozen=True)
class Scores:
    """Of one version. figures: those of `BOUNDS` and others, None where there was nothing to measure.

    faults: for each set that was looked at, why the predictions on it are degenerate, or None.
    """

    figures: Mapping[str, float | None]
    faults: Mapping[str, str | None]


@dataclass(frozen=True)
class Bound:
    """A figure that may get worse by no more than `tolerance`, a field of GateParams. sign: +1 where more is better.

    needed: a version without this figure is refused; the others are absent where no instance was found.
    """

    figure: str
    on: str
    sign: int
    tolerance: str
    needed: bool


BOUNDS = (
    Bound("canary_mask_AP", CANARY, 1, "canary_drop", needed=True),
    Bound("canary_box_AP", CANARY, 1, "canary_drop", needed=True),
    Bound("photometric_gain", HELD_OUT, 1, "gain_drop", needed=False),
    Bound("temporal_iou", HELD_OUT, 1, "temporal_iou_drop", needed=False),
    Bound("empty_share", HELD_OUT, -1, "empty_share_rise", needed=True),
)


@dataclass(frozen=True)
class Rule:
    """One rule and what came of it. champion, challenger: the figures or faults. limit: of the challenger's figure."""

    name: str
    champion: float | str | None
    challenger: float | str | None
    limit: float | None
    passed: bool
    note: str = ""


@dataclass(frozen=True)
class Decision:
    """rule: the first that speaks against the challenger, or "none against it"."""

    promoted: bool
    rule: str
    rules: tuple[Rule, ...]
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def decide(
    champion: Scores | None,
    challenger: Scores,
    gate: GateParams,
    *,
    best_before: Mapping[str, float] | None = None,
) -> Decision:
    """Whether `challenger` is no worse than `champion`. None: there is no champion, and it need only be sound.

    best_before: the best figures of earlier champions on the same canary. A challenger is measured against them where
    they are better than the champion's: else a small loss at each promotion would add up.
    """
    rules = [_sound(on, champion, challenger) for on in (CANARY, HELD_OUT) if on in challenger.faults]
    if not rules:
        rules = [Rule("looked_at", None, None, None, passed=False, note="no frame was looked at")]
    for bound in BOUNDS:
        if bound.on in challenger.faults or bound.on == CANARY:
            rules.append(_keeps(bound, champion, challenger, gate, best_before or {}))
    against = [rule for rule in rules if not rule.passed]
    notes = []
    if champion is None:
        notes.append("there was no champion")
    if HELD_OUT not in challenger.faults:
        notes.append("no held-out video: the canary alone decided")
    return Decision(not against, against[0].name if against else "none against it", tuple(rules), "; ".join(notes))


def _sound(on: str, champion: Scores | None, challenger: Scores) -> Rule:
    """Not degenerate: or no more than the champion is on this set, while sound on another."""
    fault = challenger.faults[on]
    before = None if champion is None else champion.faults.get(on)
    elsewhere = any(other is None for name, other in challenger.faults.items() if name != on)
    shared = fault is not None and before is not None and elsewhere
    note = "as the champion is on this set" if shared else ""
    return Rule(f"{on}_not_collapsed", before or "sound", fault or "sound", None, fault is None or shared, note)


def _keeps(
    bound: Bound, champion: Scores | None, challenger: Scores, gate: GateParams, best_before: Mapping[str, float]
) -> Rule:
    """No worse than the champion by more than the tolerance. A figure that is no number never passes."""
    ours = challenger.figures.get(bound.figure)
    theirs = None if champion is None else champion.figures.get(bound.figure)
    # One mask everywhere is the steadiest of all: what a collapsed champion reaches is no bar.
    sound = champion is not None and champion.faults.get(bound.on) is None
    reference = _better(bound.sign, theirs if sound else None, best_before.get(bound.figure))

    def rule(passed: bool, limit: float | None = None, note: str = "") -> Rule:  # noqa: FBT001
        return Rule(bound.figure, _plain(theirs), _plain(ours), limit, passed, note)

    if any(_is_broken(value) for value in (ours, theirs)):
        return rule(False, note="not a number")
    if ours is None:
        if bound.needed or reference is not None or champion is None:
            return rule(False, note="the challenger has no such figure")
        return rule(True, note="neither has such a figure")
    if sound and theirs is None and bound.needed:
        return rule(False, note="the champion has no such figure to compare with")
    if reference is None:
        return rule(True, note="nothing to compare with")
    limit = reference - bound.sign * getattr(gate, bound.tolerance)
    note = "" if reference == theirs else f"limit from an earlier champion's {reference:.3f}"
    return rule(bound.sign * (ours - limit) >= -1e-9, limit, note)


def _better(sign: int, *values: float | None) -> float | None:
    known = [value for value in values if value is not None and math.isfinite(value)]
    return max(known, key=lambda value: sign * value) if known else None


def _is_broken(value: float | None) -> bool:
    return value is not None and not math.isfinite(value)


def _plain(value: float | None) -> float | str | None:
    """JSON has no NaN."""
    return str(value) if value is not None and _is_broken(value) else value
