"""`mosis up`, `notify` and `down` with everything real: servers, worker, schedule, event; and what they are made of."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from flows import environment, service
from flows.cli import main
from flows.notify import emit_arrival
from flows.processes import MARK, Process, end, find_marked, identify, start
from tasks import library, params
from tasks.errors import BusyError, DataError, ParamsError, StorageError
from tasks.files import read_json
from tasks.workspace import configure
from tests.service_toy import drop, make_home, make_workspace

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

BIN = Path(sys.executable).parent
SLEEP = [sys.executable, "-c", "import time; time.sleep(100)"]
DEAF = [sys.executable, "-c", "import signal, time; signal.signal(15, 1); print(flush=True); time.sleep(100)"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    yield from make_home(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def made(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_workspace(tmp_path_factory.mktemp("made") / "workspace", champion=True)


def wait_until(condition: Callable[[], object], seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.2)


def failure(capsys: pytest.CaptureFixture[str], *command: str) -> str:
    """The one line of a command that fails."""
    assert main([*command]) != 0
    out, error = capsys.readouterr()
    assert out == ""
    assert error.count("\n") == 1
    return error


def test_a_process_is_known_by_its_start_and_not_by_its_number(tmp_path: Path) -> None:
    process = start(SLEEP, tmp_path, os.environ, tmp_path / "log")
    try:
        assert process.is_alive()
        assert identify(process.pid) == process
        stranger = Process(process.pid, "another start")
        assert not stranger.is_alive()
        end([stranger], 0.1)
        assert process.is_alive()
    finally:
        end([process], 5)
    assert not process.is_alive()
    assert identify(process.pid) is None
    process.send(15)  # nobody is there: nothing happens


def test_who_does_not_listen_is_killed_and_who_is_marked_is_found_without_its_parent(tmp_path: Path) -> None:
    mark = f"mark-{os.getpid()}-{time.monotonic_ns()}"
    child = f"import subprocess; print(subprocess.Popen({DEAF!r}).pid, flush=True)"
    log = tmp_path / "log"
    parent = start([sys.executable, "-c", child], tmp_path, {**os.environ, MARK: mark}, log)
    wait_until(lambda: not parent.is_alive() and log.read_text().strip(), 60)
    wait_until(lambda: log.read_text().endswith("\n\n"), 60)  # it no longer listens
    (orphan,) = find_marked(mark)
    assert orphan.pid == int(log.read_text().split()[0])
    end([orphan], 0.5)
    assert find_marked(mark) == []


def test_without_a_service_notify_and_down_say_so(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    video = drop(made / "inbox", "not-told.mp4", 77)
    try:
        said = failure(capsys, "notify", str(video), "--workspace", str(made))
        assert "is not up: start it with `mosis up`" in said
        elsewhere = drop(made, "elsewhere.mp4", 78)
        assert "not in the inbox" in failure(capsys, "notify", str(elsewhere), "--workspace", str(made))
        elsewhere.unlink()
        assert "no such file" in failure(capsys, "notify", "/no/such.mp4", "--workspace", str(made))
    finally:
        video.unlink()
    assert main(["down", "--workspace", str(made)]) == 0
    assert capsys.readouterr().out == "nothing was running\n"
    with pytest.raises(StorageError, match="does not answer"):
        emit_arrival("http://127.0.0.1:9/api", made, "x")


def test_an_inbox_with_a_password_in_its_url_is_kept_nowhere(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (made / "params.yaml").read_bytes()
    said = failure(capsys, "up", "--workspace", str(made), "--inbox", "s3://key:hunter2@bucket/in")
    assert "s3://bucket/in: its URL holds a password or key" in said
    assert "hunter2" not in said
    assert (made / "params.yaml").read_bytes() == before


@pytest.mark.parametrize("command", ["up", "down"])
def test_a_folder_that_is_no_workspace_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    assert "is no workspace" in failure(capsys, command, "--workspace", str(tmp_path))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"cron": "every day"}, "service.cron: write five fields, minute hour"),
        ({"retries": -1}, "service.retries"),
        ({"inbox_": "x"}, "did you mean inbox"),
        ({"prefect_port": 70000}, "service.prefect_port"),
        ({"settle_seconds": float("nan")}, "service.settle_seconds"),
    ],
)
def test_wrong_settings_fail_by_name(settings: dict[str, object], said: str) -> None:
    with pytest.raises(ParamsError, match=re.escape(said)):
        params.parse({"service": settings})


@pytest.mark.parametrize("url", ["mysql://me:hunter2@host/db", "hunter2", "postgresql://"])
def test_a_database_that_is_none_is_refused_without_quoting_it(url: str) -> None:
    with pytest.raises(ParamsError) as caught:
        environment.check_database(url)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("content", ["[]", "{}", '{"processes": {"worker": 3}}', "not JSON"])
def test_a_broken_record_of_what_runs_is_named(made: Path, tmp_path: Path, content: str) -> None:
    (tmp_path / service.FOLDER).mkdir(parents=True)
    (tmp_path / service.FOLDER / "service.json").write_text(content)
    with pytest.raises(DataError, match=r"service\.json"):
        service.read_state(tmp_path)


def test_two_at_once_are_refused(tmp_path: Path) -> None:
    with service._lock(tmp_path), pytest.raises(BusyError), service._lock(tmp_path):
        pass


def triggers(client: Any) -> dict[str, str]:
    """Name of each automation -> its id and its trigger's."""
    found = client.request("POST", "/automations/filter", json={}).json()
    return {one["name"]: f"{one['id']} {one['trigger']['id']}" for one in found}


