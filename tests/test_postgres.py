"""The service on a real PostgreSQL: what lands in it, what its death does, and that no password of it is seen."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from flows import environment, service
from flows.processes import end, find_marked, identify, start
from tasks import library
from tasks.errors import ParamsError, StorageError
from tasks.tracking.server import make_schema
from tasks.workspace import configure
from tests import leaks
from tests.postgres import Postgres, serve_postgres
from tests.service_toy import drop, make_home, make_workspace, register_champion

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

BIN = Path(sys.executable).parent
KEY = "planted-key-of-a-store"


@dataclass
class Service:
    """A workspace whose service runs on `database`, and all that its commands have said."""

    workspace: Path
    server: Postgres
    database: str
    said: list[str]

    def mosis(self, *arguments: str) -> str:
        command = [BIN / "mosis", *arguments]
        done = subprocess.run(command, cwd=self.workspace, capture_output=True, text=True, timeout=500)
        assert done.returncode == 0, done.stderr
        self.said += [done.stdout, done.stderr]
        return done.stdout

    def rows(self, query: str) -> list[tuple[object, ...]]:
        return self.server.rows(query, self.database)

    def up(self) -> list[str]:
        """What became of each of the three."""
        url = self.server.url(self.database, password="${PLANTED}")
        return [line.split()[1] for line in self.mosis("up", "--database", f"{url}?sslmode=disable").splitlines()[:3]]


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with serve_postgres() as running:
        yield running


@pytest.fixture(scope="module")
def up(server: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    server.make_database("service")
    for _ in make_home(tmp_path_factory.mktemp("home")):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("AWS_SECRET_ACCESS_KEY", KEY)
            patch.setenv("PLANTED", server.password)
            workspace = make_workspace(tmp_path_factory.mktemp("made") / "workspace", champion=False)
            configure(workspace, {"service.cron": "0 0 * * *"})  # so that what comes, comes by the event
            running = Service(workspace, server, "service", [])
            try:
                assert running.up() == ["started"] * 3
                state = service.read_state(workspace)
                assert state is not None
                patch.setenv("MLFLOW_TRACKING_URI", state.mlflow_url)
                register_champion(workspace)
                yield running
            finally:
                service.down(workspace)


def wait_until(condition: Callable[[], object], seconds: float = 600) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(1)


HOSTILE = (b"; rm -rf ~.mp4", b"$(touch pwned).mp4", b"-rf.mp4", b"\xff\xfe\n\x1b[2J.mp4", b"a" * 251 + b".mp4")


def test_a_video_of_any_name_is_taken_in_and_stands_in_postgresql(up: Service) -> None:
    inbox = up.workspace / "inbox"
    for number, name in enumerate(HOSTILE):
        os.rename(os.fsencode(drop(inbox, "plain.mkv", number)), os.path.join(os.fsencode(inbox), name))
    before = sorted(os.listdir(os.fsencode(up.workspace)))
    up.mosis("notify", str(inbox / "; rm -rf ~.mp4"))
    wait_until(lambda: len(library.done_videos(up.workspace)) == len(HOSTILE))
    wait_until(lambda: ("COMPLETED", False) in up.rows("SELECT state_type, auto_scheduled FROM flow_run"))
    # A schedule that inserts no runs is silent: SQLAlchemy 2.1 under Prefect 3.8.
    wait_until(lambda: ("SCHEDULED", True) in up.rows("SELECT state_type, auto_scheduled FROM flow_run"))
    runs = "SELECT DISTINCT status FROM mlflow.runs JOIN mlflow.tags USING (run_uuid) WHERE value = 'new-video'"
    wait_until(lambda: up.rows(runs) == [("FINISHED",)])
    assert up.rows("SELECT name, version FROM mlflow.model_versions") == [("mosis", 1)]
    assert not (up.workspace / "mlruns" / "mlflow.db").exists()
    assert {entry.model["version"] for entry in library.done_entries(up.workspace)} == {"1"}
    assert sorted(os.listdir(os.fsencode(inbox))) == sorted(HOSTILE)
    assert sorted(os.listdir(os.fsencode(up.workspace))) == before  # none of the names was a command
    assert library.read_rejected(up.workspace) == {}


def test_nothing_listens_but_on_loopback(up: Service) -> None:
    state = service.read_state(up.workspace)
    assert state is not None
    heard = leaks.listening(find_marked(state.mark))
    assert {port for _, port in heard} >= set(state.ports.values())
    assert {address for address, _ in heard} <= {"127.0.0.1", "::1"}


def test_postgresql_dies_and_comes_back_and_the_service_goes_on(up: Service) -> None:
    done = len(library.done_videos(up.workspace))
    up.server.kill()
    time.sleep(3)  # what works without being asked finds it gone
    up.server.start()
    assert up.up() == ["runs"] * 3
    up.mosis("notify", str(drop(up.workspace / "inbox", "after.mp4", 50)))
    wait_until(lambda: len(library.done_videos(up.workspace)) == done + 1)
    wait_until(lambda: up.rows("SELECT count(*) FROM flow_run WHERE state_type = 'RUNNING'") == [(0,)])


def test_no_secret_is_seen_anywhere(up: Service) -> None:
    up.mosis("status")
    up.mosis("label", "inbox", "--model", "models:/mosis@champion", "--out", "labels")
    state = service.read_state(up.workspace)
    assert state is not None
    places = {
        **leaks.said(up.said),
        **leaks.command_lines(find_marked(state.mark)),
        **leaks.files(up.workspace),
        **leaks.files(Path(os.environ["HOME"])),
        **leaks.git_objects(up.workspace),
        "PostgreSQL": up.server.dump(up.database),
    }
    assert len(places) > 100
    assert leaks.find([up.server.password, KEY], places) == []


def test_a_secret_would_be_seen(tmp_path: Path) -> None:
    """What the search above rests on: each way of writing one, each kind of place."""
    git = ["git", "-C", str(tmp_path), "-c", "user.name=x", "-c", "user.email=x"]
    (tmp_path / "a").write_text("url = postgresql://me:p%40ss%2Fword@host")
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "add", "a"], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "p@ss/word"], check=True)
    process = start(
        [sys.executable, "-c", "import time; time.sleep(100)", "p@ss/word"], tmp_path, os.environ, tmp_path / "log"
    )
    places = {**leaks.files(tmp_path), **leaks.command_lines([process]), **leaks.said(["ok", "cEBzcy93b3Jk"])}
    end([process], 5)
    seen = leaks.find(["p@ss/word"], places)
    assert {f"process {process.pid}", "printed 1", repr(os.fsencode(tmp_path / "a"))} <= set(seen)
    assert "printed 0" not in seen
    assert len(leaks.find(["p@ss/word"], leaks.git_objects(tmp_path))) == 3  # the file, the commit and all in one
    with socket.create_server(("0.0.0.0", 0)) as everywhere, socket.create_server(("127.0.0.1", 0)) as here:
        me = identify(os.getpid())
        assert me is not None
        wide, near = everywhere.getsockname()[1], here.getsockname()[1]
        assert {("0.0.0.0", wide), ("127.0.0.1", near)} <= leaks.listening([me])


def test_down_ends_all_of_it(up: Service) -> None:
    state = service.read_state(up.workspace)
    assert state is not None
    assert up.mosis("down") == "ended: prefect, mlflow, worker\n"
    assert find_marked(state.mark) == []
    assert up.rows("SELECT count(*) FROM pg_stat_activity WHERE datname = 'service'") == [(1,)]  # that is we


def refusal(database: str) -> str:
    """What is said of it, in one line."""

    def let_in() -> None:
        environment.check_database(database)
        make_schema(database)

    with pytest.raises((ParamsError, StorageError)) as caught:
        let_in()
    said = str(caught.value)
    assert "\n" not in said
    assert "planted" not in said
    return said


def test_a_database_that_lets_nobody_in_is_one_line_without_the_password(server: Postgres) -> None:
    assert "refuses this user or password" in refusal(server.url(password="planted-wrong"))
    assert "has no database of that name" in refusal(server.url("nowhere"))
    assert f"127.0.0.1:{server.port} does not let us in" in refusal(server.url() + "?sslmode=planted")
    server.rows("CREATE ROLE guest LOGIN PASSWORD 'planted-guest'")
    guest = server.make_database("guarded").replace(f"mosis:{server.password}", "guest:planted-guest")
    assert "lets this user make no schema" in refusal(guest)
    server.rows("GRANT CREATE ON DATABASE guarded TO guest")
    assert "lets this user make no tables" in refusal(guest)
    assert "does not answer: is it running there?" in refusal("postgresql://mosis:planted@127.0.0.1:9/mosis")


def test_without_a_driver_and_without_a_variable_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ParamsError, match=r"\$\{NOT_SET_HERE\} is not set"):
        environment.fill_in_database("postgresql://me:${NOT_SET_HERE}@host/db")
    monkeypatch.setenv("WHOLE", "postgresql://me:planted@host/db")
    assert environment.fill_in_database("${WHOLE}") == "postgresql://me:planted@host/db"
    monkeypatch.setattr(environment.importlib.util, "find_spec", lambda name: None)
    assert "pip install 'mosis[postgres]'" in refusal("postgresql://me:planted@host/db")
