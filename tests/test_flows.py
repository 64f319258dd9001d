"""The pipeline with everything real: Prefect's server, DVC, the stages, MLflow on sqlite. Tiny video and training."""

from __future__ import annotations

import json
import logging
import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.cli import main
from flows.summary import print_run
from tasks import params, tracking, versioning, workspace
from tasks.errors import MosisError, ParamsError, SourceError, StageError, StorageError, StoreError
from tasks.versioning import Outcome
from tests.service_toy import git

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

BIN = Path(sys.executable).parent
TINY = {
    "ingest.synthetic.videos": 3,
    "ingest.synthetic.frames": 8,
    "ingest.synthetic.height": 64,
    "ingest.synthetic.width": 64,
    "ingest.synthetic.radius": [6.0, 12.0],
    "ingest.workers": 1,
    "pairs.height": 64,
    "pairs.width": 64,
    "pairs.workers": 1,
    "train.iterations": 4,
    "train.batch_size": 2,
    "train.validate_every": 4,
    "train.validation_images": 4,
    "train.workers": 1,
    "evaluate.split": "all",
    "evaluate.max_images": 8,
    "evaluate.pictures": 2,
    "evaluate.score_floor": 0.0,
}
STUB = """\
stages:
  ingest:
    cmd: {command}
    outs: [made]
"""


@dataclass(frozen=True)
class Finished:
    folder: Path
    out: str
    error: str


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home of its own, so that DVC's default remote is empty and no one's settings count; no server is named."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(folder))
        for name in ("PREFECT_API_URL", "PREFECT_HOME", "MLFLOW_TRACKING_URI", "MOSIS_TRACKING"):
            patch.delenv(name, raising=False)
        yield folder