def check_that_a_line_is_shortened(client: Any, deployment: Any) -> None:
    """Four runs wait, one of them of another flow: but for the last of ours, ours are cancelled."""
    from prefect.states import AwaitingConcurrencySlot

    from flows.line import keep_line_short, shorten

    moments = [datetime.now(UTC) + timedelta(seconds=seconds) for seconds in range(3)]
    other = client.read_deployment_by_name("retrain/retrain").id
    runs = [
        client.create_flow_run_from_deployment(identity, state=AwaitingConcurrencySlot(scheduled_time=moment)).id
        for identity, moment in [*((deployment, moment) for moment in moments), (other, moments[0])]
    ]
    assert shorten(str(deployment)) == 2
    assert [client.read_flow_run(run).state.type.value for run in runs] == [
        *["CANCELLED"] * 2,
        *["SCHEDULED"] * 2,
    ]
    assert shorten(str(deployment)) == 0
    more = client.create_flow_run_from_deployment(deployment, state=AwaitingConcurrencySlot(scheduled_time=moments[0]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT__RUNTIME__DEPLOYMENT__ID", str(deployment))
        with keep_line_short():
            wait_until(lambda: client.read_flow_run(more.id).state.is_cancelled(), 60)
    wait_until(lambda: "short line" not in [one.name for one in threading.enumerate()], 60)
    with keep_line_short():  # behind no deployment
        assert "short line" not in [one.name for one in threading.enumerate()]


def test_what_the_server_is_told_stands_once_however_often(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from prefect import get_client
    from prefect.states import Pending
    from prefect.testing.utilities import prefect_test_harness

    from flows import deployments

    with prefect_test_harness(server_startup_timeout=200):
        with get_client(sync_client=True) as client:
            deployments.register(made, params.load(made / "params.yaml"))
            watching = triggers(client)
            deployments.register(made, params.load(made / "params.yaml"))
            again = triggers(client)
            # A watchdog that is replaced forgets the runs that it watches, and a server that has not heard of a new
            # trigger yet loses the events of a video's arrival.
            assert again == watching
            assert {one.name for one in deployments.watchdogs()} < watching.keys()
            deployment = client.read_deployment_by_name("new-video/new-video")
            (schedule,) = deployment.schedules
            assert (schedule.schedule.cron, schedule.schedule.timezone) == ("*/5 * * * *", "UTC")
            assert deployment.global_concurrency_limit.limit == 1
            assert deployment.concurrency_options.collision_strategy == "ENQUEUE"
            assert deployment.parameters == {"folder": str(made)}
            check_that_a_line_is_shortened(client, deployment.id)
            taken = client.create_flow_run_from_deployment(deployment.id, state=Pending()).id
            deployments.register(made, params.load(made / "params.yaml"))
            assert client.read_flow_run(taken).state.is_pending()  # its worker lives
            deployments.register(made, params.load(made / "params.yaml"), has_worker=False)
            assert client.read_flow_run(taken).state.is_crashed()
            assert len(client.read_automations()) == 4
        wrong = params.parse({"service": {"cron": "99 * * * *"}})
        with pytest.raises(ParamsError, match="cannot be scheduled"):
            deployments.register(made, wrong)


def mosis(folder: Path, *arguments: str, check: bool = True) -> str:
    done = subprocess.run([BIN / "mosis", *arguments], cwd=folder, capture_output=True, text=True, timeout=500)
    assert not check or done.returncode == 0, done.stderr
    return done.stdout


def listening(port: int) -> set[str]:
    """Addresses, as /proc writes them, at which something listens on this port."""
    lines = [line.split() for name in ("tcp", "tcp6") for line in Path("/proc/net", name).read_text().splitlines()[1:]]
    return {line[1].split(":")[0] for line in lines if line[3] == "0A" and int(line[1].split(":")[1], 16) == port}


def test_up_notify_a_labelled_video_and_down(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "planted-secret")
    configure(made, {"service.cron": "0 0 1 1 *"})  # so that what comes, comes by the event
    # What an `up` has left that was killed before it could write down what it had started.
    (made / service.FOLDER).mkdir(parents=True, exist_ok=True)
    service._write(made, service.State("left", "127.0.0.1"))
    stray = start(SLEEP, made, {**os.environ, MARK: "left", "MOSIS_SERVICE_PART": "prefect"}, made / "stray.log")
    try:
        said = mosis(made, "up")
        assert not stray.is_alive()
        assert [line.split()[1] for line in said.splitlines()[:3]] == ["started"] * 3
        state = service.read_state(made)
        assert state is not None
        for port in state.ports.values():
            assert listening(port) == {"0100007F"}

        video = drop(made / "inbox", "; rm -rf ~.mp4", 1)
        assert mosis(made, "notify", str(video)) == "told the service\n"
        wait_until(lambda: library.done_videos(made))
        (entry,) = library.done_entries(made)
        assert entry.source == str(video)

        # The death of any one of them: the next `up` starts that one and leaves the others alone.
        before = dict(state.processes)
        before["worker"].send(9)
        wait_until(lambda: not before["worker"].is_alive(), 30)
        assert service.living(made) == {"prefect": True, "mlflow": True, "worker": False}
        said = mosis(made, "up")
        assert [line.split()[1] for line in said.splitlines()[:3]] == ["runs", "runs", "started"]
        after = service.read_state(made)
        assert after is not None
        assert {name for name in service.NAMES if after.processes[name] != before[name]} == {"worker"}
        status = mosis(made, "status")
        assert "1 videos, 0 not done yet" in status
        assert "service   prefect runs, mlflow runs, worker runs" in status
    finally:
        ended = mosis(made, "down", check=False)
    assert ended == "ended: prefect, mlflow, worker\n"
    assert find_marked(state.mark) == []
    for port in state.ports.values():
        assert not listening(port)
    for path in [*(made / ".mosis" / "service").glob("*.*"), *(made / "library").rglob("*.json")]:
        assert b"planted-secret" not in path.read_bytes()
    assert read_json(made / ".mosis" / "service" / "service.json")["processes"] == {}
