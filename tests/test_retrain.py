"""Retraining with everything real but the network and its training: Prefect's server, DVC, git, MLflow on sqlite."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from flows import summary
from flows.cli import main
from tasks import params, registry, tracking, versioning
from tasks.errors import BusyError, DataError, ParamsError, StorageError
from tasks.files import read_json, write_json
from tasks.promotion import ledger, rounds, scoring, trial
from tasks.promotion.ledger import DECIDED, DONE
from tasks.promotion.rounds import Round
from tests import challenger_toy as toy
from tests import leaks
from tests.retrain_kill_points import POINTS
from tests.service_toy import git, make_home
from tests.store_toy import SECRET

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    yield from make_home(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def workspace(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One for all tests of this file, which tell its story in their order."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        toy.use_toy(patch, folder / "code")
        patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        made = toy.make_workspace(folder / "workspace")
        toy.make_library(made, 6)
        yield made


@pytest.fixture(scope="module")
def prefect_server(home: Path) -> Iterator[None]:
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=500):
        yield


def run(folder: Path, *, force: bool = False) -> Any:
    from flows.retrain import retrain

    return retrain(str(folder), force=force)


def champion(folder: Path) -> str:
    found = tracking.find_champion(folder)
    assert found is not None
    return found.version


def tags(folder: Path, version: str) -> dict[str, str]:
    return dict(tracking.read_version(folder, version).tags)


def versions(folder: Path) -> int:
    return len(tracking.connect(folder).search_model_versions("name = 'mosis'"))


def retrain_runs(folder: Path) -> list[Any]:
    client = tracking.connect(folder)
    return client.search_runs([client.get_experiment_by_name("mosis").experiment_id], "tags.stage = 'retrain'")


def failure(capsys: pytest.CaptureFixture[str], *command: str) -> str:
    """The one line of a command that fails."""
    assert main([*command]) != 0
    out, error = capsys.readouterr()
    assert out == ""
    assert error.count("\n") == 1
    return error


def test_a_worse_challenger_is_refused_and_the_rule_is_named(
    workspace: Path, prefect_server: None, capsys: pytest.CaptureFixture[str]
) -> None:
    head = git(workspace, "rev-parse", "HEAD").strip()
    settings = params.load(workspace / "params.yaml")
    assert rounds.new_minutes(workspace, settings) == pytest.approx(6 * 0.25 / 60)
    toy.prepare(workspace, shift=9.0)
    done = run(workspace)

    assert done.describe() == "version 2 refused: canary_mask_AP"
    assert champion(workspace) == "1"
    record = ledger.find_record(workspace, "2")
    assert record == done.record
    assert record is not None
    assert (record.state, record.champion, record.self_training) == (DONE, "1", False)
    assert record.decision.note == ""  # held-out video was looked at
    assert record.data["held_out_frames"] == record.figures["challenger"]["held_out_frames"] > 0
    assert record.data["library"] == head
    assert record.data["dvc_md5_clips"] == versioning.data_md5(workspace, "data/clips")
    assert {name: tags(workspace, "2").get(name) for name in ("gate", "gate_rule", "gate_round")} == {
        "gate": "refused",
        "gate_rule": "canary_mask_AP",
        "gate_round": "1",
    }

    # What was trained on stands in params.yaml, for ever, and is committed with what came of it.
    sources = yaml.safe_load((workspace / "params.yaml").read_text())["ingest"]["sources"]
    assert sources[1:] == [f"library:library@{head}"]
    assert git(workspace, "status", "--porcelain", "--untracked-files=no") == ""
    assert "dvc.lock" in git(workspace, "show", "--stat", "--format=%s", "HEAD")
    assert git(workspace, "rev-parse", "HEAD").strip() == record.data["git_revision"]
    assert run(workspace).describe() == "nothing to do: 0.0 of 0.01 minutes of new video have come"

    page = ledger.page_path(workspace, 1).read_text()
    assert "canary mask AP" in page
    assert page.count("data:image/jpeg;base64") == 2 * 8
    (tracked,) = retrain_runs(workspace)
    assert (tracked.info.status, tracked.data.tags["gate"]) == ("FINISHED", "refused")
    assert tracked.data.metrics["champion.canary_mask_AP"] > tracked.data.metrics["challenger.canary_mask_AP"]
    artifacts = tracking.connect(workspace).list_artifacts(tracked.info.run_id)
    assert [one.path for one in artifacts] == ["001.html", "001.json"]
    assert main(["decisions", "--workspace", str(workspace)]) == 0
    assert capsys.readouterr().out.startswith("001  version 2 refused: canary_mask_AP\n")
    assert "decision  001  version 2 refused: canary_mask_AP" in summary.describe_service(workspace)


def test_what_the_gate_refused_does_not_come_back_by_mosis_run(workspace: Path) -> None:
    registered = tracking.register(workspace)
    assert (registered.version, registered.created, registered.uri) == ("2", False, "models:/mosis/2")
    assert registered.note.startswith("version 1 stays champion: the gate refused it (canary_mask_AP)")
    assert champion(workspace) == "1"
    assert trial.why_nothing_new(workspace, "2", "1") == "version 2 was decided about before: refused (canary_mask_AP)"
    assert trial.why_nothing_new(workspace, "1", "1") == "version 1 is champion: the training came out as it was"


def killed_at(workspace: Path, point: str) -> None:
    command = [sys.executable, "-m", "tests.retrain_kill_points", str(workspace), str(registry.SOURCES), point]
    killed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert killed.returncode == -signal.SIGKILL, killed.stderr


class KilledError(BaseException):
    """In place of a kill where the process is the tests' own."""


