"""Real DVC on tiny pipelines, most of them plain shell commands: what is run here is DVC and what surrounds it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from tasks import versioning
from tasks.errors import BusyError, DataError, StageError, StorageError
from tasks.versioning import Outcome

PIPELINE = """\
stages:
  ingest:
    cmd: mkdir -p data && echo ${ingest.value} > data/clips
    params: [ingest]
    outs: [data/clips]
  pairs:
    cmd: cat data/clips data/clips > data/pairs
    deps: [data/clips]
    outs: [data/pairs]
"""
SLEEPER = """\
stages:
  ingest:
    cmd: echo $$ > pid && sleep 100 && echo late > late
    outs: [late]
"""


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("repository")
    subprocess.run(["git", "init", "--quiet"], cwd=folder, check=True)
    versioning.init(folder)
    return folder


@pytest.fixture
def folder(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A DVC repository with a home, and so a default remote, of its own."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    folder = tmp_path / "workspace"
    shutil.copytree(repository, folder)
    set_value(folder, 1)
    (folder / "dvc.yaml").write_text(PIPELINE)
    return folder


def set_value(folder: Path, value: int) -> None:
    (folder / "params.yaml").write_text(f"ingest: {{value: {value}}}\n")


def wait_until(condition: Callable[[], bool]) -> None:
    """Seconds at most, for what takes none on an idle machine; a test that waits in vain fails."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def is_alive(pid: int) -> bool:
    """Running; a zombie that nobody has reaped yet is not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def children(pid: int) -> list[int]:
    return [
        int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()
    ]


@pytest.fixture
def runner(folder: Path) -> Iterator[Callable[[str], subprocess.Popen[bytes]]]:
    """Starts a process that runs a stage as a Prefect task would, and kills what a failing test has left."""
    started: list[subprocess.Popen[bytes]] = []

    def start(stage: str) -> subprocess.Popen[bytes]:
        code = f"from pathlib import Path; from tasks import versioning; versioning.run_stage(Path.cwd(), {stage!r})"
        started.append(subprocess.Popen([sys.executable, "-c", code], cwd=folder, stderr=subprocess.DEVNULL))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_a_stage_runs_is_skipped_and_is_restored(folder: Path) -> None:
    assert versioning.data_md5(folder) is None
    assert versioning.run_stage(folder, "ingest") is Outcome.RAN
    assert versioning.run_stage(folder, "ingest") is Outcome.UNCHANGED
    assert versioning.changed_stages(folder) == {"pairs"}
    assert versioning.run_stage(folder, "pairs") is Outcome.RAN
    first = versioning.data_md5(folder)

    set_value(folder, 2)
    assert versioning.run_stage(folder, "ingest") is Outcome.RAN
    assert versioning.run_stage(folder, "pairs") is Outcome.RAN
    assert versioning.data_md5(folder) != first

    set_value(folder, 1)
    assert versioning.run_stage(folder, "ingest") is Outcome.RESTORED
    assert versioning.run_stage(folder, "pairs") is Outcome.RESTORED
    assert versioning.data_md5(folder) == first
    assert versioning.changed_stages(folder) == set()


def test_a_clone_whose_data_were_never_pushed_says_so(folder: Path, tmp_path: Path) -> None:
    versioning.run_stage(folder, "ingest")
    for name in ("data/clips", ".dvc/cache"):
        subprocess.run(["rm", "-r", folder / name], check=True)
    with pytest.raises(StorageError, match="dvc pull"):
        versioning.pull(folder)


@pytest.mark.parametrize(("command", "code"), [("exit 4", 4), ("exit 80", 1), ("kill -9 $$", 137)])
def test_a_failing_stage_is_not_mistaken_for_a_skipped_one(folder: Path, command: str, code: int) -> None:
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"train": {"cmd": command}}}))
    with pytest.raises(StageError, match="stage train") as caught:
        versioning.run_stage(folder, "train")
    assert caught.value.exit_code == (code if code < 80 else 1)


def test_what_dvc_itself_refuses_is_an_error_too(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(StageError, match="DVC could not run it"):
        versioning.run_stage(folder, "no-such-stage")
    assert "no-such-stage" in capfd.readouterr().err
    (folder / "dvc.yaml").write_text("stages: [")
    with pytest.raises(StageError, match="DVC could not run it"):
        versioning.run_stage(folder, "ingest")


def test_a_broken_lock_file_is_named(folder: Path) -> None:
    (folder / "dvc.lock").write_text("stages: [")
    with pytest.raises(DataError, match=r"dvc\.lock is not valid YAML of DVC"):
        versioning.data_md5(folder)


def test_python_in_dvc_yaml_is_this_one(folder: Path) -> None:
    command = 'python -c \'import sys; open("who", "w").write(sys.prefix)\''
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"train": {"cmd": command, "outs": ["who"]}}}))
    versioning.run_stage(folder, "train")
    assert (folder / "who").read_text() == sys.prefix


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_no_stage_outlives_the_run(folder: Path, runner: Callable[[str], subprocess.Popen[bytes]], number: int) -> None:
    """DVC leaves its stage alive when it is killed, and such a stage can overwrite outputs later."""
    (folder / "dvc.yaml").write_text(SLEEPER)
    process = runner("ingest")
    wait_until(lambda: (folder / "pid").is_file() and bool((folder / "pid").read_text()))
    stage = int((folder / "pid").read_text())
    assert is_alive(stage)
    process.send_signal(number)
    process.wait()
    wait_until(lambda: not is_alive(stage))

    (folder / "dvc.yaml").write_text(SLEEPER.replace("sleep 100", "sleep 0"))
    assert versioning.run_stage(folder, "ingest") is Outcome.RAN
    assert (folder / "late").read_text() == "late\n"


def test_what_runs_a_stage_ends_though_its_parent_died_before_it_was_ready(folder: Path) -> None:
    (folder / "dvc.yaml").write_text(SLEEPER)
    program = (
        "import subprocess, sys; from tasks.versioning import stage_environment, tell_parent\n"
        "command = [sys.executable, '-m', 'tasks.versioning', 'ingest']\n"
        "environment = tell_parent(stage_environment())\n"
        "print(subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL).pid)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    said = subprocess.run(
        [sys.executable, "-c", program], cwd=folder, env=environment, capture_output=True, text=True, check=True
    )
    wait_until(lambda: not is_alive(int(said.stdout)))
    assert not (folder / "pid").exists()


def test_two_runs_at_once_do_not_mix(folder: Path, runner: Callable[[str], subprocess.Popen[bytes]]) -> None:
    (folder / "dvc.yaml").write_text(SLEEPER)
    process = runner("ingest")
    wait_until((folder / "pid").is_file)
    with pytest.raises(BusyError, match="another process works here"):
        versioning.run_stage(folder, "ingest")
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    process.wait()


def test_kill_9_of_dvc_leaves_no_stage_that_writes_later(
    folder: Path, runner: Callable[[str], subprocess.Popen[bytes]]
) -> None:
    """The real ingest stage: it ends with DVC or, if DVC died before it could ask for that, holds the lock and the next
    run says so; then the run completes and its outputs are whole.
    """
    synthetic = {"videos": 400, "frames": 60, "height": 64, "width": 64, "radius": [6, 12]}
    (folder / "params.yaml").write_text(yaml.safe_dump({"ingest": {"synthetic": synthetic, "workers": 2}}))
    stage = {"cmd": "python -m tasks ingest", "params": ["ingest"], "outs": ["data/clips"]}
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"ingest": stage}}))
    process = runner("ingest")
    lock = folder / ".mosis" / "stage.lock"
    wait_until(lambda: lock.is_file() and bool(lock.read_text().strip()))
    working = int(lock.read_text().split()[-1])
    dvc = next(pid for pid in children(process.pid) if children(pid))
    os.kill(dvc, signal.SIGKILL)
    wait_until(lambda: not is_alive(working))
    assert process.wait() != 0
    assert not (folder / "data" / "clips" / "manifest.parquet").exists()

    (folder / "params.yaml").write_text(yaml.safe_dump({"ingest": {"synthetic": {**synthetic, "videos": 2}}}))
    assert versioning.run_stage(folder, "ingest") is Outcome.RAN
    from tasks.clips import open_clips

    assert len(open_clips(folder / "data" / "clips")) == 2
