"""`mosis up` and `mosis down`: a Prefect server, MLflow and a worker for one workspace, each a process that stays.

What runs stands in .mosis/service/service.json, before and after each start; a process counts as ours by its number
and its moment of start, and all that they start carry a mark in their environment.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flows import environment
from flows.processes import MARK, Process, end, find_marked, start
from tasks.errors import DataError, ParamsError, StorageError
from tasks.files import read_json, sole_process, write_json
from tasks.params import Params
from tasks.tracking.server import make_schema, server_command, server_environment

FOLDER = Path(".mosis", "service")
NAMES = ("prefect", "mlflow", "worker")
"""In the order of starting."""
_STARTUP_S = 180.0
_GRACE_S = {"worker": 20.0, "mlflow": 10.0, "prefect": 10.0}
_POLL_S = 0.2


@dataclass
class State:
    """service.json. mark: of all our processes. database: whether an own one was named, which is not kept."""

    mark: str
    host: str
    processes: dict[str, Process] = field(default_factory=dict)
    ports: dict[str, int] = field(default_factory=dict)
    database: bool = False

    @property
    def prefect_url(self) -> str:
        return f"http://{_reachable(self.host)}:{self.ports['prefect']}"

    @property
    def mlflow_url(self) -> str:
        return f"http://{_reachable(self.host)}:{self.ports['mlflow']}"


@dataclass(frozen=True)
class Running:
    """What `mosis up` says. started: those of NAMES that were not running. urls: of the two servers."""

    started: tuple[str, ...]
    urls: Mapping[str, str]


def up(workspace: Path, settings: Params, *, database: str | None = None, host: str | None = None) -> Running:
    """Start what does not run, and register the deployments. Raises MosisError; what has been started stays then."""
    with _lock(workspace):
        state = _prepare(workspace, settings, database, host)
        started = []
        for name in NAMES:
            if name == "worker":
                _register(workspace, settings, state)
            if not _is_alive(state, name):
                _start(workspace, settings, state, name, database)
                started.append(name)
        return Running(tuple(started), {"prefect": state.prefect_url, "mlflow": state.mlflow_url})


def down(workspace: Path) -> list[str]:
    """End all processes of the service, the worker and its runs first; names of those that ran."""
    with _lock(workspace):
        state = read_state(workspace)
        if state is None:
            return []
        ran = [name for name in NAMES if _is_alive(state, name)]
        servers = [state.processes[name] for name in ("prefect", "mlflow") if name in state.processes]
        # Not the servers yet: a run that is told to end wants to report it.
        _end_all(state.mark, servers, _GRACE_S["worker"], also=state.processes.get("worker"))
        end(servers, _GRACE_S["prefect"])
        _end_all(state.mark, [], _GRACE_S["prefect"])
        state.processes = {}
        _write(workspace, state)
        return ran


def read_state(workspace: Path) -> State | None:
    """None where `mosis up` was never called here. Raises DataError where the file is broken."""
    path = workspace / FOLDER / "service.json"
    if not path.is_file():
        return None
    document = read_json(path)
    try:
        processes = {name: Process(int(pid), str(began)) for name, (pid, began) in document["processes"].items()}
        ports = {name: int(port) for name, port in document["ports"].items()}
        return State(str(document["mark"]), str(document["host"]), processes, ports, bool(document["database"]))
    except (TypeError, KeyError, ValueError, AttributeError):
        raise DataError(f"{path} is broken: end the processes that it names by hand, then remove it") from None


def living(workspace: Path) -> dict[str, bool]:
    """Which of NAMES run; empty where the service was never up."""
    state = read_state(workspace)
    return {name: _is_alive(state, name) for name in NAMES} if state is not None and state.processes else {}


def api_url(workspace: Path) -> str:
    """Of the Prefect server that runs for this workspace. Raises StorageError where none does."""
    state = read_state(workspace)
    if state is None or not _is_alive(state, "prefect"):
        raise StorageError(f"the service of {workspace} is not up: start it with `mosis up`")
    return f"{state.prefect_url}/api"


def _prepare(workspace: Path, settings: Params, database: str | None, host: str | None) -> State:
    state = read_state(workspace)
    host = host or settings.service.host
    if state is None or not any(_is_alive(state, name) for name in NAMES):
        mark = state.mark if state else secrets.token_hex(16)
        state = State(mark, host, ports={}, database=database is not None)
    elif state.database != (database is not None):
        what = "with a database: name it again" if state.database else "without --database"
        raise ParamsError(f"the service of {workspace} was started {what}, or end it first with `mosis down`")
    elif state.host != host:
        raise ParamsError(f"the service of {workspace} listens on {state.host}: end it first with `mosis down`")
    if database is not None:
        environment.check_database(database)
        make_schema(database)
    wanted = {"prefect": settings.service.prefect_port, "mlflow": settings.service.mlflow_port}
    for name, port in wanted.items():
        if name not in state.ports:
            state.ports[name] = port or _free_port(state.host)
    _write(workspace, state)
    return state


def _start(workspace: Path, settings: Params, state: State, name: str, database: str | None) -> None:
    leftover = [one for one in find_marked(state.mark) if one not in state.processes.values()]
    if name != "worker":  # its children may hold its port, or an `up` was killed before it could write down what it did
        end([one for one in leftover if _component(one) == name], _GRACE_S[name])
    variables = {**os.environ, MARK: state.mark, "MOSIS_SERVICE_PART": name}
    service = environment.service(workspace, state.prefect_url)
    if name == "prefect":
        command = [sys.executable, "-m", "flows.server", state.host, str(state.ports["prefect"])]
        variables |= service | environment.server(state.prefect_url, database)
    elif name == "mlflow":
        command = server_command(state.host, state.ports["mlflow"])
        variables |= server_environment(workspace, database)
    else:
        command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", "mosis", "--type", "process"]
        variables |= service | environment.worker()
        if database is not None:
            variables.setdefault("MLFLOW_TRACKING_URI", state.mlflow_url)
    log = workspace / FOLDER / f"{name}.log"
    _check_port(state, name)
    state.processes[name] = start(command, workspace, variables, log)
    _write(workspace, state)
    if name != "worker":
        _wait(state, name, log)


def _register(workspace: Path, settings: Params, state: State) -> None:
    os.environ.update(environment.service(workspace, state.prefect_url))
    from flows import deployments

    deployments.register(workspace, settings, has_worker=_is_alive(state, "worker"))


def _wait(state: State, name: str, log: Path) -> None:
    """Until the server answers. Raises StorageError with the last line that it printed where it does not."""
    url = f"{state.prefect_url}/api/health" if name == "prefect" else f"{state.mlflow_url}/health"
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + _STARTUP_S
    while time.monotonic() < deadline and state.processes[name].is_alive():
        with contextlib.suppress(urllib.error.URLError, OSError), direct.open(url, timeout=10):
            return
        time.sleep(_POLL_S)
    raise StorageError(f"{name} did not start: {log} says why")


def _end_all(mark: str, spared: list[Process], grace_s: float, also: Process | None = None) -> None:
    """All processes with the mark but those, again until there is none: what ends may have started something."""
    for _ in range(5):
        found = [one for one in {*find_marked(mark), *([also] if also else [])} if one.is_alive()]
        spared_now = {*spared, *(one for one in found if _component(one) in ("prefect", "mlflow") and spared)}
        found = [one for one in found if one not in spared_now]
        if not found:
            return
        end(found, grace_s)


def _component(process: Process) -> str | None:
    """Which of NAMES a process belongs to."""
    with contextlib.suppress(OSError):
        for variable in Path("/proc", str(process.pid), "environ").read_bytes().split(b"\0"):
            if variable.startswith(b"MOSIS_SERVICE_PART="):
                return variable.partition(b"=")[2].decode(errors="replace")
    return None


def _is_alive(state: State, name: str) -> bool:
    return name in state.processes and state.processes[name].is_alive()


def _write(workspace: Path, state: State) -> None:
    document: dict[str, Any] = {
        "mark": state.mark,
        "host": state.host,
        "ports": state.ports,
        "database": state.database,
        "processes": {name: [one.pid, one.started] for name, one in state.processes.items()},
    }
    write_json(workspace / FOLDER / "service.json", document)


def _free_port(host: str) -> int:
    try:
        with socket.create_server((host, 0)) as listener:
            return int(listener.getsockname()[1])
    except OSError as error:
        raise ParamsError(f"service.host: cannot listen on {host}: {error.strerror}") from None


def _check_port(state: State, name: str) -> None:
    if name not in state.ports:
        return
    try:
        socket.create_server((state.host, state.ports[name])).close()
    except OSError:
        raise StorageError(
            f"port {state.ports[name]} for {name} is taken by another program: end that, or choose another with "
            f"`mosis down` and service.{name}_port"
        ) from None


def _reachable(host: str) -> str:
    return "127.0.0.1" if host in ("0.0.0.0", "::") else host


def _lock(workspace: Path) -> contextlib.AbstractContextManager[None]:
    """One `mosis up` or `down` at a time. Raises BusyError."""
    busy = f"{workspace}: another `mosis up` or `mosis down` is at work: wait for it"
    return sole_process(workspace / FOLDER / "lock", busy)
