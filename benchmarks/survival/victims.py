"""Whom a campaign kills: which process of the service is what, and who descends from whom."""

from __future__ import annotations

import contextlib
from pathlib import Path

from benchmarks.survival.farm import Farm
from flows.processes import Process, identify

SERVERS = ("prefect", "mlflow", "worker")
FLOW, VIDEO, RETRAIN, SCORER, DVC, STAGE, POSTGRES = "flow", "video", "retrain", "scorer", "dvc", "stage", "postgres"
_FLOWS = {"new-video": FLOW, "retrain": RETRAIN}
_WORKERS = {FLOW: VIDEO, RETRAIN: SCORER}
"""What a flow's own worker process is for."""


def find(farm: Farm, kind: str) -> list[Process]:
    """The living processes of that kind: of SERVERS the one that the service knows; the flows new-video and retrain,
    what works on a video or scores a version for them, DVC for a stage, the stage."""
    if kind in SERVERS:
        process = farm.parts().get(kind)
        return [process] if process is not None and process.is_alive() else []
    return [one for one in farm.processes() if kind_of(one) == kind]


def kind_of(process: Process) -> str | None:
    words = _words(process, "cmdline")
    if "-m" in words[:-1]:
        module = words[words.index("-m") + 1]
        if module in ("prefect.engine", "prefect.runner._workspace_supervisor"):
            return _flow_kind(process)
        return {"tasks.versioning": DVC, "tasks": STAGE}.get(module)
    if any("spawn_main" in word for word in words):
        parent = identify(_parent(process.pid))
        return _WORKERS.get(kind_of(parent) or "") if parent is not None else None
    return None


def _flow_kind(process: Process) -> str | None:
    for variable in _words(process, "environ"):
        if variable.startswith("PREFECT__FLOW_NAME="):
            return _FLOWS.get(variable.partition("=")[2])
    return None


def descendants(process: Process) -> list[Process]:
    """All living ones, children of children too."""
    children: dict[int, list[int]] = {}
    for place in Path("/proc").glob("[0-9]*"):
        children.setdefault(_parent(int(place.name)), []).append(int(place.name))
    found, waiting = [], [process.pid]
    while waiting:
        for pid in children.get(waiting.pop(), ()):
            waiting.append(pid)
            found.append(identify(pid))
    return [one for one in found if one is not None]


def proportional_mib(process: Process) -> float:
    """Memory that is this process' own, shared pages by their share; 0 where it is gone."""
    with contextlib.suppress(OSError):
        for line in (Path("/proc", str(process.pid), "smaps_rollup")).read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) / 1024
    return 0.0


def describe(process: Process) -> str:
    """For a finding: what it runs, without the folders."""
    return " ".join(word.rpartition("/")[2] for word in _words(process, "cmdline"))[:120] or f"process {process.pid}"


def _words(process: Process, name: str) -> list[str]:
    try:
        return Path("/proc", str(process.pid), name).read_text(errors="replace").split("\0")
    except OSError:
        return []


def _parent(pid: int) -> int:
    try:
        return int(Path("/proc", str(pid), "stat").read_text(errors="replace").rpartition(")")[2].split()[1])
    except OSError:
        return 0