@pytest.mark.filterwarnings("ignore:Logger 'prefect")
def test_a_better_challenger_is_promoted_once_whatever_is_killed_on_the_way(
    workspace: Path, prefect_server: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy.prepare(workspace)
    settings = params.load(workspace / "params.yaml")
    one = rounds.next_round(workspace, settings, force=True)
    assert one is not None
    assert one.revision == rounds.frozen_revision(workspace, settings)  # nothing new: the same data
    rounds.write_round(workspace, one)
    versioning.run_stage(workspace, "train")

    killed_at(workspace, POINTS[0])
    assert (champion(workspace), versions(workspace), tags(workspace, "3")["gate"]) == ("1", 3, "undecided")
    assert "has not decided" in tracking.register(workspace).note
    assert champion(workspace) == "1"

    def die(*unused: Any) -> None:
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(trial, "carry_out_pending", die)
        with pytest.raises(KilledError):
            run(workspace)  # which goes on with the round, though nothing new has come
    assert (champion(workspace), versions(workspace)) == ("1", 3)
    written = ledger.find_record(workspace, "3")
    assert written is not None
    assert (written.state, written.promotes) == (DECIDED, True)

    killed_at(workspace, POINTS[1])
    assert (champion(workspace), tags(workspace, "3")["champion_before"]) == ("1", "1")
    with pytest.raises(DataError, match="took nobody's place"):
        tracking.rollback(workspace)  # the champion's own tag counts, and it has none

    killed_at(workspace, POINTS[2])
    assert champion(workspace) == "3"
    assert sorted(one.info.status for one in retrain_runs(workspace)) == ["FINISHED", "RUNNING"]

    done = run(workspace)
    assert done.describe() == "version 3 is champion, in place of 1"
    assert (champion(workspace), versions(workspace)) == ("3", 3)
    assert [one.state for one in ledger.read_records(workspace)] == [DONE, DONE]
    assert [one.info.status for one in retrain_runs(workspace)] == ["FINISHED"] * 2
    assert dataclasses.replace(done.record, state=DECIDED, led=None, cause="", outcome="", run_id=None) == written
    assert rounds.read_round(workspace) is None
    assert tags(workspace, "3")["gate"] == "promoted"
    assert "first champion" in ledger.page_path(workspace, 2).read_text()
    assert run(workspace).record is None


def test_people_have_the_last_word(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    at = ("--workspace", str(workspace))
    assert "champion already" in failure(capsys, "promote", "3", *at)
    assert "not in the registry" in failure(capsys, "promote", "99", *at)
    assert "is no version" in failure(capsys, "promote", "best", *at)
    assert main(["rollback", *at]) == 0
    assert champion(workspace) == "1"
    assert capsys.readouterr().out.startswith("champion is version 1, in place of version 3")
    assert "nothing to go back to" in failure(capsys, "rollback", *at)
    assert champion(workspace) == "1"
    # The training's outputs are still version 3: nothing but a person makes it champion again.
    assert "rolled it back" in tracking.register(workspace).note
    assert main(["promote", "2", *at]) == 0
    assert main(["promote", "3", *at]) == 0
    assert [main(["rollback", *at]), champion(workspace)] == [0, "2"]
    assert [main(["rollback", *at]), champion(workspace)] == [0, "1"]
    capsys.readouterr()
    assert "nothing to go back to" in failure(capsys, "rollback", *at)


def test_a_decision_is_not_carried_out_against_another_champion(workspace: Path) -> None:
    """Between decision and promotion somebody has promoted or rolled back: what was compared is no champion now."""
    record = ledger.find_record(workspace, "3")
    assert record is not None
    late = dataclasses.replace(record, number=3, state=DECIDED, led=None, cause="", champion="1")
    ledger.write_record(workspace, late)
    (done,) = trial.carry_out_pending(workspace)
    assert done.outcome == "version 3 was promoted, and rolled back by hand"
    assert champion(workspace) == "1"
    fourth = toy.register(workspace, alias="challenger", shift=1.0)
    assert fourth == "4"
    ledger.write_record(workspace, dataclasses.replace(late, number=4, challenger="4", champion="2", run_id=None))
    (done,) = trial.carry_out_pending(workspace)
    assert done.outcome == "version 4 not promoted: the champion changed meanwhile"
    assert (champion(workspace), tags(workspace, "4")["gate_rule"]) == ("1", "champion_changed")
    assert (tags(workspace, "4")["gate"], done.promotes) == ("refused", False)
    assert "refused: champion changed" in ledger.page_path(workspace, 4).read_text()
    assert retrain_runs(workspace)[0].data.tags["gate"] == "refused"


def test_a_decision_that_mlflow_did_not_take_is_not_done(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = ledger.find_record(workspace, "4")
    assert record is not None
    ledger.write_record(workspace, dataclasses.replace(record, state=DECIDED, run_id=None))
    before = len(retrain_runs(workspace))

    def refuse(*unused: Any) -> None:
        raise MlflowException("away")

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_artifact", refuse)
        with pytest.raises(StorageError, match="recorded by the next run"):
            trial.carry_out_pending(workspace)
    (done,) = trial.carry_out_pending(workspace)
    assert (done.state, done.outcome) == (DONE, record.outcome)
    assert [run.info.status for run in retrain_runs(workspace)] == ["FINISHED"] * (before + 1)


def test_a_version_that_kills_what_scores_it_is_refused_and_not_tried_for_ever(workspace: Path) -> None:
    version = toy.register(workspace, alias="challenger", score=-1.0)
    settings = params.load(workspace / "params.yaml")
    plan = scoring.make_plan(workspace, settings)
    leader = champion(workspace)
    theirs = (leader, trial.score_version(workspace, settings, plan, leader))
    ours = trial.score_challenger(workspace, settings, plan, version)
    assert str(ours).startswith("it cannot be scored, tried twice: its process died")
    record = trial.carry_out(
        workspace, trial.decide_about(workspace, settings, Round(None, 1.0), plan, (version, ours), theirs)
    )
    assert record.outcome == f"version {version} refused: canary_not_collapsed"
    assert "tried twice" in ledger.page_path(workspace, record.number).read_text()
    assert champion(workspace) == leader


def test_a_clip_that_one_version_could_not_read_is_looked_at_again(workspace: Path) -> None:
    """Else its short scores, which are kept, would end every later run."""
    settings = params.load(workspace / "params.yaml")
    plan = scoring.make_plan(workspace, settings)
    leader, other = champion(workspace), "3"
    assert leader != other
    theirs, ours = (trial.score_version(workspace, settings, plan, version) for version in (leader, other))
    document = read_json(ours / "scores.json")
    document["figures"]["held_out_frames"] -= 1
    write_json(ours / "scores.json", document)
    with pytest.raises(StorageError, match="not scored on the same frames"):
        trial.decide_about(workspace, settings, Round(None, 1.0), plan, (other, ours), (leader, theirs))
    assert not ours.exists()
    assert not theirs.exists()


def test_an_error_that_nobody_expected_is_the_versions_the_second_time(monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[str] = []

    def fail(*unused: Any) -> Path:
        tries.append("x")
        raise RuntimeError("shapes\ndiffer")

    monkeypatch.setattr(trial, "score_version", fail)
    arguments: Any = (Path(), None, None, "2")
    assert trial.score_challenger(*arguments) == "it cannot be scored, tried twice: shapes differ"
    assert tries == ["x", "x"]
    monkeypatch.setattr(trial, "score_version", lambda *unused: (_ for _ in ()).throw(StorageError("disk full")))
    with pytest.raises(StorageError, match="disk full"):
        trial.score_challenger(*arguments)


def test_two_retrainings_at_once_and_none_without_a_registry(
    workspace: Path, prefect_server: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with rounds.lock(workspace), pytest.raises(BusyError, match="under way"):
        run(workspace)
    monkeypatch.setenv("MOSIS_TRACKING", "off")
    with pytest.raises(ParamsError, match="needs the model registry"):
        run(workspace)


def test_enough_new_video_is_announced_once_it_has_come(workspace: Path, prefect_server: None) -> None:
    from flows.retrain import announce_growth

    settings = params.load(workspace / "params.yaml")
    assert rounds.next_round(workspace, settings, force=False) is None
    assert not announce_growth(workspace, settings)
    unfrozen = dataclasses.replace(
        settings, ingest=dataclasses.replace(settings.ingest, sources=("library:library@" + "0" * 40,))
    )
    assert announce_growth(workspace, unfrozen)  # a history that was rewritten: all of it is new
    assert not announce_growth(workspace, dataclasses.replace(unfrozen, service=params.ServiceParams()))


def test_a_round_that_failed_is_gone_on_with_until_more_has_come(workspace: Path) -> None:
    settings = params.load(workspace / "params.yaml")
    failed = rounds.Round("0" * 40, 1.0, failed="stage train: it failed")
    rounds.write_round(workspace, failed)
    assert rounds.next_round(workspace, settings, force=False) == failed
    unfrozen = dataclasses.replace(settings, ingest=params.IngestParams(sources=("library:library@" + "0" * 40,)))
    anew = rounds.next_round(workspace, unfrozen, force=False)
    assert anew is not None
    assert (anew.failed, anew.revision) == (None, git(workspace, "rev-parse", "HEAD").strip())
    under_way = dataclasses.replace(failed, failed=None)
    rounds.write_round(workspace, under_way)
    assert rounds.next_round(workspace, unfrozen, force=False) == under_way
    rounds.close_round(workspace)


def test_the_champion_teaches_the_next_round_where_that_is_switched_on(workspace: Path) -> None:
    settings = params.load(workspace / "params.yaml")
    (workspace / rounds.TEACHER / "earlier").mkdir(parents=True)
    place = trial.take_teacher(workspace)
    assert place is not None
    teacher = workspace / place
    assert list((workspace / rounds.TEACHER).iterdir()) == [teacher]
    assert tags(workspace, champion(workspace))["package_sha256"].startswith(teacher.name)
    assert sorted(path.name for path in teacher.iterdir()) == ["params.resolved.yaml", "weights.safetensors"]
    assert trial.take_teacher(workspace) == place
    one = rounds.Round(rounds.frozen_revision(workspace, settings), 1.0, teacher=place)
    rounds.freeze(workspace, settings, one)
    taught = params.load(workspace / "params.yaml")
    assert taught.train.teacher == place
    rounds.freeze(workspace, taught, dataclasses.replace(one, teacher=None))  # switched off
    assert params.load(workspace / "params.yaml").train.teacher is None
    own = dataclasses.replace(settings, train=params.TrainParams(teacher="mine"))
    assert "train.teacher" not in rounds.settings_of(workspace, own, dataclasses.replace(one, teacher=None))
    rounds.close_round(workspace)


def test_no_secret_of_the_environment_is_left_anywhere(workspace: Path) -> None:
    """Of all that the tests above have trained, pushed, decided and tracked."""
    places = {
        **leaks.files(workspace),
        **leaks.git_objects(workspace),
        **leaks.files(Path(os.environ["HOME"])),
    }
    assert any(name.endswith("mlflow.db'") for name in places)
    assert any("decisions" in name for name in places)
    assert leaks.find([SECRET], places) == []


def test_settings_of_a_round_leave_what_people_chose(tmp_path: Path) -> None:
    one = rounds.Round("a" * 40, 1.0)
    chosen = params.parse(
        {"ingest": {"sources": ["/v.mp4", "library:/other/library"]}, "pairs": {"train_share": 0.9, "val_share": 0.05}}
    )
    assert rounds.settings_of(tmp_path, chosen, one) == {
        "ingest.sources": ["/v.mp4", "library:/other/library", f"library:library@{'a' * 40}"]
    }
    every = params.parse({"ingest": {"sources": ["library:library"]}, "pairs": {"train_share": 1, "val_share": 0}})
    assert rounds.settings_of(tmp_path, every, one) == {
        "ingest.sources": [f"library:library@{'a' * 40}"],
        "pairs.train_share": 0.85,
        "pairs.val_share": 0.15,
    }
    assert rounds.settings_of(tmp_path, every, rounds.Round(None, 0.0)).keys() == {
        "pairs.train_share",
        "pairs.val_share",
    }


SLOW_STAGE = """\
stages:
  train:
    cmd: touch began && until test -e go; do sleep 0.1; done; echo x >> outcome
    outs: [outcome]
"""


def test_a_long_training_is_not_lost_where_new_video_is_pushed_as_it_ends(home: Path, tmp_path: Path) -> None:
    """DVC frees its lock while a stage works and takes it again at the end. By itself it waits three seconds for that,
    fails, and the next run trains anew.
    """
    from dvc.repo import Repo

    folder = tmp_path / "workspace"
    subprocess.run(["git", "init", "--quiet", folder], check=True)
    versioning.init(folder)
    (folder / "dvc.yaml").write_text(SLOW_STAGE)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        training = pool.submit(versioning.run_stage, folder, "train")
        while not (folder / "began").is_file():
            assert not training.done()
            time.sleep(0.05)
        with Repo(folder).lock:
            (folder / "go").touch()
            time.sleep(8)
            assert not training.done()
        assert training.result(60) is versioning.Outcome.RAN
    assert versioning.run_stage(folder, "train") is versioning.Outcome.UNCHANGED
    with Repo(folder).lock, pytest.raises(BusyError):  # to begin with, it says at once that another is at work
        versioning.run_stage(folder, "train")


def test_status_says_that_a_round_was_stopped(workspace: Path) -> None:
    rounds.write_round(workspace, Round(None, 1.0))
    said = [line for line in summary.describe_service(workspace) if line.startswith("training")]
    rounds.close_round(workspace)
    assert said == ["training  a round is under way or was stopped: `mosis retrain` goes on with it"]
    assert not any(line.startswith("training") for line in summary.describe_service(workspace))


@pytest.mark.parametrize("content", ["[]", "{}", "no JSON", '{"format": 1, "revision": 3, "minutes": 1}'])
def test_broken_records_are_named_and_nothing_is_guessed(tmp_path: Path, content: str) -> None:
    for path, read in (
        (tmp_path / rounds.STATE, rounds.read_round),
        (ledger.record_path(tmp_path, 1), ledger.read_records),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        with pytest.raises(DataError, match=path.name):
            read(tmp_path)
