"""The pairs stage against bare decoding and writing, its memory from one hour of video to ten, and many clips.

`python -m benchmarks.pairs`: rows `speed` (ours and the bare loop alternate in one run), `manifest` (3,000 clips
opened), `dvc add` (3,000 clips of 10 kB), `memory 1 h` and `memory 10 h` (a synthetic stand-in: frames of 32 x 32 at
12 Hz, stored at 64 x 64, as many as that video has; what could grow with hours are tables, not pictures). Needs
pyarrow, and dvc for its row.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from benchmarks.decode import clock, compare
from benchmarks.harness import ROOT, Report, Row, Setting, add_options, cache_folder, format_table, start
from models.common.images import resize_frame
from tasks import pairs, versioning
from tasks.clips import ClipEntry, ClipReader, ClipWriter, open_clips, write_manifest
from tasks.npy import NpyWriter
from tasks.params import PairsParams, Params

RATE_HZ = 12
CLIP_SECONDS = 60


@dataclass(frozen=True)
class Plan:
    row: str
    rounds: int
    frames: int
    hours: float
    clips: int
    workers: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--frames", type=int, default=720, help="640 x 360, for the speed")
    parser.add_argument("--hours", type=float, nargs="*", default=[1, 10])
    parser.add_argument("--clips", type=int, default=3000)
    parser.add_argument("--workers", type=int, default=2, help="processes, for the memory")
    add_options(parser)
    options = parser.parse_args()
    report = Report("pairs", options)
    names = ["speed", "manifest", "dvc add", *(f"memory {hours:g} h" for hours in options.hours)]
    hours = [0.0, 0.0, 0.0, *options.hours]
    with cache_folder(options) as cache:
        plans = [
            Plan(name, options.rounds, options.frames, amount, options.clips, options.workers)
            for name, amount in zip(names, hours, strict=True)
        ]
        report.run(measure, plans, cache)
    keys = ("frames", "ours", "theirs", "by_cpu", "by_clock", "peak_mib", "seconds")
    lines = [[row["row"], *(row.get(key) for key in keys)] for row in report.rows]
    columns = ("what", *(key.replace("_", " ") for key in keys))
    report.finish(format_table(columns, lines), load_average=os.getloadavg())


def measure(plan: Plan, setting: Setting) -> Row:
    kinds: dict[str, Callable[[Plan, Path], Row]] = {
        "speed": measure_speed,
        "memory": measure_memory,
        "manifest": measure_manifest,
        "dvc": measure_dvc,
    }
    with tempfile.TemporaryDirectory(dir=setting.cache) as folder:
        return kinds[plan.row.split()[0]](plan, Path(folder))


def measure_speed(plan: Plan, folder: Path) -> Row:
    """Frames per second of the stage in one process, and of reading, resizing and writing alone."""
    entries = make_clips(folder / "data" / "clips", plan.frames, (360, 640))
    params = Params(pairs=PairsParams(workers=1))
    size = (params.pairs.height, params.pairs.width)
    ours, theirs = [], []
    for _ in range(plan.rounds):
        ours.append(clock(lambda: pairs.run(params, folder)))
        theirs.append(clock(lambda: decode_and_write(entries, folder / "bare.npy", size)))
    return {"frames": plan.frames, **compare(ours, theirs, plan.frames)}


def decode_and_write(entries: list[ClipEntry], target: Path, size: tuple[int, int]) -> None:
    with NpyWriter(target, np.uint8, (*size, 3)) as writer:
        for entry in entries:
            with ClipReader(entry.path) as reader:
                for frame in reader.frames():
                    writer.append(resize_frame(frame, size)[None])
    with target.open("rb") as file:
        os.fsync(file.fileno())  # as the stage ends


def measure_memory(plan: Plan, folder: Path) -> Row:
    """Most MiB resident at once over `python -m tasks pairs` and all its workers, sampled twice a second.

    peak_mib: what several of them share is divided among them (PSS). peak_rss_mib: counted in each.
    """
    frames = round(plan.hours * 3600 * RATE_HZ)
    make_clips(folder / "data" / "clips", frames, (32, 32))
    pairs_params = {"height": 64, "width": 64, "workers": plan.workers}
    (folder / "params.yaml").write_text(json.dumps({"pairs": pairs_params}))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    before, started = sum(os.times()[2:4]), time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "tasks", "pairs"], cwd=folder, env=environment)
    with watch_memory(process.pid) as peaks:
        process.wait()
    if process.returncode:
        raise RuntimeError(f"the stage ended with {process.returncode}")
    return {
        "frames": frames,
        "workers": plan.workers,
        **peaks,
        "seconds": time.perf_counter() - started,
        "cpu_s": sum(os.times()[2:4]) - before,
    }


@contextlib.contextmanager
def watch_memory(root: int) -> Iterator[dict[str, float]]:
    """MiB of process `root` and all below it, filled until the context ends."""
    peaks = {"peak_mib": 0.0, "peak_rss_mib": 0.0}
    ended = threading.Event()

    def sample() -> None:
        while not ended.wait(0.5):
            found = [resident_mib(pid) for pid in descend(root)]
            peaks["peak_mib"] = max(peaks["peak_mib"], sum(one.get("Pss", 0) for one in found))
            peaks["peak_rss_mib"] = max(peaks["peak_rss_mib"], sum(one.get("Rss", 0) for one in found))

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield peaks
    finally:
        ended.set()
        thread.join()


def descend(pid: int) -> list[int]:
    found = [pid]
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            found += [one for child in (task / "children").read_text().split() for one in descend(int(child))]
    return found


def resident_mib(pid: int) -> dict[str, float]:
    """Pss and Rss of one process; nothing where it has ended."""
    with contextlib.suppress(OSError):
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
        return {line.split(":")[0]: int(line.split()[1]) / 1024 for line in lines}
    return {}


def measure_manifest(plan: Plan, folder: Path) -> Row:
    make_clips(folder, plan.clips * 2, (32, 32), frames_per_clip=2)
    seconds = []
    for _ in range(plan.rounds):
        started = time.perf_counter()
        assert len(open_clips(folder)) == plan.clips
        seconds.append(time.perf_counter() - started)
    return {"clips": plan.clips, "seconds": min(seconds), "rounds": seconds}


def measure_dvc(plan: Plan, folder: Path) -> Row:
    """`dvc add` of a folder of archives that DVC has never seen, the start of DVC included."""
    subprocess.run(["git", "init", "--quiet"], cwd=folder, check=True)
    versioning.init(folder)
    (folder / "clips").mkdir()
    for index in range(plan.clips):
        (folder / "clips" / f"{index:016x}.zip").write_bytes(np.random.default_rng(index).bytes(10_000))
    started = time.perf_counter()
    versioning.run_dvc(folder, "add", "clips")
    return {"clips": plan.clips, "seconds": time.perf_counter() - started}


def make_clips(
    folder: Path, frames: int, size: tuple[int, int], frames_per_clip: int = RATE_HZ * CLIP_SECONDS
) -> list[ClipEntry]:
    """Clips with a manifest: a texture that moves 1 px a frame, its pictures encoded once and used again."""
    noise = np.random.default_rng(0).integers(0, 255, (size[0] // 4, size[1] // 2, 3), np.uint8)
    large = cv2.resize(noise, (2 * size[1], size[0]), interpolation=cv2.INTER_CUBIC)
    pictures = [cv2.imencode(".jpg", large[:, left : left + size[1]])[1].tobytes() for left in range(24)]
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for number, first in enumerate(range(0, frames, frames_per_clip)):
        digest = hashlib.sha256(str(number).encode()).hexdigest()
        with ClipWriter(folder, clip_id=digest[:16], source=f"{number}.mp4", source_sha256=digest) as writer:
            for index in range(min(frames_per_clip, frames - first)):
                there_and_back = abs((index + 23) % 46 - 23)  # no jump where the row of pictures ends
                writer.add(pictures[there_and_back], round(index * 1e6 / RATE_HZ))
        entries.append(writer.entry)
    write_manifest(folder, entries)
    return entries


if __name__ == "__main__":
    start(main)
