"""Decoding and copying of what is ingested, against PyAV alone and against `cp`, as ratios in one run.

`python -m benchmarks.decode`: video of ../shared/data (or MOSIS_SHARED_DATA) or of --videos FOLDER, generated where
there is none. Ours and theirs alternate, --rounds times; `by_cpu` compares seconds of processor time, which other work
on the machine hardly changes, `by_clock` the best rounds by the clock. The speed-up of two processes is by the clock.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter

from benchmarks.harness import ROOT, Report, Row, Setting, add_options, cache_folder, format_table, start
from tasks.params import IngestParams
from tasks.process import pin_threads
from tasks.sources import decoding, open_source


@dataclass(frozen=True)
class Plan:
    row: str
    videos: tuple[str, ...]
    side: int
    rounds: int
    pictures: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--videos", type=Path, help="folder of .mp4 files")
    parser.add_argument("--side", type=int, default=224, help="longer side at training size, pixels")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pictures", type=int, default=400, help="files of the copied folder, 1280 x 720")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    add_options(parser)
    options = parser.parse_args()
    report = Report("decode", options)
    with cache_folder(options) as cache:
        found = find_videos(options.videos, cache)
        plans = [Plan(name, found, options.side, options.rounds, options.pictures) for name in options.rows]
        report.run(measure, plans, cache)
    columns = ("what", "ours", "theirs", "by cpu", "by clock", "two processes")
    keys = ("ours", "theirs", "by_cpu", "by_clock", "two_processes")
    lines = [[row["row"], *(row.get(key) for key in keys)] for row in report.rows]
    report.finish(format_table(columns, lines), load_average=os.getloadavg())


def find_videos(folder: Path | None, cache: Path) -> tuple[str, ...]:
    """.mp4 files of `folder`, or of the shared data; one generated video where there is none."""
    if folder is None:
        folder = Path(os.environ.get("MOSIS_SHARED_DATA") or ROOT.parent / "shared" / "data") / "videos"
    return tuple(str(path) for path in sorted(folder.glob("*.mp4"))) or (str(generate(cache / "generated.mp4")),)


def generate(path: Path, frames: int = 300) -> Path:
    """640 x 360, H.264: smooth noise that moves."""
    noise = np.random.default_rng(0).integers(0, 255, (50, 90, 3), np.uint8)
    large = cv2.resize(noise, (1280, 720), interpolation=cv2.INTER_CUBIC)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=24)
        stream.width, stream.height, stream.pix_fmt = 640, 360, "yuv420p"
        for index in range(frames):
            left, top = index % 640, index % 360
            view: Any = np.ascontiguousarray(large[top : top + 360, left : left + 640])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(view, format="rgb24")))
        container.mux(stream.encode())
    return path


def measure(plan: Plan, setting: Setting) -> Row:
    return ROWS[plan.row](plan, setting)


def measure_decoding(plan: Plan, setting: Setting) -> Row:
    """Frames per second of processor time in this one process, and the speed-up of two over one by the clock."""
    ours, theirs = [], []
    for _ in range(plan.rounds):
        ours.append(clock(lambda: sum(decode_ours(path, plan.side) for path in plan.videos)))
        theirs.append(clock(lambda: sum(decode_alone(path, plan.side) for path in plan.videos)))
    assert {one.value for one in ours} == {one.value for one in theirs}, "they decode different frames"
    return {
        "frames": ours[0].value,
        **compare(ours, theirs, ours[0].value),
        "two_processes": measure_two_processes(plan),
    }


def measure_two_processes(plan: Plan) -> float:
    """How many times the work two processes do in the time of one; best rounds."""
    context = multiprocessing.get_context("spawn")
    seconds: dict[int, list[float]] = {1: [], 2: []}
    with ProcessPoolExecutor(2, mp_context=context, initializer=pin_threads) as pool:
        list(pool.map(decode_all, [plan] * 2))  # imports and the file cache
        for _ in range(plan.rounds):
            for processes in (1, 2):
                started = time.perf_counter()
                list(pool.map(decode_all, [plan] * processes))
                seconds[processes].append(time.perf_counter() - started)
    return 2 * min(seconds[1]) / min(seconds[2])


def decode_all(plan: Plan) -> int:
    return sum(decode_ours(path, plan.side) for path in plan.videos)


def decode_ours(path: str, side: int) -> int:
    """Frames decoded as the ingest stage does it."""
    count = decoding.DecodeCount()
    for frame in decoding.decode(Path(path), count, interval_us=4e4):
        decoding.to_rgb(frame.picture, max_side=side)
    return count.frames


def decode_alone(path: str, side: int) -> int:
    """The same by PyAV and nothing else: one thread, the same size, format and interpolation."""
    frames = 0
    scaler = VideoReformatter()
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        for frame in container.decode(stream):
            scale = min(1.0, side / max(frame.width, frame.height))
            size = {"width": round(frame.width * scale), "height": round(frame.height * scale)}
            scaler.reformat(frame, **size, format="rgb24", interpolation=Interpolation.AREA, threads=1).to_ndarray()
            frames += 1
    return frames


def measure_copying(plan: Plan, setting: Setting) -> Row:
    """MB per second of a folder of pictures that becomes clips, and of `cp -r` followed by a sync of what it wrote.

    by_clock_without_their_sync: ours, with its fsync, against `cp -r` alone.
    """
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory(dir=setting.cache) as name:
        folder = Path(name)
        size = write_pictures(folder / "pictures", plan.pictures)
        ours, theirs, bare = [], [], []
        for number in range(plan.rounds):
            ours.append(clock(partial(ingest_pictures, folder / "pictures", folder / f"clips-{number}")))
            theirs.append(clock(partial(copy, folder / "pictures", folder / f"copy-{number}")))
            bare.append(clock(partial(copy, folder / "pictures", folder / f"bare-{number}", sync=False)))
            for name in ("clips", "copy", "bare"):
                shutil.rmtree(folder / f"{name}-{number}")
        alone = min(one.clock_s for one in bare) / min(one.clock_s for one in ours)
        return {
            "files": plan.pictures,
            "bytes": size,
            **compare(ours, theirs, size / 1e6),
            "by_clock_without_their_sync": alone,
        }


def write_pictures(folder: Path, count: int) -> int:
    """JPEGs with the detail of a photograph; returns their bytes."""
    folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 255, (180, 320, 3), np.uint8)
    large = cv2.resize(noise, (1800, 1000), interpolation=cv2.INTER_CUBIC)
    for index in range(count):
        left, top = index % 500, index % 250
        cv2.imwrite(str(folder / f"{index:05d}.jpg"), large[top : top + 720, left : left + 1280])
    return sum(path.stat().st_size for path in folder.iterdir())


def ingest_pictures(source: Path, target: Path) -> int:
    target.mkdir()
    jobs = open_source(str(source), IngestParams(image_rate_hz=24))
    return sum(entry.frames for job in jobs for entry in job.run(target))


def copy(source: Path, target: Path, *, sync: bool = True) -> int:
    subprocess.run(["cp", "-r", source, target], check=True)
    if sync:
        subprocess.run(["sync", *target.iterdir(), target], check=True)
    return len(os.listdir(target))


@dataclass(frozen=True)
class Timed:
    value: Any
    cpu_s: float
    clock_s: float


def clock(work: Callable[[], Any]) -> Timed:
    """Processor time is that of this process and of the children that it waited for."""
    before, started = sum(os.times()[:4]), time.perf_counter()
    value = work()
    return Timed(value, sum(os.times()[:4]) - before, time.perf_counter() - started)


def compare(ours: list[Timed], theirs: list[Timed], amount: float) -> Row:
    """Amount per second by the clock of the best rounds, and how ours stands to theirs: 1 is as fast."""
    return {
        "ours": amount / min(one.clock_s for one in ours),
        "theirs": amount / min(one.clock_s for one in theirs),
        "by_cpu": min(one.cpu_s for one in theirs) / min(one.cpu_s for one in ours),
        "by_clock": min(one.clock_s for one in theirs) / min(one.clock_s for one in ours),
        "rounds": [[a.cpu_s, a.clock_s, b.cpu_s, b.clock_s] for a, b in zip(ours, theirs, strict=True)],
    }


ROWS: dict[str, Callable[[Plan, Setting], Row]] = {"decode": measure_decoding, "copy": measure_copying}


if __name__ == "__main__":
    start(main)