@pytest.fixture(scope="module")
def finished(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A workspace in which `mosis run` has run once, with the local server that it starts itself."""
    folder = tmp_path_factory.mktemp("work") / "tiny"
    settings = [f"--set={key}={json.dumps(value)}" for key, value in TINY.items()]
    command = [BIN / "mosis", "run", "synthetic", "--workspace", folder, *settings]
    done = subprocess.run(command, capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stdout + done.stderr
    return Finished(folder, done.stdout, done.stderr)


@pytest.fixture(scope="module")
def prefect_server(home: Path) -> Iterator[None]:
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=120):
        yield


def run(folder: Path) -> dict[str, Outcome]:
    from flows.pipeline import pipeline

    return {stage.stage: stage.outcome for stage in pipeline(folder).stages}


def test_one_command_makes_labels_a_report_and_a_model(finished: Finished) -> None:
    for name in (
        "outputs/train/weights.safetensors",
        "outputs/evaluate/metrics.json",
        "outputs/labels/coco.json",
        "outputs/labels/ytvis.json",
        "outputs/report/index.html",
    ):
        assert (finished.folder / name).stat().st_size > 0
        assert name.endswith((".safetensors", "metrics.json")) or name in finished.out
    assert "AP50" in finished.out
    assert "models:/mosis@champion, version 1" in finished.out
    assert "load_model('models:/mosis@champion')" in finished.out
    for stage in params.STAGES:
        assert re.search(rf"{stage}\W+done\W", finished.out)
    # And git leads back to it.
    assert git(finished.folder, "status", "--porcelain") == ""
    assert "dvc.lock" in git(finished.folder, "show", "--stat", "--format=%s", "HEAD")


def test_what_keeps_a_run_from_being_committed_costs_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from flows import pipeline

    said: list[logging.LogRecord] = []
    logger = logging.Logger("in place of Prefect's, which speaks within a run alone")
    logger.addFilter(said.append)  # type: ignore[arg-type]
    monkeypatch.setattr(pipeline, "get_run_logger", lambda: logger)
    workspace.init(tmp_path / "made", {})
    (tmp_path / "made" / "params.yaml").write_text("{}\n")
    (tmp_path / "made" / ".git" / "HEAD").write_text("of no use")
    pipeline.keep_history(tmp_path / "made")
    (record,) = said
    assert record.levelname == "WARNING"
    assert "was not committed" in record.getMessage()
    assert "\n" not in record.getMessage()


def test_labels_of_nothing_are_warned_of(finished: Finished, capsys: pytest.CaptureFixture[str]) -> None:
    from flows.pipeline import PipelineRun

    warning = "the network finds nothing in any frame"
    summary = finished.folder / "outputs" / "labels" / "summary.json"
    before = summary.read_bytes()
    there = json.loads(before)
    assert (warning in finished.out) == (there["annotations"] == 0)
    run = PipelineRun((), tracking.RegisteredVersion("1", "models:/mosis/1", created=True))
    try:
        for count in (0, 1):
            summary.write_text(json.dumps({**there, "annotations": count}))
            print_run(finished.folder, run)
            assert (warning in capsys.readouterr().out) == (count == 0)
    finally:
        summary.write_bytes(before)


def test_no_wall_of_library_warnings(finished: Finished) -> None:
    noise = [line for line in finished.error.splitlines() if re.search(r"warn|deprecat|traceback|error", line, re.I)]
    assert not noise


def test_the_second_run_skips_everything_and_a_change_runs_what_comes_after_it(
    finished: Finished, prefect_server: None
) -> None:
    assert set(run(finished.folder).values()) == {Outcome.UNCHANGED}

    workspace.configure(finished.folder, {"export.score_threshold": 0.9})
    after = run(finished.folder)
    assert after == {**dict.fromkeys(params.STAGES, Outcome.UNCHANGED), "export": Outcome.RAN}


def test_status_says_what_would_run_and_who_is_champion(
    finished: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["status", str(finished.folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines[:5]] == [[stage, "unchanged"] for stage in params.STAGES]
    assert lines[5:] == ["champion  models:/mosis@champion, version 1"]
    assert tracking.find_champion(tmp_path) is None


@pytest.mark.filterwarnings("ignore:Logger 'prefect.task_runs' attempted")
def test_registering_again_makes_no_second_version(finished: Finished, prefect_server: None) -> None:
    from flows.pipeline import register

    version = register(finished.folder)
    assert (version.version, version.created) == ("1", False)


def test_a_clone_pulls_the_same_data_and_has_nothing_to_do(finished: Finished, tmp_path: Path) -> None:
    folder, clone = finished.folder, tmp_path / "elsewhere" / "clone"
    versioning.push(folder)
    subprocess.run(["git", "clone", "--quiet", folder, clone], check=True)
    lock = (clone / "dvc.lock").read_bytes()

    versioning.pull(clone)
    environment = versioning.stage_environment()
    done = subprocess.run([BIN / "dvc", "repro"], cwd=clone, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Data and pipelines are up to date." in done.stdout
    assert (clone / "dvc.lock").read_bytes() == lock
    for name in ("data/clips/manifest.parquet", "outputs/train/weights.safetensors", "outputs/evaluate/metrics.json"):
        assert (clone / name).read_bytes() == (folder / name).read_bytes()


def stub(folder: Path, command: str, sources: list[str]) -> Path:
    """A workspace whose ingest stage is a shell command."""
    folder.mkdir()
    subprocess.run(["git", "init", "--quiet"], cwd=folder, check=True)
    versioning.init(folder)
    (folder / "params.yaml").write_text(yaml.safe_dump({"ingest": {"sources": sources}}))
    (folder / "dvc.yaml").write_text(STUB.format(command=command))
    return folder


@pytest.mark.filterwarnings("ignore:Logger 'prefect.task_runs' attempted")
def test_a_source_behind_a_network_is_tried_again(
    tmp_path: Path, prefect_server: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows import pipeline

    monkeypatch.setattr(pipeline, "NETWORK_RETRY_S", (0.1,))
    fails_once = "'test -f tried && touch made || { touch tried; exit 3; }'"
    folder = stub(tmp_path / "remote", fails_once, ["s3://bucket/video.mp4"])
    again = pipeline.patient(pipeline.ingest, where=pipeline.reads_network(["s3://bucket/video.mp4"]))
    assert again(folder).outcome is Outcome.RAN

    for name, command, source in (("local", fails_once, "/video.mp4"), ("wrong", "touch tried$$; exit 1", "s3://b/v")):
        folder = stub(tmp_path / name, command, [source])
        with pytest.raises(StageError):
            pipeline.patient(pipeline.ingest, where=pipeline.reads_network([source]))(folder)
        assert len(list(folder.glob("tried*"))) == 1


def stage_error(code: int) -> StageError:
    error = StageError(f"it failed with exit code {code}")
    error.exit_code = code
    return error


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (stage_error(3), True),
        (stage_error(2), False),
        (stage_error(1), False),
        (StoreError("the store failed"), True),
        (StorageError("MLflow does not answer"), True),
        (ConnectionError("reset"), True),
        (ParamsError("unknown key"), False),
        (SourceError("not a video"), False),
    ],
)
def test_what_a_retry_can_mend(error: Exception, expected: bool) -> None:  # noqa: FBT001
    from prefect.states import Failed

    from flows.pipeline import may_pass_on_retry

    assert may_pass_on_retry(None, None, Failed(data=error)) is expected  # type: ignore[arg-type]


def test_a_failing_stage_surfaces_as_one_line(tmp_path: Path, prefect_server: None) -> None:
    from flows.pipeline import pipeline

    folder = stub(tmp_path / "broken", "exit 3", ["/video.mp4"])
    with pytest.raises(MosisError, match=r"^stage ingest: it failed with exit code 3[^\n]*$"):
        pipeline(folder)


def test_ctrl_c_in_a_terminal_ends_everything_at_once(tmp_path: Path, home: Path) -> None:
    """The terminal sends SIGINT to all of its foreground group. Prefect's server must not be in it: a flow whose server
    has died waits for minutes.
    """
    folder = stub(tmp_path / "stopped", "echo $$ > pid; sleep 100", ["/video.mp4"])
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(folder)
        os.execv(BIN / "mosis", ["mosis", "run"])
    shown = read_until(terminal, lambda: (folder / "pid").is_file())
    os.write(terminal, b"\x03")
    shown += read_until(terminal, lambda: False)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 130
    assert "mosis: interrupted" in shown
    assert "Traceback" not in shown
    assert "failed to process" not in shown
    assert not Path(f"/proc/{int((folder / 'pid').read_text())}").exists()


def read_until(terminal: int, condition: Any) -> str:
    """What is printed until the condition holds or the program closes the terminal; fails after some minutes."""
    shown, deadline = b"", time.monotonic() + 300
    while not condition():
        assert time.monotonic() < deadline, shown.decode()
        if select.select([terminal], [], [], 0.1)[0]:
            try:
                shown += os.read(terminal, 65536)
            except OSError:
                break
    return shown.decode()
