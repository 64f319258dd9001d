"""A workspace under service with a toy champion, and all that a person would do with it, through the command line."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import ROOT
from flows import service
from flows.processes import Process, find_marked
from tasks import library
from tasks.errors import DataError, MosisError

_COMMAND = "import sys; from flows.cli import main; sys.exit(main())"
_MAKE = """
import json, sys
from pathlib import Path
from tasks.workspace import configure
from tests.clip_toy import write_weights
from tests.service_toy import make_workspace
folder = make_workspace(Path(sys.argv[1]), champion=False)
configure(folder, json.loads(sys.argv[2]))
write_weights(folder)
"""
_REGISTER = """
from pathlib import Path
from tasks import tracking
tracking.register(Path(sys.argv[1]))
"""
_FOREIGN = ("PREFECT_", "MLFLOW_", "MOSIS_", "AWS_", "DVC_", "GIT_")
_PATIENCE_S = 600.0
SETTINGS = {
    "service.settle_seconds": 0.2,
    "service.retries": 4,  # more than a campaign kills one and the same video, which is set aside then
    "export.score_threshold": 0.001,
    "train.device": "cpu",
}
SMALL_TRAINING = {
    "service.min_new_minutes": 0.001,
    "service.gate.frames": 8,
    "ingest.sources": ["library:library"],
    "ingest.workers": 1,
    "pairs.height": 64,
    "pairs.width": 64,
    "pairs.workers": 1,
    "train.iterations": 4,
    "train.batch_size": 2,
    "train.validate_every": 4,
    "train.validation_images": 4,
    "train.workers": 1,
    "evaluate.max_images": 8,
    "evaluate.pictures": 2,
}
"""Real stages in seconds each."""


class Farm:
    """base: everything of it lies there, home and temporary files too. variables: more environment of all commands."""

    def __init__(self, base: Path, *, database: str | None = None, variables: Mapping[str, str] | None = None) -> None:
        self.base, self.database = base, database
        self.workspace = base / "workspace"
        self.inbox = self.workspace / "inbox"
        self.home = base / "home"
        self.dropped: dict[str, str] = {}
        self._number = 0
        for folder in (self.home, base / "tmp"):
            folder.mkdir(parents=True, exist_ok=True)
        kept = {name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN)}
        own = {
            "HOME": str(self.home),
            "TMPDIR": str(base / "tmp"),
            "GIT_CONFIG_NOSYSTEM": "1",
            # The code beside this file, whatever is installed.
            "PYTHONPATH": str(ROOT),
        }
        self.environment = {**kept, **own, **(variables or {})}

    def make(self, settings: Mapping[str, Any] | None = None) -> None:
        """A new workspace with an untrained network as the champion. Not in this process: it loads torch and MLflow."""
        document = json.dumps({**SETTINGS, **(settings or {})})
        arguments = [str(self.workspace), document]
        if not self.database:
            self.run([sys.executable, "-c", _MAKE + _REGISTER, *arguments])
            return
        self.run([sys.executable, "-c", _MAKE, *arguments])
        self.up()
        self.environment["MLFLOW_TRACKING_URI"] = self.tracking_uri()
        self.run([sys.executable, "-c", "import sys" + _REGISTER, *arguments])
        del self.environment["MLFLOW_TRACKING_URI"]

    def run(self, command: Sequence[str], *, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Raises DataError with what it said where it fails and `check`."""
        done = subprocess.run(
            command,
            cwd=self.workspace if self.workspace.is_dir() else self.base,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_PATIENCE_S,
            check=False,
        )
        if check and done.returncode != 0:
            raise DataError(f"{' '.join(command[:4])[:100]}: {(done.stderr or done.stdout)[-600:]}")
        return done

    def mosis(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.run([sys.executable, "-c", _COMMAND, *arguments], check=check)

    def up(self) -> None:
        """What systemd or a person would do after a death; tried again, as they would, while something else is down."""
        named = ["--database", self.database] if self.database else []
        for tries_left in range(4, -1, -1):
            done = self.mosis("up", *named, check=False)
            if done.returncode == 0:
                return
            if not tries_left:
                raise DataError(f"`mosis up` does not start the service again: {done.stderr[-600:]}")
            time.sleep(2)

    def down(self) -> None:
        self.mosis("down")

    @property
    def mark(self) -> str:
        state = service.read_state(self.workspace)
        return state.mark if state else "none"

    def parts(self) -> dict[str, Process]:
        state = service.read_state(self.workspace)
        return dict(state.processes) if state else {}

    def is_up(self) -> bool:
        living = service.living(self.workspace)
        return bool(living) and all(living.values())

    def processes(self) -> list[Process]:
        return find_marked(self.mark)

    def drop(self, count: int) -> None:
        """That many new videos, each by one rename, as a careful copier does it."""
        from tests.service_toy import drop

        for _ in range(count):
            self._number += 1
            video = drop(self.base, f"{self._number:05d}.mp4", self._number)
            digest = hashlib.sha256(video.read_bytes()).hexdigest()
            video.rename(self.inbox / video.name)
            self.dropped[library.video_id(digest)] = video.name

    def notify(self) -> None:
        """Of any video; where the server is down, the cron does without."""
        with contextlib.suppress(StopIteration, MosisError):
            from flows.notify import emit_arrival

            emit_arrival(service.api_url(self.workspace), self.workspace, next(iter(self.dropped.values())))

    def waiting(self) -> int:
        """Videos that are dropped and not done."""
        return len(self.dropped.keys() - set(library.done_videos(self.workspace)))

    def is_told(self, flow: str) -> bool:
        """Whether a run of that flow goes on, is about to, or waits in line: another would only lengthen the line."""
        with contextlib.suppress(MosisError, OSError):
            known = [
                *self.flow_runs("PENDING", "RUNNING"),
                *self.flow_runs("SCHEDULED", name="AwaitingConcurrencySlot"),
            ]
            flow_id = self._ask(f"/flows/name/{flow}", None)["id"]
            return any(run["flow_id"] == flow_id for run in known)
        return False

    def flow_runs(self, *types: str, name: str | None = None) -> list[dict[str, Any]]:
        """Prefect's runs in these states. Raises MosisError or OSError where the server does not answer."""
        state = {"type": {"any_": list(types)}} | ({"name": {"any_": [name]}} if name else {})
        query = {"flow_runs": {"state": state}, "limit": 200}
        return self._ask("/flow_runs/filter", query)

    def start_flow(self, deployment: str) -> None:
        """`FLOW/DEPLOYMENT`, as a person would; where the server is down, nothing."""
        with contextlib.suppress(MosisError, OSError):
            found = self._ask(f"/deployments/name/{deployment}", None)
            self._ask(f"/deployments/{found['id']}/create_flow_run", {})

    def _ask(self, path: str, body: Any) -> Any:
        content = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{service.api_url(self.workspace)}{path}", content)
        request.add_header("Content-Type", "application/json")
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with direct.open(request, timeout=30) as answer:
            return json.load(answer)

    def tracking_uri(self) -> str:
        """MLflow's: through its server where that has a database of its own."""
        state = service.read_state(self.workspace)
        if self.database and state is not None:
            return state.mlflow_url
        return f"sqlite:///{self.workspace / 'mlruns' / 'mlflow.db'}"


def wait_until(condition: Callable[[], object], seconds: float, *, every_s: float = 0.3) -> bool:
    """Whether it came true in time; what the condition asks may be down meanwhile."""
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(MosisError, urllib.error.URLError, OSError, ValueError):
            if condition():
                return True
        if time.monotonic() >= deadline:
            return False
        time.sleep(every_s)
