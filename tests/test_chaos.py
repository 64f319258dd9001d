"""What the chaos campaign is made of: who descends from whom, which victims are drawn when, memory that grows."""

from __future__ import annotations

import subprocess
import sys

import pytest

from benchmarks.survival import campaign, scenarios, victims
from benchmarks.survival.campaign import draw
from flows.processes import identify


def test_who_descends_from_whom() -> None:
    inner = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'print(1, flush=True); input()'])"
    with subprocess.Popen([sys.executable, "-c", inner], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        parent.stdout.readline()
        known = identify(parent.pid)
        assert known is not None
        (child,) = victims.descendants(known)
        assert "input" in victims.describe(child)
        assert victims.proportional_mib(child) > 1
        parent.communicate(b"\n")
    assert victims.descendants(child) == []
    assert victims.proportional_mib(child) == 0


def test_a_draw_is_by_its_seed_and_has_every_victim_by_its_weight() -> None:
    strikes = draw(campaign.NEW_VIDEO, 32, 3)
    assert strikes == draw(campaign.NEW_VIDEO, 32, 3) != draw(campaign.NEW_VIDEO, 32, 4)
    counts = {kind: sum(one == kind for one, _ in strikes) for kind in campaign.NEW_VIDEO}
    assert counts == {kind: 2 * weight for kind, weight in campaign.NEW_VIDEO.items()}
    assert all(0 <= delay <= campaign.SPAN_S[kind] for kind, delay in strikes)
    assert len(draw(campaign.NEW_VIDEO, 5, 0)) == 5
    assert draw(campaign.NEW_VIDEO, 0, 0) == []


def test_memory_that_grows_is_told_from_memory_that_does_not() -> None:
    assert scenarios.grow([10, 100, 100, 100, 100, 101, 99, 100]) == pytest.approx(1.0)
    assert scenarios.grow([10, 100, 100, 120, 140, 160, 180, 200]) > scenarios._FLAT
