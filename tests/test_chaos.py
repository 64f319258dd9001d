"""The chaos campaign in short: three kills over a real service, and an inspector that sees what it should."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.survival import campaign, invariants, scenarios, victims
from benchmarks.survival.campaign import Campaign, draw
from benchmarks.survival.farm import Farm
from benchmarks.survival.invariants import Finding, Inspector
from flows.processes import identify
from tests.service_toy import git, make_home

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    yield from make_home(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def farm(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Farm:
    made = Farm(tmp_path_factory.mktemp("farm"))
    made.make()
    return made


@pytest.fixture(scope="module")
def tended(farm: Farm) -> tuple[Farm, Campaign]:
    """The farm after three kills, ended."""
    source = random.Random(7)
    strikes = [(kind, source.uniform(0, 2)) for kind in (victims.VIDEO, victims.FLOW, "prefect")]
    short = Campaign(farm, backlog=3)
    row = short.run(strikes, minutes=15)
    assert row["killed"] == {"flow": 1, "prefect": 1, "video": 1}
    return farm, short


def test_a_service_survives_three_kills(tended: tuple[Farm, Campaign]) -> None:
    farm, short = tended
    assert short.findings == []
    assert farm.waiting() == 0
    assert farm.processes() == []
    assert len(farm.dropped) >= 6


@pytest.fixture
def copy(tended: tuple[Farm, Campaign], tmp_path: Path) -> Farm:
    """The farm once more, to break."""
    original, _ = tended
    found = Farm(tmp_path)
    shutil.copytree(original.workspace, found.workspace, symlinks=True)
    shutil.copytree(original.home, found.home, dirs_exist_ok=True)
    found.dropped = dict(original.dropped)
    return found


def test_what_is_whole_is_not_found_fault_with(copy: Farm) -> None:
    inspector = Inspector(copy)
    assert inspector.inspect() == []
    assert inspector.champions == ["1"]
    assert [*inspector._leftovers(), *inspector._status(), *inspector._records()] == []


def test_each_kind_of_damage_is_found(copy: Farm) -> None:
    first, second, third = sorted(copy.dropped)[:3]
    library = copy.workspace / "library"
    (library / first / "labels" / "coco.json").write_text("{")
    os.truncate(next((library / second / "clips").glob("*.zip")), 100)
    for path in (copy.home / ".local/share/mosis/dvc/files/md5").rglob("*"):
        if path.is_file() and path.read_bytes()[:2] == b"PK":
            path.chmod(0o644)
            path.write_bytes(path.read_bytes()[:-1])
    said = {one.kind: one.text for one in Inspector(copy)._entries()}
    assert set(said) == {"torn"}
    assert len([*Inspector(copy)._entries()]) == 2
    assert len([*Inspector(copy)._archives()]) == len(copy.dropped)
    assert any("dvc status" in one.text for one in Inspector(copy)._status())

    (library / f"{third}.dvc").write_text((library / f"{third}.dvc").read_text() + "\n")
    git(copy.workspace, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qam", "again")
    (found,) = Inspector(copy)._commits()
    assert found == Finding("doubled", f"{copy.dropped[third]} was committed 2 times")
    del copy.dropped[third]
    assert "torn" in {one.kind for one in Inspector(copy)._commits()}
    (copy.workspace / ".mosis" / ".tmp-01234567-x.json").touch()
    (copy.workspace / ".git" / "index.lock").touch()
    assert [one.kind for one in Inspector(copy)._leftovers()] == ["torn", "hung"]


def test_without_a_champion_and_with_runs_that_never_end_that_is_found(copy: Farm) -> None:
    from tasks import tracking

    with invariants.tracking_at(copy):
        client = tracking.connect(copy.workspace)
        client.create_run(client.get_experiment_by_name("mosis").experiment_id, run_name="left")
        assert [one.text for one in Inspector(copy)._records()] == ["in MLflow the run left is RUNNING for ever"]
        client.delete_registered_model_alias("mosis", "champion")
    assert [one.text for one in Inspector(copy)._champion()] == ["no version is the champion any more"]


def test_a_video_that_is_never_done_is_lost(copy: Farm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(invariants, "_DONE_S", 0)
    monkeypatch.setattr(invariants, "_RUNS_END_S", 0)
    monkeypatch.setattr(Farm, "flow_runs", lambda *unused: [])  # the service is down by now
    copy.dropped["0" * 16] = "never.mp4"
    assert "never.mp4 was never done" in {one.text for one in Inspector(copy).inspect_rest()}
    assert any("no run of MLflow" in one.text for one in Inspector(copy)._records())


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
