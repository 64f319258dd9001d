"""Kills at random moments, drawn by seed, and what is seen after each."""

from __future__ import annotations

import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.survival import victims
from benchmarks.survival.farm import Farm, wait_until
from benchmarks.survival.invariants import Finding, Inspector, inspect_end
from benchmarks.survival.victims import DVC, FLOW, POSTGRES, RETRAIN, SCORER, SERVERS, STAGE, VIDEO
from flows.processes import Process

ORPHAN_S = 15.0
"""No child of a killed flow, DVC or stage lives longer than that."""
_APPEARS_S = 420.0
"""Longer than the watchdogs take to see that a run was never started and keeps the others waiting."""
SPAN_S = {FLOW: 30.0, VIDEO: 10.0, RETRAIN: 60.0, SCORER: 8.0, DVC: 8.0, STAGE: 8.0, POSTGRES: 10.0}
SPAN_S |= dict.fromkeys(SERVERS, 10.0)
"""A kill is at a moment drawn evenly from so long after its victim, or for servers a flow, is there."""

NEW_VIDEO = {FLOW: 4, VIDEO: 4, "worker": 3, "prefect": 3, "mlflow": 2}
"""Weight of each victim in the draw."""
BOTH = {**NEW_VIDEO, RETRAIN: 3, STAGE: 2, DVC: 2, SCORER: 1}
"""While versions are trained and promoted or not, too."""


def draw(weights: Mapping[str, int], kills: int, seed: int) -> list[tuple[str, float]]:
    """(victim, seconds after it was seen) of each kill; each victim as often as its weight says, in any order."""
    source = random.Random(seed)
    total = sum(weights.values())
    shares = {kind: kills * weight / total for kind, weight in weights.items()}
    kinds = [kind for kind, share in shares.items() for _ in range(int(share))]
    rest = sorted(shares, key=lambda kind: shares[kind] % 1, reverse=True)
    kinds += rest[: kills - len(kinds)]
    source.shuffle(kinds)
    return [(kind, source.uniform(0, SPAN_S[kind])) for kind in kinds]


@dataclass
class Campaign:
    """postgres: kills and restarts it. backlog: videos that wait at the least while kills go on, so that there is
    always work to kill. retrain: whether trainings are started where there is none."""

    farm: Farm
    postgres: Callable[[], None] | None = None
    backlog: int = 8
    retrain: bool = False
    kills: Counter[str] = field(default_factory=Counter)
    findings: list[Finding] = field(default_factory=list)
    longest_wait_s: float = 0.0

    def run(self, strikes: Sequence[tuple[str, float]], minutes: float) -> dict[str, Any]:
        """As `draw` gives them, as many as begin within the minutes; a row of figures."""
        began = time.monotonic()
        inspector = Inspector(self.farm)
        self.farm.drop(2 * self.backlog)
        try:
            self.farm.up()
            for kind, delay_s in strikes:
                if time.monotonic() > began + 60 * minutes:
                    break
                self.strike(kind, delay_s)
                self.take(inspector.inspect())
            rested = time.monotonic()
            self.farm.up()
            self.farm.notify()
            self.take(inspector.inspect_rest())
        finally:
            self.take(inspect_end(self.farm))
        return {
            "kills": self.kills.total(),
            "killed": dict(sorted(self.kills.items())),
            "videos": len(self.farm.dropped),
            "champions": inspector.champions,
            "seconds": round(time.monotonic() - began, 1),
            "rest_seconds": round(time.monotonic() - rested, 1),
            "longest_wait_seconds": round(self.longest_wait_s, 1),
        }

    def strike(self, kind: str, delay_s: float) -> None:
        """One kill, and all that somebody would do after it."""
        victim = self.await_victim(kind)
        time.sleep(delay_s)
        victim = self.current(kind) or self.await_victim(kind)
        if victim is None and kind in (STAGE, DVC, SCORER):  # the round is elsewhere; its flow is not
            kind, victim = RETRAIN, self.current(RETRAIN)
        if victim is None and kind != POSTGRES:
            self.take([Finding("hung", f"no {kind} within {_APPEARS_S:g} s: the service did not go on")])
            return
        family: list[Process] = []
        if victim is None and self.postgres is not None:
            self.postgres()
        elif victim is not None:
            family = victims.descendants(victim) if kind not in SERVERS else []
            victim.send(9)
            wait_until(lambda: not victim.is_alive(), ORPHAN_S, every_s=0.01)
        killed_at = time.monotonic()
        self.kills[kind] += 1
        print(f"kill {self.kills.total()}: {kind}, {self.farm.waiting()} videos wait", file=sys.stderr, flush=True)
        wait_until(lambda: not any(one.is_alive() for one in family), ORPHAN_S)
        orphans = [one for one in family if one.is_alive()]
        self.take(
            [Finding("orphans", f"outlived its {kind} by {ORPHAN_S:g} s: {victims.describe(o)}") for o in orphans]
        )
        if not self.farm.is_up():
            self.farm.up()
        print(f"  up again after {time.monotonic() - killed_at:.1f} s", file=sys.stderr, flush=True)

    def await_victim(self, kind: str) -> Process | None:
        """There is a victim, or for servers a flow that would miss it."""
        seen = FLOW if kind in SERVERS or kind == POSTGRES else kind
        began = time.monotonic()
        if (missing := self.backlog - self.farm.waiting()) > 0:
            self.farm.drop(missing)
        poked = 0.0

        def look() -> bool:
            nonlocal poked
            if time.monotonic() - poked > 20:
                poked = time.monotonic()
                if not self.farm.is_told("new-video"):
                    self.farm.notify()
                if self.retrain and not self.farm.is_told("retrain"):
                    self.farm.start_flow("retrain/retrain")
            return bool(victims.find(self.farm, seen))

        wait_until(look, _APPEARS_S)
        self.longest_wait_s = max(self.longest_wait_s, time.monotonic() - began)
        return self.current(kind)

    def current(self, kind: str) -> Process | None:
        return next(iter(victims.find(self.farm, kind)), None)

    def take(self, found: list[Finding]) -> None:
        for one in found:
            if one not in self.findings:
                self.findings.append(one)
                print(f"  FOUND {one.kind}: {one.text}", file=sys.stderr, flush=True)
