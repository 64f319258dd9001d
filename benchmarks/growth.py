"""What one more video costs beside the many that are done: rows of `python -m benchmarks.throughput`."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from pathlib import Path

from benchmarks.decode import clock
from benchmarks.harness import Row
from tasks import versioning

_GIT = ("git", "-c", "user.name=benchmark", "-c", "user.email=benchmark@localhost", "-c", "gc.auto=0")


def measure_library(count: int, rounds: int, folder: Path) -> Row:
    """Processor seconds, and bytes by which .git grows, of one more video where so many are done."""
    from tasks import library

    workspace = make_workspace(folder)
    library.prepare(workspace)
    for number in range(count):
        write_done(workspace, hashlib.sha256(str(number).encode()).hexdigest()[:16])
    run_git(workspace, "add", "library")
    run_git(workspace, "commit", "--quiet", "--message", "all")
    run_git(workspace, "gc", "--quiet")
    packed = size(workspace / ".git")
    costs = [version_one_more(workspace, number) for number in range(rounds + 1)][1:]  # the first imports DVC
    status = clock(lambda: run_git(workspace, "status", "--porcelain")).cpu_s
    done = clock(lambda: library.done_videos(workspace))
    entries = clock(lambda: library.done_entries(workspace))
    stages = clock(lambda: versioning.changed_stages(workspace)).cpu_s
    return {
        "videos": count,
        **{name: min(cost[name] for cost in costs) for name in costs[0]},
        "git_status_cpu_s": status,
        "done_videos_cpu_s": done.cpu_s,
        "done_entries_cpu_s": entries.cpu_s,
        "dvc_status_cpu_s": stages,
        "git_mb_packed": packed / 1e6,
    }


def version_one_more(workspace: Path, number: int) -> dict[str, float]:
    from tasks import history

    video = hashlib.sha256(f"new {number}".encode()).hexdigest()[:16]
    write_entry(workspace, video)
    before = size(workspace / ".git")
    target = f"library/{video}"
    added = clock(lambda: versioning.add(workspace, target))
    pushed = clock(lambda: versioning.push_target(workspace, f"{target}.dvc"))
    names = [f"{target}.dvc", "library/.gitignore"]
    committed = clock(lambda: history.commit_files(workspace, names, "one more"))
    grown = size(workspace / ".git") - before
    seconds = {"add_cpu_s": added.cpu_s, "push_cpu_s": pushed.cpu_s, "commit_cpu_s": committed.cpu_s}
    return {**seconds, "git_bytes_before_gc": grown}


def measure_new_video(count: int, folder: Path) -> Row:
    """A run of the flow over videos of 6 frames of 64 x 48, and one that finds nothing, with Prefect's server."""
    from flows import environment, server
    from tests.service_toy import drop
    from tests.service_toy import make_workspace as make_toy

    workspace = make_toy(folder / "workspace", champion=True)
    environment.prepare(workspace)
    wait = server.start()
    from flows.new_video import new_video

    wait()
    served = [pid for pid in children() if b"flows.server" in Path("/proc", str(pid), "cmdline").read_bytes()]

    def run() -> float:
        before = sum(os.times()[:4]) + sum(map(processor_seconds, served))
        new_video(str(workspace))
        return sum(os.times()[:4]) + sum(map(processor_seconds, served)) - before

    drop(workspace / "inbox", "first.mp4", 0)
    run()
    for number in range(count):
        drop(workspace / "inbox", f"{number:03}.mp4", number + 1)
    with_videos, without = run(), run()
    return {"videos": count, "run_cpu_s": without, "video_cpu_s": (with_videos - without) / count}


def write_done(workspace: Path, video: str) -> None:
    """Its .dvc file and its entry.json, as another machine or an earlier day has left them."""
    digest = hashlib.md5(video.encode(), usedforsecurity=False).hexdigest()
    text = f"outs:\n- md5: {digest}.dir\n  size: 123456789\n  nfiles: 6\n  hash: md5\n  path: '{video}'\n"
    (workspace / "library" / f"{video}.dvc").write_text(text)
    write_entry(workspace, video)


def write_entry(workspace: Path, video: str) -> None:
    from tasks.library import Entry

    entry = Entry(
        video_id=video, sha256=video * 4, source="x.mp4", bytes=1, arrived_at=1.0, clips=1, frames=1, seconds=1.0,
        annotations=1, tracks=1, model={}, params={}, code={}, label_free={}, note=video,
    )  # fmt: skip
    folder = workspace / "library" / video
    folder.mkdir()
    (folder / "entry.json").write_text(json.dumps(entry.to_json()))


def run_git(workspace: Path, *arguments: str) -> None:
    subprocess.run([*_GIT, *arguments], cwd=workspace, check=True, capture_output=True)


def children() -> list[int]:
    return [int(pid) for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()]


def processor_seconds(pid: int) -> float:
    fields = Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def make_workspace(folder: Path) -> Path:
    from tasks import workspace

    workspace.init(folder / "workspace", {})
    return folder / "workspace"


def size(place: Path) -> int:
    """Bytes of a file, or of all files below a folder."""
    return sum(path.stat().st_size for path in place.rglob("*") if path.is_file()) or place.stat().st_size
